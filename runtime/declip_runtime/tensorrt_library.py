"""TensorRT as it is installed here: the whole library or its lean runtime, 10.x or 11.x, imported when asked for.

What the lean runtime can do as well, reading a plan, is here; building one is ``plan_builder``'s.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from . import cuda
from .errors import BackendExecutionError, BackendUnavailableError
from .plans import Site

if TYPE_CHECKING:
    import tensorrt as trt

_KEPT = 6  # lines of TensorRT's log that an error quotes


def unavailable() -> str | None:
    """None where TensorRT (or its lean runtime), cuda-bindings, a driver and a GPU are; else the reason and the fix."""
    try:
        version()
    except ModuleNotFoundError:
        return f"TensorRT is not installed. {cuda.INSTALL}; a Jetson has it in JetPack's system Python."
    except (ImportError, OSError) as error:
        return f"TensorRT cannot be loaded ({error}). {cuda.INSTALL}"
    return cuda.unavailable()


def version() -> str:
    """TensorRT's version, as 10.3.0. Raises ImportError or OSError where it cannot be loaded."""
    try:
        import tensorrt as trt
    except ModuleNotFoundError:
        import tensorrt_lean as trt

    return str(trt.__version__)


def is_lean() -> bool:
    """Whether only the lean runtime is installed. Raises as ``version``."""
    try:
        import tensorrt as trt
    except ModuleNotFoundError:
        import tensorrt_lean as trt

    return str(trt.__name__) == "tensorrt_lean"


def site(device: int) -> Site:
    """GPU ``device`` with the TensorRT that is installed. Raises BackendUnavailableError."""
    reason = unavailable()
    if reason is not None:
        raise BackendUnavailableError(reason)
    gpu = cuda.gpu(device)
    return Site(device, gpu.name, gpu.compute_capability, version(), is_lean())


class Log:
    """Takes what TensorRT says of itself and keeps the last warnings and errors, so that ours can quote them."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_KEPT)
        self.listener = self._listen()

    def __str__(self) -> str:
        return " | ".join(self._lines) or "it says nothing more"

    @contextmanager
    def quoted(self, doing: str) -> Iterator[None]:
        """Turn what the bindings raise while ``doing`` something into a BackendExecutionError that quotes the log."""
        try:
            yield
        except (RuntimeError, TypeError, ValueError) as error:
            raise BackendExecutionError(f"TensorRT failed while {doing}: {error} (its log: {self})") from error

    def _listen(self) -> trt.ILogger:
        try:
            import tensorrt as trt
        except ModuleNotFoundError:
            import tensorrt_lean as trt

        told = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR, trt.ILogger.Severity.WARNING)
        lines = self._lines

        class Listener(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
                if severity in told:
                    lines.append(" ".join(msg.split()))

        return Listener()


def read_plan(content: bytes | memoryview, log: Log, *, host_code: bool) -> trt.ICudaEngine:
    """Deserialise a plan.

    ``host_code`` lets a version-compatible plan run the code that it brings, so its origin must be trusted. Raises
    BackendUnavailableError without a driver, where TensorRT itself would end the process, and BackendExecutionError
    with TensorRT's own log lines.
    """
    reason = cuda.unavailable()
    if reason is not None:
        raise BackendUnavailableError(reason)
    try:
        import tensorrt as trt
    except ModuleNotFoundError:
        import tensorrt_lean as trt

    with log.quoted("reading the plan"):
        runtime = trt.Runtime(log.listener)
        runtime.engine_host_code_allowed = host_code
        engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise BackendExecutionError(
            f"TensorRT {version()} refuses the plan; its log: {log}. Build it again on this machine: declip build"
        )
    return engine
