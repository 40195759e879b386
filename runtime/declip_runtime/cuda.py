"""CUDA without torch, through NVIDIA's cuda-bindings: which GPUs there are, their memory and their streams.

The bindings return an error code beside every result and raise nothing; here each code is looked at, and the exceptions
are ours. They import on any machine, with a driver or without.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, overload

import numpy as np
import numpy.typing as npt

from .errors import BackendExecutionError, BackendUnavailableError, DeviceMemoryError

if TYPE_CHECKING:
    from cuda.bindings import runtime as cudart

T = TypeVar("T")

INSTALL = "Run: pip install 'cuda-bindings>=12.9.1,<13'"


@dataclass(frozen=True)
class Gpu:
    """One GPU: ``compute_capability`` as 8.7, ``memory`` in bytes; ``integrated`` into a board, as a Jetson's."""

    index: int
    name: str
    compute_capability: str
    memory: int
    multiprocessors: int
    integrated: bool


def unavailable() -> str | None:
    """None where cuda-bindings are installed and a driver offers a GPU, else the reason and the fix."""
    try:
        from cuda.bindings import runtime as cudart
    except ModuleNotFoundError:
        return f"cuda-bindings, which reach the GPU, are not installed. {INSTALL}"
    except (ImportError, OSError) as error:
        return f"cuda-bindings cannot be loaded ({error}). {INSTALL}"
    try:
        code, count = cudart.cudaGetDeviceCount()
    except RuntimeError as error:  # a CUDA library that it loads late is missing
        return f"CUDA cannot be used ({error}). Install or update NVIDIA's driver."
    if code != cudart.cudaError_t.cudaSuccess:
        return f"CUDA finds no GPU ({_text(code)}). Install or update NVIDIA's driver, or choose another backend."
    return None if count else "CUDA finds no GPU. Choose another backend."


def gpu_count() -> int:
    """How many GPUs this process may use; 0 where CUDA cannot be used at all."""
    if unavailable() is not None:
        return 0
    from cuda.bindings import runtime as cudart

    return int(_checked(cudart.cudaGetDeviceCount()))


def gpu(index: int) -> Gpu:
    """What GPU ``index`` is. Raises BackendUnavailableError where there is none of that number."""
    reason = unavailable()
    if reason is not None:
        raise BackendUnavailableError(reason)
    count = gpu_count()
    if not 0 <= index < count:
        raise BackendUnavailableError(f"there is no GPU {index}; there are {count}. Use device='cuda:0'.")
    from cuda.bindings import runtime as cudart

    properties = _checked(cudart.cudaGetDeviceProperties(index))
    name = properties.name.decode(errors="replace") if isinstance(properties.name, bytes) else str(properties.name)
    return Gpu(
        index,
        name.rstrip("\0"),
        f"{properties.major}.{properties.minor}",
        int(properties.totalGlobalMem),
        int(properties.multiProcessorCount),
        bool(properties.integrated),
    )


def use(index: int) -> None:
    """Make GPU ``index`` the one that this thread's CUDA calls mean."""
    from cuda.bindings import runtime as cudart

    _checked(cudart.cudaSetDevice(index))


def memory_in_use() -> int:
    """Bytes of the current GPU that are taken, by anybody."""
    from cuda.bindings import runtime as cudart

    error, free, total = cudart.cudaMemGetInfo()
    _checked((error,))
    return (total or 0) - (free or 0)


def finish_default_stream() -> None:
    """Return when what was given to the current GPU without naming a stream is done."""
    from cuda.bindings import runtime as cudart

    _checked(cudart.cudaStreamSynchronize(cudart.cudaStreamLegacy))


class Stream:
    """A queue of work of the GPU; what is in it runs in order, beside other streams."""

    def __init__(self) -> None:
        from cuda.bindings import runtime as cudart

        self._stream = _checked(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
        self._destroyed = _when_dropped(self, _destroy_stream, self._stream)

    @property
    def handle(self) -> int:
        """The address by which other libraries know it."""
        return int(self._stream)

    def upload(self, source: PinnedMemory, target: DeviceMemory, size: int) -> None:
        """Copy the first ``size`` bytes to the GPU."""
        from cuda.bindings import runtime as cudart

        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        _checked(cudart.cudaMemcpyAsync(target.address, source.address, size, kind, self._stream))

    def download(self, source: DeviceMemory, target: PinnedMemory, size: int) -> None:
        """Copy the first ``size`` bytes from the GPU."""
        from cuda.bindings import runtime as cudart

        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        _checked(cudart.cudaMemcpyAsync(target.address, source.address, size, kind, self._stream))

    def wait(self) -> None:
        """Return when all that was queued is done."""
        from cuda.bindings import runtime as cudart

        _checked(cudart.cudaStreamSynchronize(self._stream))

    def begin_capture(self) -> None:
        """From here on work is written down instead of run."""
        from cuda.bindings import runtime as cudart

        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _checked(cudart.cudaStreamBeginCapture(self._stream, mode))

    def end_capture(self) -> Graph | None:
        """What was written down, ready to be run again and again; None where some of it cannot be captured."""
        from cuda.bindings import runtime as cudart

        error, graph = cudart.cudaStreamEndCapture(self._stream)
        if error != cudart.cudaError_t.cudaSuccess or graph is None:
            _ = cudart.cudaGetLastError()  # else the next call would report it once more
            return None
        try:
            return Graph(graph)
        except DeviceMemoryError:
            raise
        except BackendExecutionError:
            return None

    def launch(self, graph: Graph) -> None:
        """Run what was captured."""
        from cuda.bindings import runtime as cudart

        _checked(cudart.cudaGraphLaunch(graph.executable, self._stream))

    def close(self) -> None:
        """Destroy the stream, when its work is done."""
        self._destroyed()


class Graph:
    """Work that was captured from a stream: launched as one, without the cost of its many small calls."""

    def __init__(self, graph: cudart.cudaGraph_t) -> None:
        from cuda.bindings import runtime as cudart

        try:
            self.executable = _checked(cudart.cudaGraphInstantiate(graph, 0))
        finally:
            _ = cudart.cudaGraphDestroy(graph)
        self._destroyed = _when_dropped(self, _destroy_graph, self.executable)

    def close(self) -> None:
        """Destroy it."""
        self._destroyed()


class DeviceMemory:
    """``size`` bytes on the GPU. Raises DeviceMemoryError where it has no more."""

    def __init__(self, size: int) -> None:
        from cuda.bindings import runtime as cudart

        self.size = size
        self.address = int(_checked(cudart.cudaMalloc(size)))
        self._freed = _when_dropped(self, _free_on_device, self.address)

    def close(self) -> None:
        """Free it; from now on it has no room for anything."""
        self.size = 0
        self._freed()


class PinnedMemory:
    """``size`` bytes of the host that the GPU copies from and to by itself; ``view`` is uint8 [size], zero at first.

    What was there before could be anything: also numbers of words that no model knows.
    """

    def __init__(self, size: int) -> None:
        from cuda.bindings import runtime as cudart

        self.address = int(_checked(cudart.cudaHostAlloc(size, cudart.cudaHostAllocDefault)))
        content = memoryview((ctypes.c_uint8 * size).from_address(self.address)).cast("B")
        self.view: npt.NDArray[np.uint8] = np.frombuffer(content, np.uint8)
        self._freed = _when_dropped(self, _free_on_host, self.address)
        self.view[:] = 0

    def close(self) -> None:
        """Free it; ``view`` must not be looked at any more."""
        self._freed()


def _when_dropped(owner: object, free: Callable[[T], None], what: T) -> Callable[[], object]:
    """Call ``free(what)`` once: when the result is called, or when nobody holds ``owner`` any more.

    Not when the interpreter ends: the driver takes everything back by itself, and may be gone by then.
    """
    finalizer = weakref.finalize(owner, free, what)
    finalizer.atexit = False
    return finalizer


def _destroy_stream(stream: cudart.cudaStream_t) -> None:
    from cuda.bindings import runtime as cudart

    _checked(cudart.cudaStreamDestroy(stream))


def _destroy_graph(executable: cudart.cudaGraphExec_t) -> None:
    from cuda.bindings import runtime as cudart

    _checked(cudart.cudaGraphExecDestroy(executable))


def _free_on_device(address: int) -> None:
    from cuda.bindings import runtime as cudart

    _checked(cudart.cudaFree(address))


def _free_on_host(address: int) -> None:
    from cuda.bindings import runtime as cudart

    _checked(cudart.cudaFreeHost(address))


@overload
def _checked(result: tuple[cudart.cudaError_t]) -> None: ...
@overload
def _checked(result: tuple[cudart.cudaError_t, T | None]) -> T: ...
def _checked(result: tuple[cudart.cudaError_t] | tuple[cudart.cudaError_t, T | None]) -> T | None:
    """The value of a call that went well. Raises DeviceMemoryError, BackendExecutionError."""
    from cuda.bindings import runtime as cudart

    if result[0] == cudart.cudaError_t.cudaErrorMemoryAllocation:
        raise DeviceMemoryError(
            "the GPU has too little free memory. Free some, or ask for less at once: a smaller batch_size of a Scorer,"
            " smaller or fewer pictures of a DPAdapter."
        )
    if result[0] != cudart.cudaError_t.cudaSuccess:
        raise BackendExecutionError(
            f"CUDA failed: {_text(result[0])}. Make a new Scorer or DPAdapter; if it repeats, check the driver."
        )
    return result[1] if len(result) == 2 else None


def _text(error: cudart.cudaError_t) -> str:
    from cuda.bindings import runtime as cudart

    _, text = cudart.cudaGetErrorString(error)
    return str(error) if text is None else text.decode()


def versions() -> dict[str, str]:
    """The newest CUDA that the ``driver`` runs and the CUDA of the ``runtime``, as 12.9; what is not there is left out.

    Also where no GPU can be used: that the driver is older than the runtime is a usual reason.
    """
    try:
        from cuda.bindings import runtime as cudart

        found = {"driver": cudart.cudaDriverGetVersion(), "runtime": cudart.cudaRuntimeGetVersion()}
    except (ImportError, OSError, RuntimeError):  # the last where a CUDA library that it loads late is missing
        return {}
    return {
        name: f"{number // 1000}.{number % 1000 // 10}"
        for name, (code, number) in found.items()
        if code == cudart.cudaError_t.cudaSuccess and number  # 0 stands for no driver
    }
