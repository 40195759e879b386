from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from declip_runtime import plans
from declip_runtime.container import check_name
from declip_runtime.engine_file import EngineFile
from declip_runtime.engine_writer import add_plans
from declip_runtime.errors import EngineCorruptError, ManifestError, UsageError
from declip_runtime.manifest import Plan
from declip_runtime.plans import Site, best_plan, mismatch
from declip_runtime.signature import Range

from . import tiny_engine

ORIN = Site(0, "Orin", "8.7", "10.3.0", multiprocessors=8, platform="linux-aarch64")


@pytest.fixture
def engine(tmp_path: Path) -> EngineFile:
    return tiny_engine.write(tmp_path / "tiny.engine", fp16=True)


def plan_for(engine: EngineFile, site: Site = ORIN, **changes: object) -> Plan:
    plan = Plan(
        "plans/x.plan",
        site.tensorrt,
        site.compute_capability,
        "fp16",
        plans.source_hash(engine, "fp16"),
        Range(1, 8, 8),
        site.device_name,
        platform=site.platform,
        multiprocessors=site.multiprocessors,
    )
    return replace(plan, **changes)  # type: ignore[arg-type]


def test_a_plan_built_here_fits(engine: EngineFile) -> None:
    assert mismatch(engine, plan_for(engine), ORIN) is None


@pytest.mark.parametrize(
    ("changes", "site", "reason"),
    [
        ({"precision": "int8"}, ORIN, "another graph"),
        ({"graph_sha256": "0" * 64}, ORIN, "another graph"),
        ({}, replace(ORIN, tensorrt="10.16.1.11"), "built by TensorRT 10.3.0, here is 10.16.1.11"),
        ({}, replace(ORIN, compute_capability="8.6"), "compute capability 8.7, here is 8.6"),
        ({}, replace(ORIN, device_name="Orin Nano"), "here is Orin Nano with 8"),
        ({}, replace(ORIN, multiprocessors=16), "Orin with 8 multiprocessors, here is Orin with 16"),
        (
            {"hardware_compatible": True},
            replace(ORIN, platform="linux-x86_64"),
            "built on linux-aarch64, here is linux-x",
        ),
        ({"version_compatible": True, "without_lean": True}, replace(ORIN, tensorrt="10.4.0"), "here is 10.4.0"),
        ({}, replace(ORIN, lean=True), "version-compatible plans only"),
        (
            {"version_compatible": True},
            replace(ORIN, tensorrt="11.4.0"),
            "for later releases of version 10, here is 11",
        ),
        (
            {"version_compatible": True},
            replace(ORIN, tensorrt="10.2.0"),
            "for later releases of version 10, here is 10.2",
        ),
        ({"hardware_compatible": True}, replace(ORIN, compute_capability="7.5", device_name="T4"), "T4 is older"),
    ],
)
def test_what_does_not_fit_says_why(engine: EngineFile, changes: dict[str, object], site: Site, reason: str) -> None:
    assert reason in (mismatch(engine, plan_for(engine, **changes), site) or "")


@pytest.mark.parametrize(
    ("changes", "site"),
    [
        ({"version_compatible": True}, replace(ORIN, tensorrt="10.16.1.11")),
        ({"version_compatible": True}, replace(ORIN, tensorrt="10.16.1.11", lean=True)),
        ({"hardware_compatible": True}, replace(ORIN, compute_capability="12.0", device_name="RTX 5090")),
        ({"hardware_compatible": True}, replace(ORIN, compute_capability="8.0", device_name="A100")),
    ],
)
def test_compatible_plans_reach_further(engine: EngineFile, changes: dict[str, object], site: Site) -> None:
    assert mismatch(engine, plan_for(engine, **changes), site) is None


def test_other_weights_make_another_plan(tmp_path: Path, engine: EngineFile) -> None:
    """The graph refers to the weights by their place: its own bytes stay the same when they change."""
    other = tiny_engine.write(tmp_path / "other.engine", fp16=True, seed=1)
    assert other.manifest.entries["graphs/fp16.onnx"] == engine.manifest.entries["graphs/fp16.onnx"]
    assert "other weights" in (mismatch(other, plan_for(engine), ORIN) or "")


def test_ten_is_newer_than_nine(engine: EngineFile) -> None:
    """Versions are numbers, not text."""
    plan = plan_for(engine, tensorrt="10.9.0", version_compatible=True)
    assert mismatch(engine, plan, replace(ORIN, tensorrt="10.16.1.11")) is None
    assert plans.version("10.14.1.48.post1") == (10, 14, 1, 48)
    assert plans.version("10.0") >= (8, 0)


def test_a_plan_for_exactly_this_machine_comes_first(engine: EngineFile) -> None:
    everywhere = plan_for(engine, entry="plans/a.plan", version_compatible=True, hardware_compatible=True)
    exact = plan_for(engine, entry="plans/b.plan")
    for plan in (everywhere, exact):
        engine = add_plans(engine.path, [(plan, b"ftrt plan")])
    assert best_plan(engine, "fp16", ORIN) == exact
    assert best_plan(engine, "fp16", replace(ORIN, device_name="Thor", compute_capability="11.0")) == everywhere
    assert best_plan(engine, "fp16", replace(ORIN, tensorrt="9.0")) is None
    told = plans.refusals(engine, "fp16", replace(ORIN, tensorrt="9.0"))
    assert "plans/a.plan" in told
    assert "plans/b.plan" in told


def test_a_plan_whose_bytes_were_changed_is_not_read(engine: EngineFile) -> None:
    """Plans are code: one that is not what the manifest says must never reach TensorRT."""
    engine = add_plans(engine.path, [(plan_for(engine), b"ftrt plan")])
    data = bytearray(engine.path.read_bytes())
    data[engine.offset("plans/x.plan")] ^= 1
    engine.path.write_bytes(data)
    with pytest.raises(EngineCorruptError, match=r"plans/x\.plan"):
        EngineFile.open(engine.path).read("plans/x.plan")


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 4090", "Orin (nvgpu)", "Tesla V100-SXM2/32GB", "  ", "写真"])
def test_every_gpu_name_makes_a_legal_entry(name: str) -> None:
    site = replace(ORIN, device_name=name)
    for version in (False, True):
        for hardware in (False, True):
            check_name(plans.entry_name(site, "fp16", version_compatible=version, hardware_compatible=hardware))


def test_profiles_are_parsed_and_checked() -> None:
    assert plans.parse_profile("1,16,64") == (1, 16, 64)
    assert plans.parse_profile("32") == (1, 32, 32)
    assert str(plans.parse_profile("1,16,64")) == "1..64, tuned for 16"
    for wrong in ("", "0", "1,2", "4,2,8", "1,16,8", "a,b,c", "-1", "1,2,3,4", "1.5"):
        with pytest.raises(UsageError, match=r"Give"):
            plans.parse_profile(wrong)
    with pytest.raises(ManifestError, match="profile"):
        Plan("plans/x.plan", "10.3", "8.7", "fp16", "0" * 64, Range(4, 2, 8))
