"""ONNX Runtime, on the CPU or with CUDA: runs where OpenVINO does not, and is the second opinion where it does."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from declip_runtime.cache import Cache
from declip_runtime.cpu import available_cpus
from declip_runtime.errors import BackendExecutionError, BackendUnavailableError, PrecisionError
from declip_runtime.quiet import import_onnxruntime

from .base import Backend, Output, Precision, graph_for

_PROVIDERS: dict[str, list[str | tuple[str, dict[str, str]]]] = {
    "cpu": ["CPUExecutionProvider"],
    # TF32 would be a silent third precision: 10 bits of mantissa under the name fp32.
    "cuda": [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"],
}
_ERROR = 3


class ONNXRuntimeBackend(Backend):
    """An engine run by ONNX Runtime; ``device`` is "cpu" (default) or "cuda".

    Precision "auto" is fp32; its CPU kernels know no bf16, and fp16 there only adds conversions. "int8" is the
    engine's int8 graph.
    """

    name: ClassVar[str] = "onnxruntime"

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
        """8: its CPU kernels gain nothing from more."""
        return 8

    @classmethod
    def _resolve_impl(cls, device: str | None, precision: str) -> tuple[str, Precision]:
        chosen = (device or "cpu").lower()
        if chosen not in _PROVIDERS:
            raise BackendUnavailableError(
                f"device={device!r} is unknown to the ONNX Runtime backend. Use one of: {', '.join(_PROVIDERS)}."
            )
        present = import_onnxruntime().get_available_providers()
        if _provider_name(chosen) not in present:
            raise BackendUnavailableError(
                f"the ONNX Runtime that is installed has no {_provider_name(chosen)} (it has {', '.join(present)})."
                " Run: pip uninstall -y onnxruntime && pip install 'declip-sdk[cuda]'"
            )
        known: dict[str, Precision] = {"auto": "fp32", "fp32": "fp32", "int8": "int8"}
        if precision not in known:
            raise PrecisionError(f"the ONNX Runtime backend does not compute in {precision}. Use fp32 or int8.")
        return chosen, known[precision]

    def _load_impl(self, threads: int | None, cache: Cache | None) -> None:
        self._onnxruntime = import_onnxruntime()
        self._errors = _errors(self._onnxruntime)
        graph = graph_for(self.engine, self.precision)
        self._session = self._make_session(graph, threads or available_cpus())
        provider = self._session.get_providers()[0]
        if provider != _provider_name(self.device):
            raise BackendUnavailableError(
                f"ONNX Runtime took {provider} although {_provider_name(self.device)} was asked for, usually because"
                " CUDA or cuDNN libraries are missing. Install them or leave device out."
            )
        self.engine.require_unchanged()
        self.description = f"ONNX Runtime {self._onnxruntime.__version__}, {provider}, {self.precision}"

    def _make_session(self, graph: str, threads: int) -> Any:
        options = self._onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = _ERROR
        # Idle threads that spin take the CPU from decoding, and from whatever else the machine does.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Weights by file name and folder: they are read one by one, which peaks at half of what handing over
        # memory-mapped arrays takes. Links are resolved because the file must really lie in the folder.
        path = self.engine.path.resolve()
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        head = self.engine.graph(graph, path.name)
        try:
            return self._onnxruntime.InferenceSession(head, options, providers=_PROVIDERS[self.device])
        except self._errors as error:
            raise BackendExecutionError(
                f"ONNX Runtime {self._onnxruntime.__version__} cannot load graph {graph!r} of {path}: {error}"
            ) from error

    def _run_impl(self, images: npt.NDArray[np.uint8]) -> Output:
        names = ["scores", "perceptual", "semantic"][: 2 + self.engine.manifest.has_semantic]
        try:
            return Output(*self._session.run(names, {"images": images}))
        except self._errors as error:
            raise BackendExecutionError(
                f"ONNX Runtime {self._onnxruntime.__version__} failed while running: {error}"
            ) from error

    def _close_impl(self) -> None:
        del self._session


def _provider_name(device: str) -> str:
    first = _PROVIDERS[device][0]
    return first if isinstance(first, str) else first[0]


def _errors(library: Any) -> tuple[type[Exception], ...]:
    """Everything that ONNX Runtime raises: its exceptions have no base of their own."""
    state = library.capi.onnxruntime_pybind11_state
    own = (kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
    return (RuntimeError, ValueError, *own)
