from __future__ import annotations

import csv
import json
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runtime.fake_nvidia import Nvidia

from declip_runtime import backends
from declip_runtime.benchmark import Timing, measure, model_rows, to_csv, to_markdown
from declip_runtime.cache import Cache
from declip_runtime.engine_file import EngineFile
from declip_runtime.errors import BackendUnavailableError
from declip_runtime.machine import describe_machine
from declip_sdk.cli import run
from runtime import fake_nvidia, tiny_engine

from .command import DECLIP, TINY
from .conftest import save_picture

QUICK = ["--engine", str(TINY), "--seconds", "0.01"]
MACHINE = {"engine", "engine id", "date", "commit", "cpu", "cpus", "instruction sets", "system", "versions"}


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_every_backend_precision_and_batch_has_a_row_that_says_what_it_ran_on(tmp_path: Path) -> None:
    output = tmp_path / "speed.csv"
    assert run(["benchmark", *QUICK, "--batch", "1", "--batch", "3", "-o", str(output)]) == 0
    rows = read(output)
    assert all(rows[0].keys() >= MACHINE for _ in rows)
    assert {row["engine id"] for row in rows} == {EngineFile.open(TINY).id[:12]}
    assert all(f"openvino {version('openvino')}" in row["versions"] for row in rows)
    usable = {name for name, reason in backends.available().items() if reason is None} - {"fake"}
    assert {(row["backend"], row["batch"]) for row in rows} == {(name, batch) for name in usable for batch in "13"}
    assert all((name, "fp32") in {(row["backend"], row["precision"]) for row in rows} for name in usable)
    for row in rows:
        assert float(row["p10"]) <= float(row["images/s"]) <= float(row["p90"])
    for batch in "13":  # medians of a few calls, rounded: a busy machine may part one row's, not all
        found = [row for row in rows if row["batch"] == batch]
        ratios = [float(r["images/s"]) * float(r["ms/call"]) / (1000 * int(batch)) for r in found]
        assert any(ratio == pytest.approx(1, rel=0.5) for ratio in ratios), ratios


def test_photos_are_measured_from_files_and_bad_ones_do_not_stop_it(tmp_path: Path, capfd: Any) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    save_picture(photos / "a.jpg", 1)
    (photos / "broken.jpg").write_bytes(b"not a picture")
    assert run(["benchmark", *QUICK, "--batch", "1", str(photos), "-o", str(tmp_path / "speed.csv")]) == 0
    what = [row["what"] for row in read(tmp_path / "speed.csv") if row["what"] != "model only"]
    assert what == [
        "1 file, fast decoding, views=1",
        "1 file, exact decoding, views=1",
        "1 file, exact decoding, views=5",
    ]
    out, err = capfd.readouterr()
    assert "left out 1 of 2 files, not to be scored; first: " in err
    assert "broken.jpg" in err
    assert all(line in out for line in what)
    assert "cpu: " in out


def test_the_model_alone_leaves_the_cache_of_compiled_models_alone(tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    subprocess.run([*DECLIP, "benchmark", *QUICK, "--batch", "1"], env=environment, check=True, capture_output=True)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.fixture
def half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineFile:
    """An engine that GPUs run too, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tiny_engine.write(tmp_path / "half.engine", fp16=True)


def test_the_lean_runtime_without_a_plan_is_left_out_with_the_reason(
    half: EngineFile, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    fake_nvidia.install(monkeypatch, Nvidia(lean=True))
    assert run(["benchmark", "--engine", str(half.path), "--seconds", "0.01", "--batch", "1"]) == 0
    out, err = capfd.readouterr()
    assert "openvino" in out
    assert "tensorrt" not in out
    assert err.count("left out tensorrt in fp32: the lean runtime") == 1
    assert err.count("left out") == 1, "the same reason is not told for every precision"
    for name in ("openvino", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendUnavailableError, match="builds no plans"):
        list(model_rows(half, [1], seconds=0.01))


def test_plans_are_built_once_and_kept(half: EngineFile, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = fake_nvidia.install(monkeypatch, Nvidia())
    for _ in range(2):
        rows = list(model_rows(half, [1], seconds=0.001))
        assert {row["precision"] for row in rows if row["backend"] == "tensorrt"} == {"fp32", "fp16"}
    assert len(machine.built) == 2
    assert all("openvino" not in entry.name for entry in Cache().list())
    assert len(Cache().list()) == 3, "two plans and TensorRT's timings"


@pytest.fixture
def acceptance(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/gpu_acceptance.py, at the smallest size."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import common
    import gpu_acceptance

    monkeypatch.setattr(common, "_PAUSE", 0)
    setting = replace(gpu_acceptance._rehearsal(), batches=(1,), calls=2, seconds=0.001, soak=10)
    monkeypatch.setattr(gpu_acceptance, "_rehearsal", lambda: setting)
    monkeypatch.setattr(gpu_acceptance.torch, "compile", lambda function, **_: function)
    return gpu_acceptance


def test_the_acceptance_report_survives_what_fails(
    acceptance: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    ours = (("tensorrt", "cuda:0"), ("openvino", None))
    setting = replace(acceptance._rehearsal(), ours=ours, dtype=torch.float32, batches=(1,), calls=3)  # quick
    monkeypatch.setattr(acceptance, "_rehearsal", lambda: setting)
    monkeypatch.setattr(acceptance.peers, "gemm_ceiling", lambda *_: 1 / 0)
    for name in ("tensorrt", "tensorrt_lean"):
        monkeypatch.setitem(sys.modules, name, None)
    report = tmp_path / "report.md"
    arguments = ["--rehearse", "--model", "no-such-model", "--model", "declip-nano", "-o", str(report)]
    monkeypatch.setattr(sys, "argv", ["gpu_acceptance.py", *arguments])
    assert acceptance.main() == 0, "a rehearsal"
    text = report.read_text()
    errors = text.split("## Errors")[1]
    assert "TensorRT is not installed" in errors
    assert "no-such-model" in errors
    assert "ZeroDivisionError" in errors
    missed = [line for line in text.splitlines() if line.endswith("| MISSED |") and "runs without" in line]
    failed = ("no-such-model, everything", "declip-nano, tensorrt", "declip-nano, matrix products alone, batch 1")
    assert [line.split(": runs")[0].removeprefix("| ") for line in missed] == list(failed)
    assert "OpenVINO" in text.split("## Parity")[1].split("## Starting")[0]
    assert "decode=exact" in text.split("## Pictures")[1].split("## Errors")[0]
    assert "torch fp16 eager" in text.split("## Throughput")[1].split("## Latency")[0]


def test_acceptance_builds_a_plan_once_and_its_bars_hold_the_order(
    acceptance: Any, half: EngineFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = fake_nvidia.install(monkeypatch, Nvidia())
    from acceptance import parity

    sections: dict[str, list[Any]] = {name: [] for name in acceptance.SECTIONS}
    model = acceptance.peers.Model("half", None, half.manifest.preprocess, half)
    cache = Cache(tmp_path / "plans")
    with closing(acceptance.started(model, ("tensorrt", None), acceptance._rehearsal(), cache, sections)) as backend:
        assert len(machine.built) == 1
        (row,) = sections["starting"]
        assert row["model"] == "half"
        assert {"first, s", "again, s", "kept, MB"} <= row.keys()
        pixels = tiny_engine.pictures(6)
        wanted = backend.run(pixels)
        apart = np.linspace(0.1, 0.9, 6, dtype=np.float32)
        rank = np.argsort(np.argsort(wanted.scores, 0), 0)
        for order, swapped in ((rank, False), (5 - rank, True)):
            _, bars = parity("half", backend, pixels, replace(wanted, scores=apart[order]))
            assert bars[-1].what.endswith("clear pairs of photos swapped")
            assert bars[-1].met is not swapped


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "speed.xlsx"], "does not follow from its name"),
        (["{empty}"], "no images in"),
        (["{empty}", "{empty}/gone.jpg"], "gone.jpg does not exist"),
        (["{empty}/zero.jpg"], "none of 1 file can be scored. The first: '{empty}/zero.jpg' is empty"),
        (["--batch", "0"], "0 is not in the range"),
        (["--seconds", "0"], "0.0 is not in the range"),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], message: str, tmp_path: Path, capfd: Any) -> None:
    folder = str(tmp_path / "empty")
    Path(folder).mkdir()
    if "{empty}/zero.jpg" in arguments:
        Path(folder, "zero.jpg").touch()
    assert run(["benchmark", *QUICK, *(a.replace("{empty}", folder) for a in arguments)]) == 2
    captured = capfd.readouterr()
    assert message.replace("{empty}", folder) in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_timing_is_medians_and_quantiles() -> None:
    columns = Timing((0.1, 0.2, 0.5)).columns(10)
    assert columns == {"images/s": 50, "p10": 26, "p90": 90, "ms/call": 200}


def test_measuring_repeats_until_the_time_is_over_and_at_least_once() -> None:
    calls: list[int] = []
    assert len(measure(lambda: calls.append(1), 1e-9).seconds) == len(calls) == 1
    calls.clear()
    timing = measure(lambda: calls.append(1), 0.01)
    assert len(timing.seconds) == len(calls) > 1
    assert sum(timing.seconds) >= 0.01


def test_rows_of_different_kinds_share_one_table() -> None:
    rows = [{"a": 1, "b": "x|y"}, {"a": 2, "c": 0.5}]
    assert to_csv(rows) == "a,b,c\n1,x|y,\n2,,0.5\n"
    assert to_markdown(rows) == "| a | b | c |\n| --- | --- | --- |\n| 1 | x\\|y |  |\n| 2 |  | 0.5 |\n"


def test_an_installed_package_claims_no_commit(tmp_path: Path) -> None:
    """A virtual environment inside somebody's repository is not a checkout of ours."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    copy = tmp_path / "site-packages" / "declip_runtime"
    copy.mkdir(parents=True)
    for module in ("__init__", "machine", "cpu", "cgroups", "version"):
        source = Path(sys.modules["declip_runtime.machine"].__file__ or "").with_name(f"{module}.py")
        (copy / source.name).write_bytes(source.read_bytes())
    program = "import json; from declip_runtime.machine import describe_machine as d; print(json.dumps(d()))"
    result = subprocess.run([sys.executable, "-c", program], cwd=copy.parent, capture_output=True, check=True)
    machine = json.loads(result.stdout)
    assert machine["commit"] == ""
    assert machine["cpu"]
    assert machine["cpus"] >= 1


def test_this_checkout_names_its_commit() -> None:
    root = Path(__file__).parents[2]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    if head.returncode:
        pytest.skip("the tests were taken out of their git repository")
    stated = str(describe_machine()["commit"]).removesuffix("-dirty")
    assert stated
    assert head.stdout.startswith(stated)
