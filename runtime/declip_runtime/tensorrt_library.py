"""TensorRT as it is installed here: the whole library or its lean runtime, 10.x or 11.x, imported when asked for.

What the lean runtime can do as well, reading a plan, is here; building one is ``plan_builder``'s.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from . import cuda
from .errors import BackendExecutionError, BackendUnavailableError, DeviceMemoryError
from .plans import Site
from .plans import version as parse_version

if TYPE_CHECKING:
    import tensorrt as trt

INSTALL = "Run: pip install 'declip-sdk[tensorrt]'"
_OLDEST_LIBRARY = (10, 3)  # that of JetPack 6, and the oldest whose API ours was compared with
_OLDEST = (7, 5)  # compute capability that both generations know: Turing
_OUT_OF_MEMORY = ("out of memory", "outofmemory", "insufficient memory", "cuda failure 2")
_KEPT = 6  # lines of TensorRT's log that an error quotes


def unavailable() -> str | None:
    """None where TensorRT (or its lean runtime), cuda-bindings, a driver and a GPU are; else the reason and the fix."""
    try:
        found = version()
    except ModuleNotFoundError:
        return f"TensorRT is not installed. {INSTALL}; a Jetson has it in JetPack's system Python."
    except (ImportError, OSError) as error:
        return f"TensorRT cannot be loaded ({error}). {INSTALL}"
    if parse_version(found) < _OLDEST_LIBRARY:
        return f"TensorRT {found} is too old, 10.3 is the oldest that will do. {INSTALL}; a Jetson: JetPack 6.1"
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
    if parse_version(gpu.compute_capability) < _OLDEST:
        raise BackendUnavailableError(f"{gpu.name} is older than what TensorRT supports. Choose another backend.")
    return Site(device, gpu.name, gpu.compute_capability, version(), is_lean(), gpu.multiprocessors, gpu.integrated)


class Log:
    """The last warnings and errors that TensorRT said while this existed, so that ours can quote them.

    TensorRT keeps the first logger that it is given for as long as the process lives, so there is one, and it tells all
    of these.
    """

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_KEPT)
        with _logs_changing:
            _logs.add(self)

    def __str__(self) -> str:
        return " | ".join(self._lines) or "it says nothing more"

    @property
    def listener(self) -> trt.ILogger:
        """What to hand to TensorRT."""
        return _listener()

    @property
    def tells_of_memory(self) -> bool:
        """Whether the device's memory did not suffice, which TensorRT says in words only."""
        return any(sign in line.lower() for line in self._lines for sign in _OUT_OF_MEMORY)

    def note(self, line: str) -> None:
        """Keep a line."""
        self._lines.append(line)

    @contextmanager
    def quoted(self, doing: str) -> Iterator[None]:
        """Turn what the bindings raise while ``doing`` something into a BackendExecutionError that quotes the log."""
        self._lines.clear()
        try:
            yield
        except (RuntimeError, TypeError, ValueError) as error:
            raise self.error(f"TensorRT failed while {doing}: {error}") from error

    def error(self, message: str) -> BackendExecutionError:
        """The error to raise for ``message``, with the log: a DeviceMemoryError where that tells of memory."""
        kind = DeviceMemoryError if self.tells_of_memory else BackendExecutionError
        return kind(f"{message} Its log: {self}.")


_logs: weakref.WeakSet[Log] = weakref.WeakSet()
_logs_changing = threading.Lock()
_made: list[trt.ILogger] = []


def _listener() -> trt.ILogger:
    try:
        import tensorrt as trt
    except ModuleNotFoundError:
        import tensorrt_lean as trt

    told = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR, trt.ILogger.Severity.WARNING)

    class Listener(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity in told:
                with _logs_changing:
                    listening = list(_logs)
                for log in listening:
                    log.note(" ".join(msg.split()))

    if not _made:
        _made.append(Listener())
    return _made[0]


def read_plan(content: bytes | memoryview, log: Log, *, device: int, host_code: bool) -> trt.ICudaEngine:
    """Deserialise a plan on GPU ``device``, which becomes the thread's.

    ``host_code`` lets a version-compatible plan run the code that it brings, so its origin must be trusted. Raises
    BackendUnavailableError without a driver, where TensorRT itself would end the process, and BackendExecutionError
    with TensorRT's own log lines, DeviceMemoryError where they tell of memory.
    """
    reason = cuda.unavailable()
    if reason is not None:
        raise BackendUnavailableError(reason)
    try:
        import tensorrt as trt
    except ModuleNotFoundError:
        import tensorrt_lean as trt

    cuda.use(device)
    with log.quoted("reading the plan"):
        runtime = trt.Runtime(log.listener)
        runtime.engine_host_code_allowed = host_code
        engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise log.error(f"TensorRT {version()} refuses the plan. Build it again on this machine: declip build.")
    return engine
