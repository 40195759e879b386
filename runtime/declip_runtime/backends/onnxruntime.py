"""ONNX Runtime: on the CPU where OpenVINO does not run, and on NVIDIA GPUs where TensorRT is not to be had."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import Any, ClassVar

from declip_runtime.bound_lane import BoundLane
from declip_runtime.cache import Cache
from declip_runtime.cpu import available_cpus
from declip_runtime.engine_file import EngineFile
from declip_runtime.errors import (
    BackendExecutionError,
    BackendUnavailableError,
    CacheError,
    CacheWarning,
    DeviceMemoryError,
    PrecisionError,
)
from declip_runtime.lanes import Lanes, OnDemand
from declip_runtime.quiet import import_onnxruntime
from declip_runtime.signature import BATCH, Array, Arrays, Sizes

from .base import Backend, Precision

Provider = tuple[str, dict[str, str]]

_DEVICE = re.compile(r"(cpu|cuda|tensorrt)(?::(\d+))?", re.ASCII)
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_ERROR = 3
_OUT_OF_MEMORY = ("Failed to allocate memory", "out of memory", "OUT_OF_MEMORY")


class ONNXRuntimeBackend(Backend):
    """An engine run by ONNX Runtime; ``device`` is "cpu" (default), "cuda" or "tensorrt", of a GPU also "cuda:N".

    "cuda" is its CUDA provider, "tensorrt" its TensorRT provider, which gives CUDA what it cannot do itself. A device
    that cannot be started is an error, never a quiet run on the CPU. The TensorRT provider writes its plans by itself,
    into ``onnxruntime-tensorrt`` beside our compiled models, which the cache neither counts nor removes.

    Precision "auto" is fp32 on the CPU, whose kernels know no bf16 and only convert for fp16, and on a GPU the engine's
    fp16 graph. "int8" is the engine's int8 graph, on the CPU only.
    """

    name: ClassVar[str] = "onnxruntime"
    graphs: ClassVar[Mapping[Precision, str]] = {"fp32": "fp32", "fp16": "fp16", "int8": "int8"}

    @classmethod
    def available(cls) -> str | None:
        """None where ONNX Runtime can be imported, else why not."""
        try:
            import_onnxruntime()
        except ModuleNotFoundError:
            return "ONNX Runtime is not installed. Run: pip install 'declip-sdk[onnxruntime]'"
        except (ImportError, OSError) as error:
            return f"ONNX Runtime cannot be loaded ({error}). Run: pip install --force-reinstall onnxruntime"
        return None

    @property
    def preferred_batch(self) -> int:
        """8 on the CPU, whose kernels gain nothing from more; on a GPU what its memory holds, at most 64."""
        return self._runner.capacity if isinstance(self._runner, Lanes) else 8

    @classmethod
    def _resolve_impl(
        cls, engine: EngineFile, device: str | None, precision: str, component: str
    ) -> tuple[str, Precision]:
        kind, index = _parse(device or "cpu")
        present = import_onnxruntime().get_available_providers()
        if _PROVIDERS[kind] not in present:
            raise BackendUnavailableError(
                f"the ONNX Runtime that is installed has no {_PROVIDERS[kind]} (it has {', '.join(present)})."
                " Run: pip uninstall -y onnxruntime && pip install 'declip-sdk[cuda]'"
            )
        half: Precision = "fp16" if "fp16" in engine.manifest.kinds(component) else "fp32"
        known: dict[str, Precision] = (
            {"auto": "fp32", "fp32": "fp32", "int8": "int8"}
            if kind == "cpu"
            else {"auto": half, "fp16": "fp16", "fp32": "fp32"}
        )
        if precision not in known:
            usable = " or ".join(name for name in known if name != "auto")
            raise PrecisionError(f"the ONNX Runtime backend does not compute in {precision} on {kind}. Use {usable}.")
        return kind if kind == "cpu" else f"{kind}:{index}", known[precision]

    def _load_impl(self, threads: int | None, cache: Cache | None) -> None:
        self._onnxruntime = import_onnxruntime()
        self._errors = _errors(self._onnxruntime)
        self._session: Any = None
        self._runner: Lanes | OnDemand | None = None
        kind, _ = _parse(self.device)
        if kind != "cpu" and hasattr(self._onnxruntime, "preload_dlls"):
            with redirect_stdout(sys.stderr):  # it prints what is missing, and standard output is for scores
                self._onnxruntime.preload_dlls()  # CUDA and cuDNN where pip has put them
        captured = ""
        # A session for each set of sizes (see BoundLane) would hold the weights of a generator too often.
        if kind == "cuda" and set(self.signature.free) == {BATCH}:
            captured = ", CUDA graphs"
            try:
                self._run_on_gpu(lambda: self._open_session({"enable_cuda_graph": "1"}, threads))
            except BackendExecutionError:  # some node is not on the GPU, or the driver cannot: then call by call
                captured = ""
        if not captured:
            self._session = self._open_session(self._plan_options(cache) if kind == "tensorrt" else {}, threads)
            if kind != "cpu":
                self._run_on_gpu(lambda: self._session)
        self.engine.require_unchanged()
        self.description = f"ONNX Runtime {self._version}, {_PROVIDERS[kind]}, {self.precision}{captured}"

    @property
    def _version(self) -> str:
        return str(self._onnxruntime.__version__)

    def _open_session(self, own: Mapping[str, str], threads: int | None) -> Any:
        """A session on the device, with ``own`` more options for it."""
        providers = _providers(*_parse(self.device), own)
        session = self._make_session(providers, threads or available_cpus())
        wanted, found = providers[0][0], session.get_providers()[0]
        if found != wanted:
            raise BackendUnavailableError(
                f"ONNX Runtime took {found} although {wanted} was asked for, usually because"
                " CUDA or cuDNN libraries are missing. Install them or leave device out."
            )
        return session

    def _run_on_gpu(self, session: Callable[[], Any]) -> None:
        """Make the lane, which takes a ``session`` for every set of sizes."""
        free, (_, index) = self.signature.free, _parse(self.device)

        def lane(_capacity: int) -> BoundLane:
            return BoundLane(self._onnxruntime, session, self.signature, self._run, device="cuda", index=index)

        if set(free) == {BATCH}:
            self._runner = Lanes(lane, free[BATCH].maximum, count=1, coarse=True)
        else:
            smallest, typical = ({name: sizes[which] for name, sizes in free.items()} for which in range(2))
            self._runner = OnDemand(lane(free[BATCH].maximum), typical, smallest)

    def _plan_options(self, cache: Cache | None) -> dict[str, str]:
        """One plan for all batches, instead of a new one for each that is larger than those before; kept in ``cache``.

        ONNX Runtime names a plan after the graph's names, not after its weights or ranges: what differs in these must
        not share a folder.
        """
        options = {
            f"trt_profile_{which}_shapes": ",".join(
                f"{name}:{'x'.join(map(str, spec.sized({n: r[place] for n, r in self.signature.free.items()})))}"
                for name, spec in self.signature.inputs.items()
            )
            for place, which in enumerate(("min", "opt", "max"))
        }
        if cache is None or not cache.limit:
            return options
        try:
            timings = cache.location / "onnxruntime-tensorrt"
            plans = timings / f"{self.engine.id[:12]}-{self.graph}-{self.signature.ranges}"
            plans.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (OSError, CacheError) as error:
            _warn_of_cache(str(error))
            return options
        if not all(os.access(folder, os.R_OK | os.W_OK | os.X_OK) for folder in (timings, plans)):
            _warn_of_cache(f"{plans} cannot be written")
            return options
        return options | {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(plans),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(timings),
        }

    def _make_session(self, providers: list[Provider], threads: int) -> Any:
        options = self._onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = _ERROR
        # Idle threads that spin take the CPU from decoding, and from whatever else the machine does.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Weights by file name and folder: they are read one by one, which peaks at half of what handing over
        # memory-mapped arrays takes. Links are resolved because the file must really lie in the folder.
        path = self.engine.path.resolve()
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        head = self.engine.graph(self.graph, path.name)
        try:
            # else it would print what is wrong and go on on the CPU
            return self._onnxruntime.InferenceSession(head, options, providers=providers, enable_fallback=0)
        except self._errors as error:
            raise self._translated(error, f"cannot load graph {self.graph!r} of {path}") from error

    def _compute_impl(self, inputs: Arrays, sizes: Sizes) -> dict[str, Array]:
        if isinstance(self._runner, Lanes):
            return self._runner.run(inputs)
        if self._runner is not None:
            return self._runner.run(inputs, sizes)
        names = list(self.signature.outputs)
        found = self._run(lambda: self._session.run(names, dict(inputs)))
        return dict(zip(names, found, strict=True))

    def _run(self, work: Any) -> Any:
        """Do what is ONNX Runtime's. Raises DeviceMemoryError, BackendExecutionError."""
        try:
            return work()
        except self._errors as error:
            raise self._translated(error, "failed while running") from error

    def _translated(self, error: Exception, what: str) -> BackendExecutionError:
        """Ours for one of ONNX Runtime's."""
        if any(sign in str(error) for sign in _OUT_OF_MEMORY):
            return DeviceMemoryError(f"ONNX Runtime has too little memory: {error}")
        return BackendExecutionError(f"ONNX Runtime {self._version} {what}: {error}")

    def _close_impl(self) -> None:
        if self._runner is not None:
            self._runner.close()
        self._session = None


def _parse(device: str) -> tuple[str, int]:
    """Kind and number of a device. Raises BackendUnavailableError for an unknown one."""
    match = _DEVICE.fullmatch(device.lower())
    if match is None or (match[1] == "cpu" and match[2]):
        raise BackendUnavailableError(
            f"device={device!r} is unknown to the ONNX Runtime backend. Use one of: {', '.join(_PROVIDERS)}."
        )
    return match[1], int(match[2] or 0)


def _providers(kind: str, index: int, own: Mapping[str, str]) -> list[Provider]:
    """What ONNX Runtime is to try, in this order; ``own`` are more options of the first, which is the ``kind``."""
    cpu: Provider = (_PROVIDERS["cpu"], {})
    if kind == "cpu":
        return [cpu]
    # TF32 would be a silent third precision: 10 bits of mantissa under the name fp32.
    # Trying every algorithm of every convolution made starting half as slow again, and nothing faster (H200, 1.31).
    facts = {"device_id": str(index), "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    if kind == "cuda":
        return [(_PROVIDERS["cuda"], {**facts, **own}), cpu]
    return [(_PROVIDERS["tensorrt"], {"device_id": str(index), **own}), (_PROVIDERS["cuda"], facts), cpu]


def _warn_of_cache(reason: str) -> None:
    warnings.warn(
        f"the plans of ONNX Runtime's TensorRT provider cannot be kept: {reason.rstrip('.')}. Scoring works, but every"
        " start builds anew; choose another folder with cache_dir=.",
        CacheWarning,
        stacklevel=3,
    )


def _errors(library: Any) -> tuple[type[Exception], ...]:
    """Everything that ONNX Runtime raises: its exceptions have no base of their own."""
    state = library.capi.onnxruntime_pybind11_state
    own = (kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
    return (RuntimeError, ValueError, *own)
