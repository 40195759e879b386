"""The TensorRT backend and the plan builder on pretended NVIDIA libraries: our logic, and nothing about theirs."""

from __future__ import annotations

import _thread
import gc
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from declip_runtime import backends, cuda, plan_builder
from declip_runtime.backends.base import Backend
from declip_runtime.cache import Cache
from declip_runtime.engine_file import EngineFile
from declip_runtime.engine_writer import add_plans
from declip_runtime.errors import (
    BackendExecutionError,
    BackendUnavailableError,
    BackendWarning,
    CacheWarning,
    DeviceMemoryError,
    PrecisionError,
    UsageError,
)
from declip_runtime.lanes import ladder
from declip_runtime.plan_builder import BuildOptions, build_plan
from declip_runtime.plan_check import check_images
from declip_runtime.plans import source_hash
from declip_runtime.scorer import Scorer
from declip_runtime.scorer_manifest import SCORING_BATCH
from declip_runtime.signature import Range

from . import fake_nvidia, tiny_engine
from .fake_nvidia import Nvidia
from .tiny_engine import MANIFEST, NAMES, SIZE, WIDTH, pictures


@pytest.fixture
def engine(tmp_path: Path) -> EngineFile:
    return tiny_engine.write(tmp_path / "tiny engine é.engine", fp16=True, semantic=True)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Nvidia:
    return fake_nvidia.install(monkeypatch, Nvidia())


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl-C is heard, also where the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


Install = Callable[..., Nvidia]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    return lambda **facts: fake_nvidia.install(monkeypatch, Nvidia(**facts))


def choose(engine: EngineFile, **options: object) -> Backend:
    return backends.choose(engine, "tensorrt", **options)  # type: ignore[arg-type]


def check(backend: Backend, count: int) -> None:
    images = pictures(count)
    output, wanted = backend.run(images), fake_nvidia.expected(images, tiny_engine.Weights.random())
    assert np.allclose(output.scores, wanted["scores"], atol=1e-6)
    assert np.allclose(output.perceptual, wanted["perceptual"], atol=1e-6)
    assert output.semantic is not None
    assert np.allclose(output.semantic, wanted["semantic"], atol=1e-6)


# --- running


@pytest.mark.parametrize("count", [1, 2, 5, 63, 64, 65, 200])
def test_batches_of_every_size_come_back_whole(machine: Nvidia, engine: EngineFile, count: int) -> None:
    check(choose(engine), count)


def test_the_first_backend_that_auto_tries_is_tensorrt(machine: Nvidia, engine: EngineFile) -> None:
    choice = backends.resolve(engine)
    assert (choice.backend, choice.device, choice.precision) == ("tensorrt", "cuda:0", "fp16")
    assert not machine.built, "to say what would run, nothing is built"
    assert choose(engine).description == "TensorRT 10.3.0, Orin, fp16"


def test_everything_is_freed_on_close(machine: Nvidia, engine: EngineFile) -> None:
    backend = choose(engine)
    check(backend, 3)
    assert machine.leaks()["memory"] > 0
    backend.close()
    backend.close()
    assert not any(machine.leaks().values())
    assert not machine.alive, "the weights would stay on the GPU for as long as somebody holds the backend"


def test_after_warming_up_a_batch_is_one_launch(machine: Nvidia, engine: EngineFile) -> None:
    backend = choose(engine)
    machine.events.clear()
    check(backend, 5)
    assert [event for event in machine.events if not event.startswith("use")] == ["launch", "wait"]


def test_what_cannot_be_captured_runs_call_by_call_and_says_so(install: Install, engine: EngineFile) -> None:
    machine = install(capturable=False)
    backend = choose(engine)
    assert backend.description.endswith("without CUDA graphs")
    machine.events.clear()
    check(backend, 5)
    assert "execute 6" in machine.events
    backend.close()
    assert not any(machine.leaks().values())


def test_a_graph_that_is_captured_but_cannot_be_made_runs_call_by_call(install: Install, engine: EngineFile) -> None:
    machine = install(instantiable=False)
    backend = choose(engine)
    assert backend.description.endswith("without CUDA graphs")
    check(backend, 5)
    backend.close()
    assert not any(machine.leaks().values())


def test_every_call_names_its_gpu(install: Install, engine: EngineFile) -> None:
    """CUDA's current device is a thread's own: whoever runs must say which."""
    machine = install(gpus=[("A100", 8, 0), ("H100", 9, 0)])
    backend = choose(engine, device="cuda:1")
    machine.events.clear()
    thread = threading.Thread(target=check, args=(backend, 3))
    thread.start()
    thread.join()
    assert "use 1" in machine.events
    assert "use 0" not in machine.events
    assert "H100" in backend.description


def test_too_little_memory_means_smaller_batches_and_a_warning(install: Install, engine: EngineFile) -> None:
    one = 16 * 16 * 3 + 4 * (len(NAMES) + 2 * WIDTH) + Nvidia.activations
    machine = install(memory=2 * 20 * one)
    gc.disable()  # what did not fit must be gone at once, not when Python comes to look
    try:
        with pytest.warns(BackendWarning, match="batches of 16 instead of 64"):
            backend = choose(engine)
        assert len(machine.alive) == 1 + 2 * len(ladder(16)), "the engine, and a context a rung of both lanes"
    finally:
        gc.enable()
    check(backend, 50)
    backend.close()
    assert not any(machine.leaks().values())


def test_no_memory_at_all_is_an_error_that_leaves_nothing(install: Install, engine: EngineFile) -> None:
    machine = install(memory=1000)
    with pytest.raises(DeviceMemoryError, match="too little free memory"):
        choose(engine)
    gc.collect()
    assert not any(machine.leaks().values())


def test_no_execution_context_counts_as_no_memory(install: Install, engine: EngineFile) -> None:
    machine = install(open_contexts_limit=0)
    with pytest.raises(DeviceMemoryError, match="execution context"):
        choose(engine)
    assert not any(machine.leaks().values())


def test_memory_for_copies_is_zero_at_first(machine: Nvidia) -> None:
    """Plans are run on it to warm up: whatever was there before could be words that no model knows."""
    memory = cuda.PinnedMemory(100)
    assert not memory.view.any()
    memory.close()


def test_a_failing_run_is_our_error(machine: Nvidia, engine: EngineFile) -> None:
    machine.capturable = False
    backend = choose(engine)
    machine.fails_to_run = True
    with pytest.raises(BackendExecutionError, match="failed while running"):
        backend.run(pictures(2))
    machine.fails_to_run = False
    check(backend, 2)


def test_a_scorer_runs_on_it(machine: Nvidia, engine: EngineFile, photos: list[Path], tmp_path: Path) -> None:
    with Scorer(engine.path, cache_dir=tmp_path) as scorer:
        scores = scorer.score(photos * 30)
        assert (scorer.backend, scorer.device, scorer.precision) == ("tensorrt", "cuda:0", "fp16")
    assert len(scores) == 30 * len(photos)
    assert np.isfinite(scores.quality).all()
    assert not any(machine.leaks().values())


# --- which plan


def test_a_plan_in_the_engine_is_used_without_building(machine: Nvidia, engine: EngineFile) -> None:
    engine = add_plans(engine.path, [build_plan(engine)])
    machine.built.clear()
    check(choose(engine), 7)
    assert not machine.built
    assert "deserialise, host code False" in machine.events


def test_only_a_plan_of_the_engine_that_needs_it_may_run_its_own_code(machine: Nvidia, engine: EngineFile) -> None:
    plan, content = build_plan(engine, BuildOptions(version_compatible=True))
    engine = add_plans(engine.path, [(plan, content)])
    choose(engine)
    assert machine.events.count("deserialise, host code True") == 1


def test_a_plan_is_read_on_the_gpu_that_it_runs_on(install: Install, engine: EngineFile, tmp_path: Path) -> None:
    """TensorRT puts weights on the thread's current GPU."""
    install(gpus=[("A100", 8, 0), ("H100", 9, 0)])
    cache = Cache(tmp_path / "cache")
    choose(engine, device="cuda:1", cache=cache)
    machine = install(gpus=[("A100", 8, 0), ("H100", 9, 0)])
    check(choose(engine, device="cuda:1", cache=cache), 5)
    assert not machine.built
    reading = machine.events.index("deserialise, host code False")
    assert [event for event in machine.events[:reading] if event.startswith("use")][-1] == "use 1"


def test_a_dropped_backend_frees_everything(machine: Nvidia, engine: EngineFile) -> None:
    check(choose(engine), 3)
    gc.collect()
    assert not any(machine.leaks().values())


def test_a_plan_is_built_once_and_then_found_in_the_cache(
    machine: Nvidia, engine: EngineFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = Cache(tmp_path / "cache")
    check(choose(engine, cache=cache), 3)
    told = capsys.readouterr().err
    assert "building a plan of tiny for Orin" in told
    assert "done after" in told
    assert len(machine.built) == 1
    check(choose(engine, cache=cache), 3)
    assert len(machine.built) == 1
    assert not capsys.readouterr().err


@pytest.mark.parametrize("wrong_by", [0.2, float("nan")])
def test_a_plan_that_computes_something_else_is_neither_used_nor_kept(
    install: Install, engine: EngineFile, tmp_path: Path, wrong_by: float
) -> None:
    cache = Cache(tmp_path / "cache")
    machine = install(wrong_by=wrong_by)
    with pytest.raises(BackendExecutionError, match=r"computes something else than the engine.*is not used"):
        choose(engine, cache=cache)
    assert [entry.name for entry in cache.list() if not entry.name.startswith("timings")] == []
    gc.collect()
    assert not any(machine.leaks().values())


def test_where_no_cpu_backend_is_installed_the_description_says_that_nothing_was_compared(
    machine: Nvidia, engine: EngineFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("openvino", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    assert choose(engine).description.endswith("fp16, not compared with a CPU")


def test_the_images_of_the_comparison_are_pictures() -> None:
    images = check_images(SIZE)
    assert images.shape == (4, SIZE, SIZE, 3)
    assert images.dtype == np.uint8
    assert np.array_equal(images, check_images(SIZE))
    large = check_images(224)
    assert large[0].min() == 255
    assert all(picture.std() > 20 for picture in large[1:])
    assert abs(np.corrcoef(large[3, :-1, :, 0].ravel(), large[3, 1:, :, 0].ravel())[0, 1]) < 0.3


def test_another_gpu_gets_its_own_plan(
    install: Install, engine: EngineFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = Cache(tmp_path / "cache")
    install()
    engine = add_plans(engine.path, [build_plan(engine)])
    other = install(gpus=[("Thor", 11, 0)])
    choose(engine, cache=cache)
    assert len(other.built) == 1
    assert "built for compute capability 8.7, here is 11.0" in capsys.readouterr().err


def test_a_plan_for_another_engine_is_refused_before_it_runs(
    machine: Nvidia, engine: EngineFile, tmp_path: Path
) -> None:
    """The same graph bytes, but a manifest with fewer scores: what the plan gives does not fit it."""
    plan, content = build_plan(engine)
    fewer = replace(MANIFEST, scores=MANIFEST.scores[:1])
    other = tiny_engine.write(tmp_path / "other.engine", fp16=True, semantic=True, manifest=fewer)
    with pytest.raises(BackendExecutionError, match=r"scores \[-1, 3\].*manifest says.*scores \[-1, 1\]"):
        choose(add_plans(other.path, [(plan, content)]))


def test_what_tensorrt_refuses_comes_with_its_own_words(machine: Nvidia, engine: EngineFile) -> None:
    engine = add_plans(engine.path, [build_plan(engine, BuildOptions(version_compatible=True))])
    machine.refuses = b""
    with (
        pytest.warns(BackendWarning, match=r"not compatible.*Another is built"),
        pytest.raises(BackendExecutionError, match=r"declip build.*not compatible"),
    ):
        choose(engine)


def test_no_memory_for_a_plan_is_no_reason_to_build_another(machine: Nvidia, engine: EngineFile) -> None:
    engine = add_plans(engine.path, [build_plan(engine)])
    machine.built.clear()
    machine.refuses, machine.words = b"", "Requested amount of GPU memory could not be allocated: out of memory"
    with pytest.raises(DeviceMemoryError, match="out of memory"):
        choose(engine)
    assert not machine.built


def test_auto_goes_on_where_tensorrt_does_not_know_the_precision_or_the_gpu(
    install: Install, engine: EngineFile
) -> None:
    install(gpus=[("GTX 1080", 6, 1)])
    assert backends.resolve(engine).backend != "tensorrt"
    with pytest.raises(BackendUnavailableError, match="GTX 1080 is older"):
        backends.resolve(engine, "tensorrt")
    install()
    try:
        assert backends.resolve(engine, precision="bf16").backend != "tensorrt"
    except PrecisionError as error:  # of a CPU without it
        assert "bf16" in str(error)  # noqa: PT017


def test_jetsons_make_no_plans_for_every_gpu(install: Install, engine: EngineFile) -> None:
    install(integrated=True)
    with pytest.raises(UsageError, match="part of a Jetson"):
        build_plan(engine, BuildOptions(hardware_compatible=True))


def test_a_plan_in_the_cache_that_tensorrt_refuses_is_built_anew(
    machine: Nvidia, engine: EngineFile, tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "cache")
    choose(engine, cache=cache)
    (name,) = (entry.name for entry in cache.list() if not entry.name.startswith("timings"))
    cache.put(name, 9, lambda file: file.write(b"not json"))
    machine.refuses = b"not json"
    with pytest.warns(CacheWarning, match=r"not compatible.*built anew"):
        check(choose(engine, cache=cache), 3)
    assert len(machine.built) == 2
    check(choose(engine, cache=cache), 3)
    assert len(machine.built) == 2


def test_the_lean_runtime_runs_a_compatible_plan(install: Install, engine: EngineFile) -> None:
    install(version="10.3.0")
    engine = add_plans(engine.path, [build_plan(engine, BuildOptions(version_compatible=True))])
    install(version="10.16.1.11", lean=True)
    check(choose(engine), 9)


def test_the_lean_runtime_without_a_plan_says_what_to_do(install: Install, engine: EngineFile) -> None:
    install(version="10.3.0")
    engine = add_plans(engine.path, [build_plan(engine)])
    install(lean=True)
    with pytest.raises(BackendUnavailableError, match=r"version-compatible plans only.*declip build ENGINE --version"):
        backends.resolve(engine, "tensorrt")
    assert backends.resolve(engine).backend != "tensorrt", "auto goes on to the next"
    with pytest.raises(BackendUnavailableError, match="builds no plans"):
        build_plan(engine)


# --- what cannot be had


def test_a_machine_without_tensorrt_says_what_to_install(engine: EngineFile, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_lean"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'declip-sdk\[tensorrt\]'"):
        choose(engine)


def test_a_machine_without_a_gpu_is_noticed_before_tensorrt_is_asked(install: Install, engine: EngineFile) -> None:
    """Without a driver, TensorRT ends the whole process."""
    machine = install(gpus=[])
    with pytest.raises(BackendUnavailableError, match="CUDA finds no GPU"):
        choose(engine)
    assert not machine.events
    assert cuda.gpu_count() == 0


def test_an_old_tensorrt_is_left_alone(install: Install, engine: EngineFile) -> None:
    """8.6 lacks what is needed to run and to build."""
    install(version="8.6.1")
    with pytest.raises(BackendUnavailableError, match=r"TensorRT 8\.6\.1 is too old, 10\.3 is the oldest"):
        choose(engine)
    with closing(backends.choose(engine)) as other:
        assert other.name != "tensorrt"


@pytest.mark.parametrize("device", ["cpu", "cuda:x", "gpu", "cuda:", "cuda:1", "cuda:-1", ""])
def test_a_device_that_is_not_there_is_named(machine: Nvidia, engine: EngineFile, device: str) -> None:
    if device == "":
        assert choose(engine, device=device).device == "cuda:0"  # as None
        return
    with pytest.raises(BackendUnavailableError, match=r"cuda:0"):
        choose(engine, device=device)


def test_precisions(machine: Nvidia, engine: EngineFile, tmp_path: Path) -> None:
    assert choose(engine, precision="fp32").precision == "fp32"
    with pytest.raises(PrecisionError, match="fp16, fp32, int8, fp8"):
        choose(engine, precision="bf16")
    with pytest.raises(PrecisionError, match=r"no int8-fp16 graph.*--int8 PHOTOS"):
        choose(engine, precision="int8")
    for_cpus = tiny_engine.write(tmp_path / "cpu.engine", int8=True)
    with pytest.raises(PrecisionError, match="Export it without --no-fp16, or use a CPU"):
        choose(for_cpus, precision="int8")
    old = tiny_engine.write(tmp_path / "old.engine", semantic=True)
    assert choose(old).precision == "fp32"
    with pytest.raises(PrecisionError, match="no fp16 graph"):
        choose(old, precision="fp16")


def test_fp8_needs_a_gpu_that_multiplies_it(install: Install, engine: EngineFile) -> None:
    install()
    with pytest.raises(PrecisionError, match="Orin does not multiply fp8"):
        choose(engine, precision="fp8")
    with pytest.raises(PrecisionError, match="Orin does not multiply fp8"):
        build_plan(engine, precision="fp8")
    install(gpus=[("L4", 8, 9)])
    with pytest.raises(PrecisionError, match=r"no fp8 graph.*--fp8 PHOTOS"):
        choose(engine, precision="fp8")


# --- building


def test_the_manifest_says_what_a_plan_was_built_for(machine: Nvidia, engine: EngineFile) -> None:
    plan, _ = build_plan(engine, BuildOptions(Range(1, 4, 8)), device=0)
    assert plan.entry == f"plans/{plan.platform}/orin-sm87x8-tensorrt-10.3.0-fp16.plan"
    assert (plan.tensorrt, plan.compute_capability, plan.device_name) == ("10.3.0", "8.7", "Orin")
    assert plan.graph_sha256 == source_hash(engine, "fp16")
    assert (plan.multiprocessors, plan.without_lean) == (8, False)
    assert plan.profile == (1, 4, 8)
    before = engine.id
    assert add_plans(engine.path, [(plan, b"ftrt")]).id == before


def test_options_reach_tensorrt(machine: Nvidia, engine: EngineFile) -> None:
    options = BuildOptions(
        workspace=1 << 30, level=5, version_compatible=True, without_lean=True, hardware_compatible=True, detailed=True
    )
    plan, _ = build_plan(engine, options)
    config = machine.built[0]["config"]
    assert config.flags == {"VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"}
    assert config.cleared == {"TF32"}
    assert config.pools == {"WORKSPACE": 1 << 30}
    assert config.builder_optimization_level == 5
    assert config.hardware_compatibility_level.name == "AMPERE_PLUS"
    assert config.profiling_verbosity.name == "DETAILED"
    assert machine.built[0]["profile"] == list(SCORING_BATCH)
    assert plan.version_compatible
    assert plan.hardware_compatible
    assert plan.entry.endswith("any-version-any-gpu.plan")
    build_plan(engine)
    plain = machine.built[1]["config"]
    assert (plain.flags, plain.pools, plain.hardware_compatibility_level) == (set(), {}, None)


@pytest.mark.parametrize(
    "options", [{"level": 6}, {"level": -1}, {"workspace": 0}, {"workspace": 1000}, {"without_lean": True}]
)
def test_options_that_cannot_work_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"Use|Give"):
        BuildOptions(**options)  # type: ignore[arg-type]


def test_timings_are_kept_for_the_next_build(machine: Nvidia, engine: EngineFile, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    build_plan(engine, cache=cache)
    build_plan(engine, cache=cache)
    assert [build["timing"] for build in machine.built] == [b"", b"learned"]


def test_progress_rises_from_nothing_to_all(machine: Nvidia, engine: EngineFile) -> None:
    shares: list[float] = []
    build_plan(engine, progress=lambda _phase, share: shares.append(share))
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == 1
    assert len(set(shares)) == 9  # eight half steps, and none


def test_what_the_parser_cannot_read_is_named(machine: Nvidia, tmp_path: Path) -> None:
    engine = tiny_engine.write(tmp_path / "x.engine", fp16=True, manifest=replace(MANIFEST, name="unreadable"))
    with pytest.raises(BackendExecutionError, match="cannot read the graph: Einsum n1: no"):
        build_plan(engine)


def test_a_failed_build_quotes_tensorrt(machine: Nvidia, engine: EngineFile, tmp_path: Path) -> None:
    machine.fails_to_build = True
    cache = Cache(tmp_path / "cache")
    with pytest.raises(BackendExecutionError, match="no tactic for node 7"):
        build_plan(engine, cache=cache)
    assert not cache.list()


def test_ctrl_c_ends_a_build_within_a_step_and_leaves_nothing(
    machine: Nvidia, engine: EngineFile, tmp_path: Path, heard: None
) -> None:
    """Not by a signal: pytest's own stack for them is too small on Python 3.10 once OpenVINO has used AMX."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == 2:
            _thread.interrupt_main()
        time.sleep(0.3)

    machine.during_build = step
    before, cache = engine.path.read_bytes(), Cache(tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        choose(engine, cache=cache)
    assert steps <= 4
    assert engine.path.read_bytes() == before
    assert not cache.list()
    assert not [t for t in threading.enumerate() if t.name == "declip-plan-builder" and t.is_alive()]


def test_an_engine_replaced_during_the_build_gives_no_plan(machine: Nvidia, engine: EngineFile) -> None:
    machine.during_build = lambda: tiny_engine.write(engine.path, seed=1, fp16=True, semantic=True) and None
    with pytest.raises(Exception, match="replaced while it was in use"):
        build_plan(engine)


def test_the_monitor_is_not_confused_by_phases_it_never_saw(machine: Nvidia) -> None:
    monitor = plan_builder._Monitor(lambda _phase, _share: None)
    assert monitor.step("unknown", 3)
    monitor.finish("unknown")
    assert monitor.share() == 0
    monitor.start("all", "", 0)
    assert monitor.step("all", 7)
    assert monitor.share() == 1
