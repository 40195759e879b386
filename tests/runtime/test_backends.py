from __future__ import annotations

import errno
import gc
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from declip_runtime import backends, scorer_manifest
from declip_runtime.backends import Choice, openvino
from declip_runtime.backends.base import Backend
from declip_runtime.backends.onnxruntime import ONNXRuntimeBackend
from declip_runtime.bound_lane import BoundLane
from declip_runtime.cache import Cache
from declip_runtime.engine_file import EngineFile
from declip_runtime.engine_writer import write_engine
from declip_runtime.errors import (
    BackendExecutionError,
    BackendUnavailableError,
    CacheWarning,
    EngineCorruptError,
    InvalidArrayError,
    PrecisionError,
    ScorerStateError,
    UsageError,
)
from declip_runtime.lanes import Lanes
from declip_runtime.quiet import import_openvino
from declip_runtime.signature import Range

from . import tiny_engine, tiny_generator
from .other_user import bound_by_permissions, common_folder, needs_permissions
from .tiny_engine import MANIFEST, NAMES, SIZE, WIDTH, Weights, expected, pictures

REAL = [name for name in backends.AUTO if backends.available()[name] is None]
"""The backends that are installed here; at least one is, since the package depends on it."""

needs_openvino = pytest.mark.skipif("openvino" not in REAL, reason="OpenVINO is not installed")
needs_onnxruntime = pytest.mark.skipif("onnxruntime" not in REAL, reason="ONNX Runtime is not installed")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> EngineFile:
    """In a place with a name that is hard on file APIs."""
    folder = tmp_path_factory.mktemp("ein Ort für 写真")
    return tiny_engine.write(folder / "tiny engine é.engine", int8=True, semantic=True)


@pytest.fixture(scope="module", params=REAL)
def backend(request: pytest.FixtureRequest, engine: EngineFile) -> Backend:
    return backends.choose(engine, request.param, precision="fp32", threads=2)


# --- what is computed


@pytest.mark.parametrize("count", [1, 2, 33])
def test_fp32_is_exact(backend: Backend, count: int) -> None:
    images = pictures(count, seed=count)
    output = backend.run(images)
    scores, perceptual = expected(images, Weights.random())
    assert output.scores.shape == (count, len(NAMES))
    assert output.perceptual.shape == (count, WIDTH)
    assert output.scores.dtype == output.perceptual.dtype == np.float32
    np.testing.assert_allclose(output.scores, scores, atol=2e-6)
    np.testing.assert_allclose(output.perceptual, perceptual, atol=2e-6)
    assert output.semantic is not None
    np.testing.assert_array_equal(output.semantic, -output.perceptual)


def test_any_memory_layout_is_taken(backend: Backend) -> None:
    images = pictures(6)
    want = backend.run(images).scores
    np.testing.assert_array_equal(backend.run(np.asfortranarray(images)).scores, want)
    np.testing.assert_array_equal(backend.run(images[::2]).scores, want[::2])
    mirrored = np.ascontiguousarray(images[:, :, ::-1])
    np.testing.assert_array_equal(backend.run(mirrored[:, :, ::-1]).scores, want)
    frozen = images.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(backend.run(frozen).scores, want)
    odd = np.frombuffer(b"x" + images.tobytes(), np.uint8)[1:].reshape(images.shape)
    np.testing.assert_array_equal(backend.run(odd).scores, want)


def test_results_belong_to_the_caller(backend: Backend) -> None:
    first = backend.run(pictures(3, seed=1))
    kept = first.scores.copy(), first.perceptual.copy()
    second = backend.run(pictures(3, seed=2))
    np.testing.assert_array_equal(first.scores, kept[0])
    np.testing.assert_array_equal(first.perceptual, kept[1])
    second.scores[:] = 7.0
    second.perceptual[:] = 7.0
    np.testing.assert_array_equal(backend.run(pictures(3, seed=1)).scores, kept[0])


def test_many_threads_at_once(backend: Backend) -> None:
    batches = [pictures(1 + seed % 5, seed=seed) for seed in range(40)]
    want = [backend.run(batch).scores for batch in batches]
    barrier = threading.Barrier(4)

    def work(start: int) -> list[np.ndarray]:  # type: ignore[type-arg]
        barrier.wait()
        return [backend.run(batch).scores for batch in batches[start::4]]

    with ThreadPoolExecutor(4) as pool:
        for start, results in enumerate(pool.map(work, range(4))):
            for got, expect in zip(results, want[start::4], strict=True):
                np.testing.assert_allclose(got, expect, atol=1e-6)


def test_no_images(backend: Backend) -> None:
    output = backend.run(pictures(0))
    assert (output.scores.shape, output.perceptual.shape) == ((0, len(NAMES)), (0, WIDTH))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, SIZE, SIZE, 3), np.float32), r"uint8 \[batch, 16, 16, 3\], not float32 \[1, 16, 16, 3\]"),
        (np.zeros((SIZE, SIZE, 3), np.uint8), r"not uint8 \[16, 16, 3\]"),
        (np.zeros((1, SIZE, SIZE, 4), np.uint8), r"not uint8 \[1, 16, 16, 4\]"),
        (np.zeros((1, 3, SIZE, SIZE), np.uint8), r"not uint8 \[1, 3, 16, 16\]"),
        ([[1]], "not list"),
    ],
)
def test_wrong_arrays_name_what_was_given_and_wanted(backend: Backend, images: object, message: str) -> None:
    with pytest.raises(InvalidArrayError, match=message):
        backend.run(images)  # type: ignore[arg-type]


# --- precision, device, names


def test_the_backends_agree(engine: EngineFile) -> None:
    images = pictures(8)
    scores = [backends.choose(engine, name, precision="fp32").run(images).scores for name in REAL]
    for other in scores[1:]:
        np.testing.assert_allclose(other, scores[0], atol=1e-6)


@needs_openvino
def test_openvino_takes_bf16_only_where_the_cpu_has_it_and_says_so(engine: EngineFile) -> None:
    native = import_openvino().Core().get_property("CPU", "INFERENCE_PRECISION_HINT").to_string() == "bf16"
    auto = backends.choose(engine, "openvino")
    assert auto.precision == ("bf16" if native else "fp32")
    assert auto.description.endswith(f", CPU, {auto.precision}")
    images = pictures(8)
    exact, _ = expected(images, Weights.random())
    error = np.abs(auto.run(images).scores - exact).max()
    if native:
        assert 1e-5 < error < 2e-2  # zero would mean that it is fp32 under a wrong name
    else:
        assert error < 1e-5
        with pytest.raises(PrecisionError, match="no bf16 instructions"):
            backends.choose(engine, "openvino", precision="bf16")


@pytest.mark.parametrize("name", REAL)
def test_int8_uses_the_int8_graph(engine: EngineFile, name: str) -> None:
    backend = backends.choose(engine, name, precision="int8")
    assert backend.precision == "int8"
    images = pictures(8)
    exact, _ = expected(images, Weights.random())
    coarse, _ = expected((np.round(images / 255 * 63) / 63 * 255).astype(np.float64), Weights.random())  # type: ignore[arg-type]
    got = backend.run(images).scores
    assert np.abs(got - coarse).max() < np.abs(exact - coarse).max()


@pytest.mark.parametrize("name", REAL)
def test_int8_without_an_int8_graph_lists_what_there_is(tmp_path: Path, name: str) -> None:
    engine = tiny_engine.write(tmp_path / "x.engine")
    with pytest.raises(PrecisionError, match="carries no int8 graph; it has fp32"):
        backends.choose(engine, name, precision="int8")


@pytest.mark.parametrize("name", [*REAL, "fake"])
def test_fp16_is_refused_on_a_cpu(engine: EngineFile, name: str) -> None:
    with pytest.raises(PrecisionError, match="fp16"):
        backends.choose(engine, name, precision="fp16")


@pytest.mark.parametrize("name", [*REAL, "fake"])
def test_fp8_is_for_other_machines(engine: EngineFile, name: str) -> None:
    with pytest.raises(PrecisionError, match="fp8"):
        backends.choose(engine, name, precision="fp8")


@needs_onnxruntime
def test_onnxruntime_has_no_bf16(engine: EngineFile) -> None:
    assert backends.choose(engine, "onnxruntime").precision == "fp32"
    with pytest.raises(PrecisionError, match="bf16"):
        backends.choose(engine, "onnxruntime", precision="bf16")


@needs_onnxruntime
def test_onnxruntime_does_not_fall_back_from_cuda(engine: EngineFile) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(BackendUnavailableError, match="no CUDAExecutionProvider"):
        backends.choose(engine, "onnxruntime", device="cuda")


@needs_onnxruntime
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "tensorrt"])
def test_precisions_of_onnxruntime_depend_on_the_device(
    engine: EngineFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    import onnxruntime

    present = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: present)
    half = tiny_engine.write(tmp_path / "half.engine", fp16=True, int8=True)
    number = device if ":" in device else f"{device}:0"
    assert backends.resolve(half, "onnxruntime", device=device) == Choice("onnxruntime", number, "fp16")
    assert backends.resolve(engine, "onnxruntime", device=device).precision == "fp32"
    with pytest.raises(PrecisionError, match="no fp16 graph"):
        backends.resolve(engine, "onnxruntime", device=device, precision="fp16")
    with pytest.raises(PrecisionError, match=r"int8 on .*Use fp16 or fp32"):
        backends.resolve(half, "onnxruntime", device=device, precision="int8")
    with pytest.raises(PrecisionError, match="fp16 on cpu"):
        backends.resolve(half, "onnxruntime", precision="fp16")


@needs_onnxruntime
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_cuda_that_cannot_start_is_an_error(engine: EngineFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its libraries are missing, ONNX Runtime says so in its log and computes on the CPU."""
    import onnxruntime

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    with pytest.raises(BackendUnavailableError, match="CUDA or cuDNN libraries are missing"):
        backends.choose(engine, "onnxruntime", device="cuda")


@needs_onnxruntime
@pytest.mark.parametrize("count", [1, 3, 5, 8, 9, 30])
def test_bound_buffers_give_what_a_plain_run_gives(engine: EngineFile, count: int) -> None:
    """On the CPU's memory, since what is bound is the same code; padding and buffers must not show."""
    import onnxruntime

    plain = backends.choose(engine, "onnxruntime")
    assert isinstance(plain, ONNXRuntimeBackend)
    lanes = Lanes(
        lambda _: BoundLane(onnxruntime, lambda: plain._session, plain.signature, plain._run, device="cpu", index=0),
        8,
        count=1,
    )
    images = pictures(count)
    found, wanted = lanes.run({"images": images}), plain.run(images)
    assert np.allclose(found["scores"], wanted.scores, atol=1e-6)
    assert np.allclose(found["perceptual"], wanted.perceptual, atol=1e-6)
    assert wanted.semantic is not None
    assert np.allclose(found["semantic"], wanted.semantic, atol=1e-6)
    again = lanes.run({"images": images[::-1]})
    assert np.allclose(again["scores"], wanted.scores[::-1], atol=1e-6)
    lanes.close()


class PretendedGpu:
    """ONNX Runtime with a GPU that is the CPU: who runs, with which providers and in which order is what it shows.

    ``refuses`` is an option of a provider with which nothing runs.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refuses: str = "") -> None:
        import onnxruntime

        from declip_runtime.backends import onnxruntime as ours

        self.refuses = refuses  # may be changed later; "" refuses nothing
        self.cannot_start = ""
        self.runners: list[int] = []
        self.log_levels: list[int] = []
        self.sizes: list[set[int]] = []
        self.providers: list[list[Any]] = []
        self.sessions: list[weakref.ref[Any]] = []
        self.alive_at_start: list[int] = []
        real, machine = onnxruntime.InferenceSession, self

        class Session:
            def __init__(self, head: bytes, options: Any, providers: list[Any], enable_fallback: int = 1) -> None:
                assert not enable_fallback, "it would print what is wrong, and run on the CPU"
                if machine.cannot_start:
                    raise RuntimeError(machine.cannot_start)
                machine.alive_at_start.append(sum(session() is not None for session in machine.sessions))
                machine.sessions.append(weakref.ref(self))
                machine.providers.append(providers)
                self._wanted = providers
                self._real = real(head, options, providers=["CPUExecutionProvider"])
                self.io_binding = self._real.io_binding
                self._sizes: set[int] = set()
                machine.sizes.append(self._sizes)

            def get_providers(self) -> list[str]:
                return [name for name, _ in self._wanted]

            def run_with_iobinding(self, binding: Any) -> None:
                if machine.refuses in self._wanted[0][1]:
                    raise RuntimeError("this node cannot be captured")
                machine.runners.append(threading.get_ident())
                self._real.run_with_iobinding(binding)
                self._sizes.add(binding.get_outputs()[0].shape()[0])

        def preload() -> None:
            print("Failed to load libcudnn.so.9")

        present = list(ours._PROVIDERS.values())
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: present)
        monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
        monkeypatch.setattr(onnxruntime, "preload_dlls", preload, raising=False)
        monkeypatch.setattr(onnxruntime, "set_default_logger_severity", self.log_levels.append)
        on_cpu = partial(BoundLane, index=0)
        monkeypatch.setattr(ours, "BoundLane", lambda *arguments, device, index: on_cpu(*arguments, device="cpu"))
        monkeypatch.setattr(scorer_manifest, "SCORING_BATCH", Range(1, 4, 4))


@needs_onnxruntime
def test_one_thread_makes_all_runs_of_a_session_on_a_gpu(engine: EngineFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """A captured graph belongs to the thread that captured it, and no other may run the session."""
    gpu = PretendedGpu(monkeypatch)
    images = pictures(9)
    with closing(backends.choose(engine, "onnxruntime", device="cuda", precision="fp32")) as backend:
        assert backend.description.endswith("CUDA graphs")
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(backend.run, [images[:count] for count in range(1, 10)]))
        worker = {thread.ident: thread.name for thread in threading.enumerate()}[gpu.runners[0]]
        assert worker.startswith("declip-onnxruntime")
        assert len(set(gpu.runners)) == 1
        assert threading.get_ident() not in gpu.runners
        for count, output in enumerate(found, 1):
            np.testing.assert_allclose(output.scores, expected(images[:count], Weights.random())[0], atol=2e-6)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("declip-onnxruntime")]
    assert not any(session() for session in gpu.sessions), "closed, they are let go of"


@needs_onnxruntime
def test_a_session_that_captures_sees_one_batch_size_only(engine: EngineFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of several sizes in one session failed on an H200."""
    gpu = PretendedGpu(monkeypatch)
    monkeypatch.setattr(scorer_manifest, "SCORING_BATCH", Range(1, 16, 16))
    with closing(backends.choose(engine, "onnxruntime", device="cuda", precision="fp32")) as backend:
        for count in (1, 3, 16, 5, 2, 40):
            assert len(backend.run(pictures(count)).scores) == count
        assert gpu.sizes == [{16}, {4}, {1}], "the largest tells soonest whether memory suffices"
        assert all(session() for session in gpu.sessions)


@needs_onnxruntime
def test_what_cudnn_tries_in_vain_is_not_told(engine: EngineFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of errors in its log while it starts; the level of the log is put back."""
    gpu = PretendedGpu(monkeypatch)
    backends.choose(engine, "onnxruntime", device="cuda", precision="fp32").close()
    assert gpu.log_levels == [4, 2] * 2, "for batches of 4 and of 1"


@needs_onnxruntime
def test_what_cannot_be_captured_is_gone_before_it_is_tried_without(
    engine: EngineFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights would be in the GPU's memory twice."""
    gpu = PretendedGpu(monkeypatch, refuses="enable_cuda_graph")
    with closing(backends.choose(engine, "onnxruntime", device="cuda", precision="fp32")) as backend:
        assert "CUDA graphs" not in backend.description
        assert len(backend.run(pictures(3)).scores) == 3
    assert gpu.alive_at_start == [0, 0]


@needs_onnxruntime
def test_cuda_that_cannot_start_is_an_error_with_its_own_reason(
    engine: EngineFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = PretendedGpu(monkeypatch)
    gpu.cannot_start = "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version"
    with pytest.raises(BackendExecutionError, match="CUDA failure 35: CUDA driver version is insufficient"):
        backends.choose(engine, "onnxruntime", device="cuda", precision="fp32")


@needs_onnxruntime
@pytest.mark.parametrize("component", list(tiny_generator.SIGNATURES))
def test_components_run_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, component: str) -> None:
    generator = tiny_generator.write(tmp_path / "dp.engine")
    gpu = PretendedGpu(monkeypatch)
    with closing(backends.choose(generator, "onnxruntime", component=component, device="cuda")) as backend:
        assert backend.description.endswith("CUDA graphs") == (component not in ("unet", "vae_decoder"))
        for sizes in ({}, {"batch": 3, "height": 4, "width": 6}, {"batch": 1}, {"batch": 5}, {"batch": 7}, {}):
            given = tiny_generator.inputs(component, **sizes)
            found = backend.compute(given)
            for name, values in tiny_generator.compute(component, given).items():
                np.testing.assert_allclose(found[name], values, atol=1e-4)
    assert gpu.sessions[0]() is None


@needs_onnxruntime
@pytest.mark.parametrize("component", ["text_encoder", "unet"])
def test_a_component_that_cannot_be_captured_runs_call_by_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, component: str
) -> None:
    generator = tiny_generator.write(tmp_path / "dp.engine")
    gpu = PretendedGpu(monkeypatch, refuses="enable_cuda_graph")
    with closing(backends.choose(generator, "onnxruntime", component=component, device="cuda")) as backend:
        assert "CUDA graphs" not in backend.description
        given = tiny_generator.inputs(component)
        for name, values in tiny_generator.compute(component, given).items():
            np.testing.assert_allclose(backend.compute(given)[name], values, atol=1e-4)
    assert gpu.alive_at_start == {"text_encoder": [0, 0], "unet": [0]}[component], "no weights twice"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("declip-onnxruntime")]


@needs_onnxruntime
def test_what_fails_while_it_warms_up_leaves_nothing_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = tiny_generator.write(tmp_path / "dp.engine")
    gpu = PretendedGpu(monkeypatch)
    with closing(backends.choose(generator, "onnxruntime", component="unet", device="cuda")) as backend:
        lane = backend._runner._lane  # type: ignore[attr-defined]
        before = set(lane._bound)
        gpu.refuses = "device_id"
        with pytest.raises(BackendExecutionError):
            backend.compute(tiny_generator.inputs("unet", batch=5))
        assert set(lane._bound) == before
        gpu.refuses = ""
        given = tiny_generator.inputs("unet", batch=5)
        found = backend.compute(given)["noise"]
        np.testing.assert_allclose(found, tiny_generator.compute("unet", given)["noise"], atol=1e-4)


@needs_onnxruntime
def test_plans_of_the_tensorrt_provider_for_other_sizes_have_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = PretendedGpu(monkeypatch)
    unet = tiny_generator.SIGNATURES["unet"]
    folders = set()
    for free in (unet.free, {**unet.free, "height": Range(4, 4, 4)}):
        components = {**tiny_generator.SIGNATURES, "unet": replace(unet, free=free)}
        changed = replace(tiny_generator.MANIFEST, components=components)
        generator = tiny_generator.write(tmp_path / "dp.engine", manifest=changed)
        with closing(
            backends.choose(generator, "onnxruntime", component="unet", device="tensorrt", cache=Cache(tmp_path))
        ):
            folders.add(gpu.providers[-1][0][1]["trt_engine_cache_path"])
    assert len(folders) == 2


@needs_onnxruntime
def test_what_onnxruntime_prints_is_not_among_the_scores(
    engine: EngineFile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    PretendedGpu(monkeypatch)
    backends.choose(engine, "onnxruntime", device="cuda", precision="fp32").close()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "libcudnn" in captured.err


@needs_onnxruntime
def test_the_tensorrt_provider_builds_one_plan_for_all_batches_and_keeps_it(
    engine: EngineFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = PretendedGpu(monkeypatch)

    def options(cache: Cache | None, of: EngineFile = engine) -> dict[str, str]:
        backends.choose(of, "onnxruntime", device="tensorrt:1", precision="fp32", cache=cache).close()
        (name, first), (second, _), (third, _) = gpu.providers[-1]
        assert [name, second, third] == [f"{p}ExecutionProvider" for p in ("Tensorrt", "CUDA", "CPU")]
        return dict(first)

    shapes = {
        "trt_profile_min_shapes": f"images:1x{SIZE}x{SIZE}x3",
        "trt_profile_opt_shapes": f"images:4x{SIZE}x{SIZE}x3",
        "trt_profile_max_shapes": f"images:4x{SIZE}x{SIZE}x3",
    }
    for off in (None, Cache(tmp_path, limit=0)):
        assert options(off) == {"device_id": "1", **shapes}
    assert not list(tmp_path.iterdir())
    kept = options(Cache(tmp_path))
    plans = Path(kept["trt_engine_cache_path"])
    assert plans.is_dir()
    assert plans.parent == Path(kept["trt_timing_cache_path"]) == tmp_path / "onnxruntime-tensorrt"
    assert kept["trt_engine_cache_enable"] == kept["trt_timing_cache_enable"] == "1"
    other = tiny_engine.write(tmp_path / "other.engine", seed=1)
    assert options(Cache(tmp_path), other)["trt_engine_cache_path"] != str(plans), "its names are the same"
    assert Cache(tmp_path).list() == ()
    (tmp_path / "file").touch()
    with pytest.warns(CacheWarning, match="choose another folder"):
        assert options(Cache(tmp_path / "file")) == {"device_id": "1", **shapes}


@pytest.mark.parametrize("name", [*REAL, "fake"])
def test_unknown_devices_are_refused(engine: EngineFile, name: str) -> None:
    with pytest.raises(BackendUnavailableError, match="toaster"):
        backends.choose(engine, name, device="toaster")


def test_auto_takes_the_fastest_and_passes_reasons_on(engine: EngineFile) -> None:
    assert backends.choose(engine).name == REAL[0]
    with pytest.raises(BackendUnavailableError, match="toaster") as caught:
        backends.choose(engine, device="toaster")
    assert all(word in str(caught.value) for word in ("OpenVINO", "ONNX Runtime"))


def test_unknown_names_and_arguments(engine: EngineFile) -> None:
    with pytest.raises(BackendUnavailableError, match="Use one of: auto, tensorrt, openvino, onnxruntime, fake"):
        backends.choose(engine, "tensorflow")
    with pytest.raises(UsageError, match="precision='fp4' is unknown"):
        backends.choose(engine, "fake", precision="fp4")
    with pytest.raises(UsageError, match="threads=0"):
        backends.choose(engine, "fake", threads=0)


def test_a_library_that_is_missing_is_a_reason_with_a_fix(engine: EngineFile) -> None:
    program = (
        "import sys\n"
        "sys.modules['openvino'] = sys.modules['onnxruntime'] = None\n"
        "from declip_runtime import backends\n"
        "from declip_runtime.engine_file import EngineFile\n"
        "from declip_runtime.errors import BackendUnavailableError\n"
        "print(backends.available())\n"
        "for name in ('auto', 'openvino', 'onnxruntime'):\n"
        "    try: backends.choose(EngineFile.open(sys.argv[1]), name)\n"
        "    except BackendUnavailableError as error: print(error)\n"
    )
    command = [sys.executable, "-c", program, str(engine.path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "'fake': None" in lines[0]
    assert "pip install openvino" in lines[1]
    assert "declip-sdk[onnxruntime]" in lines[1]
    assert "pip install openvino" in lines[2]
    assert "declip-sdk[onnxruntime]" in lines[3]


# --- failures end in the backend


@pytest.mark.parametrize("name", REAL)
def test_a_graph_that_does_not_compile(tmp_path: Path, name: str) -> None:
    head = tiny_engine.graph().replace(b"Sigmoid", b"Sigmund")
    weights = Weights.random().to_bytes()
    engine = write_engine(tmp_path / "x.engine", MANIFEST, {"graphs/fp32.onnx": head, "weights.bin": weights})
    with pytest.raises(BackendExecutionError, match=r"cannot compile|cannot load") as caught:
        backends.choose(engine, name)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("name", REAL)
def test_a_graph_that_does_not_fit_its_manifest(tmp_path: Path, name: str) -> None:
    wrong = tiny_engine.write(tmp_path / "x.engine", manifest=replace(MANIFEST, scores=MANIFEST.scores[:2]))
    with pytest.raises(BackendExecutionError, match="the manifest says"):
        backends.choose(wrong, name).run(pictures(1))
    wrong = tiny_engine.write(
        tmp_path / "y.engine", manifest=replace(MANIFEST, preprocess=replace(MANIFEST.preprocess, size=32))
    )
    images = np.zeros((1, 32, 32, 3), np.uint8)
    with pytest.raises(BackendExecutionError):
        backends.choose(wrong, name).run(images)


@pytest.mark.parametrize("name", REAL)
def test_an_engine_replaced_while_loading(tmp_path: Path, name: str) -> None:
    engine = tiny_engine.write(tmp_path / "x.engine")
    tiny_engine.write(tmp_path / "x.engine", seed=1)
    with pytest.raises(EngineCorruptError, match="replaced"):
        backends.choose(engine, name)


@pytest.mark.parametrize("name", [*REAL, "fake"])
def test_closed(engine: EngineFile, name: str) -> None:
    backend = backends.choose(engine, name)
    backend.close()
    backend.close()
    with pytest.raises(ScorerStateError, match="closed"):
        backend.run(pictures(1))


# --- the cache


def compiles_nothing(*_: object) -> None:
    pytest.fail("compiled although the cache has it")


def entry(cache: Cache) -> Path:
    (file,) = (cache.location / "compiled").iterdir()
    return file


@needs_openvino
@pytest.mark.parametrize("precision", ["auto", "fp32", "int8"])
def test_the_second_start_comes_from_the_cache(
    engine: EngineFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    cache = Cache(tmp_path)
    images = pictures(4)
    first = backends.choose(engine, "openvino", precision=precision, cache=cache)
    (listed,) = cache.list()
    assert listed.name.startswith(engine.id[:12])
    monkeypatch.setattr("declip_runtime.backends.openvino.OpenVINOBackend._compile", compiles_nothing)
    for threads in (None, 1):  # of which the entry knows nothing
        second = backends.choose(engine, "openvino", precision=precision, threads=threads, cache=cache)
        assert second.description == first.description
        np.testing.assert_array_equal(second.run(images).scores, first.run(images).scores)
        np.testing.assert_array_equal(second.run(images).perceptual, first.run(images).perceptual)
        if threads:
            assert second._compiled.get_property("INFERENCE_NUM_THREADS") == threads  # type: ignore[attr-defined]
    assert cache.list()[0].size == listed.size


@needs_openvino
def test_a_model_from_the_cache_outlives_its_entry(engine: EngineFile, tmp_path: Path) -> None:
    """It computes in memory mapped from the file."""
    cache = Cache(tmp_path)
    backends.choose(engine, "openvino", precision="fp32", cache=cache).close()
    images, backend = pictures(4), backends.choose(engine, "openvino", precision="fp32", cache=cache)
    cache.clear()
    gc.collect()
    np.testing.assert_allclose(backend.run(images).scores, expected(images, Weights.random())[0], atol=2e-6)
    backend.close()


@needs_openvino
def test_other_weights_and_precisions_never_share_an_entry(tmp_path: Path) -> None:
    """The graphs are the same and so are the paths: only the identity of the engine tells them apart."""
    cache, images = Cache(tmp_path / "cache"), pictures(4)
    for seed in (0, 1):
        engine = tiny_engine.write(tmp_path / "x.engine", seed=seed, int8=True)
        for precision in ("fp32", "int8"):
            backends.choose(engine, "openvino", precision=precision, cache=cache)
        got = backends.choose(engine, "openvino", precision="fp32", cache=cache).run(images)
        np.testing.assert_allclose(got.scores, expected(images, Weights.random(seed))[0], atol=2e-6)
    assert len(cache.list()) == 4


@needs_openvino
def test_a_moved_engine_finds_its_entry(engine: EngineFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path / "cache")
    backends.choose(engine, "openvino", cache=cache)
    (tmp_path / "moved.engine").write_bytes(engine.path.read_bytes())
    monkeypatch.setattr("declip_runtime.backends.openvino.OpenVINOBackend._compile", compiles_nothing)
    backends.choose(EngineFile.open(tmp_path / "moved.engine"), "openvino", cache=cache)
    assert len(cache.list()) == 1


@needs_openvino
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_entry_is_compiled_anew(engine: EngineFile, tmp_path: Path, share: float) -> None:
    cache = Cache(tmp_path)
    backends.choose(engine, "openvino", precision="fp32", cache=cache)
    content = entry(cache).read_bytes()
    entry(cache).write_bytes(content[: int(len(content) * share)])
    images = pictures(4)
    with pytest.warns(CacheWarning, match="altered"):
        again = backends.choose(engine, "openvino", precision="fp32", cache=cache)
    np.testing.assert_allclose(again.run(images).scores, expected(images, Weights.random())[0], atol=2e-6)


@needs_openvino
@pytest.mark.parametrize("place", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_an_entry_with_other_weights_in_it_is_compiled_anew(engine: EngineFile, tmp_path: Path, place: float) -> None:
    """Such bytes are a model to OpenVINO; it would give other scores without a word."""
    cache, images = Cache(tmp_path), pictures(4)
    backends.choose(engine, "openvino", precision="fp32", cache=cache)
    content = bytearray(entry(cache).read_bytes())
    middle = int(len(content) * place)
    content[middle : middle + 64] = bytes(b ^ 0x10 for b in content[middle : middle + 64])
    entry(cache).write_bytes(content)
    for caught in (pytest.warns(CacheWarning, match="altered"), nullcontext()):  # the second start is as ever
        with caught:
            again = backends.choose(engine, "openvino", precision="fp32", cache=cache)
        np.testing.assert_allclose(again.run(images).scores, expected(images, Weights.random())[0], atol=2e-6)


@needs_openvino
def test_an_entry_that_openvino_refuses_is_a_warning(engine: EngineFile, tmp_path: Path) -> None:
    """Whole, but not a model, as one that a build of the same version number wrote differently."""
    cache, images = Cache(tmp_path), pictures(4)
    backends.choose(engine, "openvino", precision="fp32", cache=cache)
    cache.put(cache.list()[0].name, 1, lambda file: file.write(b"no model" * 1000))
    with pytest.warns(CacheWarning, match="cannot use the compiled model"):
        again = backends.choose(engine, "openvino", precision="fp32", cache=cache)
    np.testing.assert_allclose(again.run(images).scores, expected(images, Weights.random())[0], atol=2e-6)
    assert cache.size > 9000  # the right one is in its place again


@needs_openvino
@needs_permissions
@pytest.mark.parametrize("writable", [True, False])
def test_a_cache_that_another_user_filled(writable: bool) -> None:
    images = pictures(4)
    with common_folder() as folder:
        engine, cache = tiny_engine.write(folder / "x.engine"), Cache(folder / "cache")
        backends.choose(engine, "openvino", precision="fp32", cache=cache)
        entry(cache).chmod(0)
        entry(cache).parent.chmod(0o777 if writable else 0o555)
        with bound_by_permissions():
            with nullcontext() if writable else pytest.warns(CacheWarning, match="cannot be kept"):
                backend = backends.choose(engine, "openvino", precision="fp32", cache=cache)
            np.testing.assert_allclose(backend.run(images).scores, expected(images, Weights.random())[0], atol=2e-6)
            assert (cache.get(cache.list()[0].name) is not None) == writable


@needs_openvino
def test_a_disk_that_fills_up_is_noticed(engine: EngineFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO drops the exceptions of what it writes into, and the rest of the model with them."""

    class Full:
        def __init__(self, file: BinaryIO) -> None:
            self._file = file

        def write(self, content: bytes) -> int:
            if len(content) > 1000:
                raise OSError(errno.ENOSPC, "no space left on device")
            return self._file.write(content)

        def __getattr__(self, name: str) -> object:
            return getattr(self._file, name)

    export = openvino._export
    monkeypatch.setattr(openvino, "_export", lambda compiled, file: export(compiled, Full(file)))  # type: ignore[arg-type]
    with pytest.warns(CacheWarning, match="no space left"):
        backend = backends.choose(engine, "openvino", precision="fp32", cache=Cache(tmp_path))
    assert len(backend.run(pictures(1)).scores) == 1
    assert not list((tmp_path / "compiled").iterdir())


@needs_openvino
def test_damaged_weights_are_never_cached(engine: EngineFile, tmp_path: Path) -> None:
    """Their scores would outlive the damaged file: the entry's name is the same after the repair."""
    content = bytearray(engine.path.read_bytes())
    content[engine.offset("weights.bin")] ^= 1
    (tmp_path / "damaged.engine").write_bytes(content)
    cache = Cache(tmp_path / "cache")
    with pytest.raises(EngineCorruptError, match="weights"):
        backends.choose(EngineFile.open(tmp_path / "damaged.engine"), "openvino", precision="fp32", cache=cache)
    assert cache.list() == ()


@needs_openvino
def test_a_model_larger_than_the_limit_is_named(engine: EngineFile, tmp_path: Path) -> None:
    with pytest.warns(CacheWarning, match="DECLIP_CACHE_LIMIT"):
        backends.choose(engine, "openvino", cache=Cache(tmp_path, limit=1000))


@needs_openvino
def test_two_processes_that_fill_at_once(engine: EngineFile, tmp_path: Path) -> None:
    program = (
        "import sys, warnings\n"
        "from declip_runtime import backends\n"
        "from declip_runtime.cache import Cache\n"
        "from declip_runtime.engine_file import EngineFile\n"
        "warnings.simplefilter('error')\n"
        "engine = EngineFile.open(sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "backends.choose(engine, 'openvino', precision='fp32', cache=Cache(sys.argv[2])).close()\n"
    )
    command = [sys.executable, "-c", program, str(engine.path), str(tmp_path)]
    pipe = subprocess.PIPE
    both = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        process.stdout.readline()
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [(p.communicate()[1], p.returncode) for p in both] == [("", 0)] * 2
    assert entry(Cache(tmp_path)).is_file()


@needs_openvino
def test_an_unwritable_cache_is_a_warning(engine: EngineFile, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.warns(CacheWarning):
        backend = backends.choose(engine, "openvino", cache=Cache(tmp_path / "file" / "cache"))
    assert len(backend.run(pictures(1)).scores) == 1


# --- the fake


def test_the_fake_needs_no_model_and_tells_images_apart(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "x.engine", MANIFEST, {"graphs/fp32.onnx": b"no graph", "weights.bin": b""})
    fake = backends.choose(engine, "fake")
    assert "fake" in fake.description
    images = pictures(9)
    images[1] //= 2
    output = fake.run(images)
    assert output.scores.shape == (9, len(NAMES))
    assert ((output.scores > 0) & (output.scores < 1)).all()
    assert len(np.unique(output.scores, axis=0)) == 9
    assert len(np.unique(output.scores[0])) == len(NAMES)
    np.testing.assert_allclose(np.linalg.norm(output.perceptual, axis=1), 1.0, rtol=1e-6)
    one_by_one = np.concatenate([fake.run(image[None]).scores for image in images])
    np.testing.assert_array_equal(one_by_one, output.scores)
    assert np.isfinite(fake.run(np.zeros((1, SIZE, SIZE, 3), np.uint8)).perceptual).all()


def test_the_fake_gives_the_same_everywhere(tmp_path: Path) -> None:
    fake = backends.choose(tiny_engine.write(tmp_path / "x.engine"), "fake")
    ramp = np.arange(SIZE * SIZE * 3, dtype=np.uint32).reshape(1, SIZE, SIZE, 3) % 251
    np.testing.assert_allclose(fake.run(ramp.astype(np.uint8)).scores, [[0.928733, 0.974726, 0.596210]], atol=1e-5)
