"""build, doctor, and what info says of plans, on pretended NVIDIA libraries."""

from __future__ import annotations

import _thread
import json
import signal
import site
import sys
from pathlib import Path
from typing import Any

import pytest
from runtime.fake_nvidia import Nvidia

from declip_runtime import doctor
from declip_runtime.engine_file import EngineFile
from declip_runtime.machine import describe_machine
from declip_runtime.signature import Range
from declip_sdk import Scorer
from declip_sdk.cli import run
from runtime import fake_nvidia, tiny_engine, tiny_generator


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tiny_engine.write(tmp_path / "tiny.engine", fp16=True).path


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Nvidia:
    return fake_nvidia.install(monkeypatch, Nvidia())


def test_a_plan_is_built_into_the_engine_and_used(machine: Nvidia, engine: Path, photos: Path, capfd: Any) -> None:
    before = EngineFile.open(engine).id
    assert run(["build", str(engine), "--batch", "1,4,8"]) == 0
    captured = capfd.readouterr()
    assert "/orin-sm87x8-tensorrt-10.3.0-fp16.plan" in captured.out
    assert "batches 1..8, tuned for 4" in captured.out
    assert "compared with the engine on the CPU" in captured.out
    assert "building a plan of tiny for Orin" in captured.err
    file = EngineFile.open(engine)
    assert file.id == before
    file.verify()
    machine.built.clear()
    with Scorer(engine) as scorer:
        assert scorer.backend == "tensorrt"
        assert len(scorer.score(photos / "a.jpg")) == 1
    assert not machine.built
    assert run(["score", str(photos / "a.jpg"), "--engine", str(engine), "--format", "csv"]) == 0


def test_a_wrong_plan_is_not_shipped(engine: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    fake_nvidia.install(monkeypatch, Nvidia(wrong_by=0.3))
    before = engine.read_bytes()
    assert run(["build", str(engine)]) == 2
    assert "computes something else than the engine" in capfd.readouterr().err
    assert engine.read_bytes() == before
    assert [path.name for path in engine.parent.iterdir() if path.name.startswith(".declip")] == []


def test_ctrl_c_leaves_the_engine_as_it_was(machine: Nvidia, engine: Path, capfd: Any) -> None:
    before = engine.read_bytes()
    machine.during_build = _thread.interrupt_main
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run(["build", str(engine)]) == 130
    finally:
        signal.signal(signal.SIGINT, handler)
    assert engine.read_bytes() == before
    assert [path.name for path in engine.parent.iterdir() if path.name.startswith(".declip")] == []


def test_every_model_of_a_generator_gets_a_plan(
    machine: Nvidia, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    engine = tiny_generator.write(tmp_path / "dp.engine", fp16=True)
    assert run(["build", str(engine.path), "--batch", "4,4,8", "--range", "height=4,4,6"]) == 0
    out = capfd.readouterr().out
    assert out.count("compared with the engine on the CPU") == len(tiny_generator.SIGNATURES)
    plans = {plan.component: plan for plan in EngineFile.open(engine.path).manifest.plans}
    assert set(plans) == set(tiny_generator.SIGNATURES)
    assert plans["unet"].sizes["height"] == Range(4, 4, 6)
    assert "height" not in plans["text_encoder"].sizes
    assert run(["info", str(engine.path)]) == 0
    told = " ".join(capfd.readouterr().out.split())
    assert "fp16, batches 4..8, tuned for 4; height 4..6, tuned for 4; width 2..8, tuned for 4" in told
    assert run(["build", str(engine.path), "--precision", "int8"]) == 2
    assert "Engines that generate have no int8 graphs" in capfd.readouterr().err
    for options in (["--component", "text_encoder", "--range", "height=4,4,8"], ["--range", "depth=1"]):
        machine.built.clear()
        assert run(["build", str(engine.path), *options]) == 2
        assert "Name one of them" in capfd.readouterr().err
        assert not machine.built


def test_plans_that_were_built_are_kept_where_a_later_one_fails(
    machine: Nvidia, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    engine = tiny_generator.write(tmp_path / "dp.engine", fp16=True)
    machine.wrong_by = 1.0  # the UNet, which is fourth
    assert run(["build", str(engine.path)]) == 2
    assert "noise differs by" in capfd.readouterr().err
    assert len(machine.built) == 4, "each was compared before the next was built"
    kept = EngineFile.open(engine.path)
    kept.verify()
    assert [plan.component for plan in kept.manifest.plans] == ["image_encoder", "image_tokens", "text_encoder"]
    assert kept.id == engine.id
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".declip")] == []


def test_building_again_replaces_the_plan_and_another_kind_joins_it(machine: Nvidia, engine: Path, capfd: Any) -> None:
    for options in ([], [], ["--version-compatible", "--hardware-compatible"], ["--precision", "fp32"]):
        assert run(["build", str(engine), *options]) == 0
    assert len(EngineFile.open(engine).manifest.plans) == 3


def test_a_copy_leaves_the_engine_as_it_was(machine: Nvidia, engine: Path, tmp_path: Path, capfd: Any) -> None:
    before = engine.read_bytes()
    assert run(["build", str(engine), "-o", str(tmp_path / "orin.engine")]) == 0
    assert engine.read_bytes() == before
    assert EngineFile.open(tmp_path / "orin.engine").manifest.plans


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--batch", "0"], "range of sizes"),
        (["--batch", "8,4,2"], "range of sizes"),
        (["--workspace", "much"], "no size"),
        (["--workspace", "10"], "too small"),
        (["--level", "9"], "0<=x<=5"),
        (["--precision", "int8"], "fp16"),
        (["--device", "cuda:7"], "there is no GPU 7"),
        (["--device", "cpu"], "Use cuda or cuda:0"),
        (["--without-lean"], "--version-compatible"),
        (["-o", "/nowhere/x.engine"], "does not exist"),
        (["-o", "/"], "is a folder"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_built(
    machine: Nvidia, engine: Path, arguments: list[str], told: str, capfd: Any
) -> None:
    before = engine.read_bytes()
    assert run(["build", str(engine), *arguments]) == 2
    assert told in capfd.readouterr().err
    assert not machine.built
    assert engine.read_bytes() == before


def test_an_installed_engine_is_never_written_to(machine: Nvidia, tmp_path: Path, capfd: Any) -> None:
    installed = tmp_path / "site-packages" / "x.engine"
    installed.parent.mkdir()
    tiny_engine.write(installed, fp16=True)
    assert run(["build", str(installed)]) == 2
    assert "belongs to an installed package" in capfd.readouterr().err
    assert run(["build"]) == 2
    assert "-o" in capfd.readouterr().err
    assert run(["build", str(installed), "-o", str(Path(site.getsitepackages()[0]) / "y.engine")]) == 2
    assert not machine.built


def test_without_tensorrt_build_says_what_to_install(engine: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    for name in ("tensorrt", "tensorrt_lean"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    assert run(["build", str(engine)]) == 2
    err = capfd.readouterr().err
    assert "pip install 'declip-sdk[tensorrt]'" in err
    assert "building" not in err


def test_info_says_which_plans_fit_here(
    machine: Nvidia, engine: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    assert run(["build", str(engine)]) == 0
    fake_nvidia.install(monkeypatch, Nvidia(gpus=[("Thor", 11, 0)]))
    assert run(["build", str(engine)]) == 0
    capfd.readouterr()
    assert run(["info", str(engine)]) == 0
    lines = capfd.readouterr().out.splitlines()
    (thor,) = (line for line in lines if "/thor" in line)
    (orin,) = (line for line in lines if "/orin" in line)
    assert thor.endswith("ready")
    assert "used here" in thor
    assert "used here" not in orin
    assert "compute capability 8.7, here is 11.0" in orin
    assert "chosen here: tensorrt · cuda:0 · fp16" in lines[-1]
    for name in ("tensorrt", "tensorrt_lean"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    assert run(["info", str(engine), "--format", "json"]) == 0
    plans = json.loads(capfd.readouterr().out)["plans"]
    assert len(plans) == 2
    assert all("TensorRT is not installed" in reason for reason in plans.values())


def test_info_on_a_machine_with_the_lean_runtime(
    machine: Nvidia, engine: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """Without a plan that fits TensorRT is not to be had there, which is no reason to say nothing of the engine."""
    assert run(["build", str(engine)]) == 0
    fake_nvidia.install(monkeypatch, Nvidia(lean=True))
    capfd.readouterr()
    assert run(["info", str(engine), "--format", "json"]) == 0
    document = json.loads(capfd.readouterr().out)
    ((plan, reason),) = document["plans"].items()
    assert "used here" not in plan
    assert "version-compatible plans only" in reason
    assert document["chosen"]["backend"] in ("openvino", "onnxruntime")
    assert run(["info", str(engine)]) == 0
    assert "used here" not in capfd.readouterr().out


def test_doctor_shows_driver_and_cuda(
    machine: Nvidia, engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def libraries() -> dict[str, str]:
        assert run(["doctor", str(engine), "--format", "json"]) == 0
        found: dict[str, str] = json.loads(capfd.readouterr().out)["libraries"]
        return found

    stated = tmp_path / "version"
    monkeypatch.setattr(doctor, "_DRIVER", stated)
    found = libraries()
    assert found["CUDA of the driver"] == "12.6 and older"
    assert found["CUDA runtime"] == "12.9"
    assert "NVIDIA driver" not in found
    for module in ("NVIDIA UNIX x86_64 Kernel Module", "NVIDIA UNIX Open Kernel Module for aarch64"):
        stated.write_text(f"NVRM version: {module}  580.95.05  Tue Sep 23 10:11:16 UTC 2025\nGCC version:  gcc 12.3\n")
        assert libraries()["NVIDIA driver"] == "580.95.05"
    cudart = sys.modules["cuda.bindings.runtime"]
    monkeypatch.setattr(cudart, "cudaDriverGetVersion", lambda: (fake_nvidia.Code.cudaSuccess, 0))
    monkeypatch.setattr(cudart, "cudaRuntimeGetVersion", lambda: (fake_nvidia.Code.cudaErrorNoDevice, None))
    assert not [name for name in libraries() if name.startswith("CUDA")], "no driver, and an error"


def test_doctor_shows_gpu_library_and_choice(machine: Nvidia, engine: Path, capfd: Any) -> None:
    assert run(["doctor", str(engine)]) == 0
    out = capfd.readouterr().out
    assert "Orin, compute capability 8.7, 1 GiB" in out
    assert "TensorRT" in out
    assert "10.3.0" in out
    assert "chosen here: tensorrt · cuda:0 · fp16" in out
    assert not machine.built


def test_a_gpu_that_is_too_old_is_said_so_everywhere(engine: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    fake_nvidia.install(monkeypatch, Nvidia())
    assert run(["build", str(engine)]) == 0
    fake_nvidia.install(monkeypatch, Nvidia(gpus=[("GTX 1080", 6, 1)]))
    monkeypatch.setattr(doctor, "has_driver", lambda: True)
    capfd.readouterr()
    for arguments in (["info", str(engine)], ["doctor", str(engine)], ["info", str(engine), "--format", "json"]):
        assert run(arguments) == 0
        said = " ".join(capfd.readouterr().out.replace("│", " ").split())
        assert "GTX 1080 is older than what TensorRT supports" in said, arguments
        assert "None" not in said


def test_doctor_for_programs_and_what_it_advises(engine: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    for name in ("tensorrt", "tensorrt_lean"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    monkeypatch.setattr(doctor, "has_driver", lambda: True)
    monkeypatch.setenv("DECLIP_CACHE_LIMIT", "0")
    assert run(["doctor", str(engine), "--format", "json"]) == 0
    document = json.loads(capfd.readouterr().out)
    advice = " ".join(document["advice"])
    assert "TensorRT is not used" in advice
    assert "pip install 'declip-sdk[tensorrt]'" in advice
    assert "DECLIP_CACHE_LIMIT" in advice
    assert document["chosen"]["backend"] in ("openvino", "onnxruntime")
    assert document["gpus"] == []


@pytest.mark.parametrize(("sets", "faster"), [("avx2", False), ("avx2 avx_vnni", True), ("avx2 avx512_bf16", False)])
def test_doctor_advises_int8_where_it_is_faster(
    engine: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, sets: str, faster: bool
) -> None:
    monkeypatch.setattr(doctor, "describe_machine", lambda: {**describe_machine(), "instruction sets": sets})
    assert run(["doctor", str(engine), "--format", "json"]) == 0
    assert ("--int8" in " ".join(json.loads(capfd.readouterr().out)["advice"])) is faster


def test_doctor_says_where_nothing_runs(engine: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    for name in ("tensorrt", "tensorrt_lean", "openvino", "onnxruntime"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    assert run(["doctor", str(engine)]) == 0
    out = capfd.readouterr().out
    assert "chosen here: TensorRT is not installed" in out or "cannot be used here" in out
    assert "pip install openvino" in out
