"""CUDA without torch, through NVIDIA's cuda-bindings: which GPUs there are, their memory and their streams.

The bindings return an error code beside every result and raise nothing; here each code is looked at, and the exceptions
are ours. They import on any machine, with a driver or without.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, overload

import numpy as np
import numpy.typing as npt

from .errors import BackendExecutionError, BackendUnavailableError, DeviceMemoryError

if TYPE_CHECKING:
    from cuda.bindings import runtime as cudart

T = TypeVar("T")

INSTALL = "Run: pip install 'declip-sdk[tensorrt]'"


@dataclass(frozen=True)
class Gpu:
    """One GPU: ``compute_capability`` as 8.7, ``memory`` in bytes."""

    index: int
    name: str
    compute_capability: str
    memory: int


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
    from cuda.bindings import runtime as cudart

    return 0 if unavailable() else int(_checked(cudart.cudaGetDeviceCount()))


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
    return Gpu(index, name.rstrip("\0"), f"{properties.major}.{properties.minor}", int(properties.totalGlobalMem))


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


class Stream:
    """A queue of work of the GPU; what is in it runs in order, beside other streams."""

    def __init__(self) -> None:
        from cuda.bindings import runtime as cudart

        self._stream = _checked(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))

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
        return Graph(graph)

    def launch(self, graph: Graph) -> None:
        """Run what was captured."""
        from cuda.bindings import runtime as cudart

        _checked(cudart.cudaGraphLaunch(graph.executable, self._stream))

    def close(self) -> None:
        """Destroy the stream, when its work is done."""
        from cuda.bindings import runtime as cudart

        _checked(cudart.cudaStreamDestroy(self._stream))


class Graph:
    """Work that was captured from a stream: launched as one, without the cost of its many small calls."""

    def __init__(self, graph: cudart.cudaGraph_t) -> None:
        from cuda.bindings import runtime as cudart

        self.executable = _checked(cudart.cudaGraphInstantiate(graph, 0))
        _checked(cudart.cudaGraphDestroy(graph))

    def close(self) -> None:
        """Destroy it."""
        from cuda.bindings import runtime as cudart

        _checked(cudart.cudaGraphExecDestroy(self.executable))


class DeviceMemory:
    """``size`` bytes on the GPU. Raises DeviceMemoryError where it has no more."""

    def __init__(self, size: int) -> None:
        from cuda.bindings import runtime as cudart

        self.address = int(_checked(cudart.cudaMalloc(size)))

    def close(self) -> None:
        """Free it."""
        from cuda.bindings import runtime as cudart

        _checked(cudart.cudaFree(self.address))


class PinnedMemory:
    """``size`` bytes of the host that the GPU copies from and to by itself; ``view`` is uint8 [size]."""

    def __init__(self, size: int) -> None:
        from cuda.bindings import runtime as cudart

        self.address = int(_checked(cudart.cudaHostAlloc(size, cudart.cudaHostAllocDefault)))
        content = memoryview((ctypes.c_uint8 * size).from_address(self.address)).cast("B")
        self.view: npt.NDArray[np.uint8] = np.frombuffer(content, np.uint8)

    def close(self) -> None:
        """Free it; ``view`` must not be looked at any more."""
        from cuda.bindings import runtime as cudart

        _checked(cudart.cudaFreeHost(self.address))


@overload
def _checked(result: tuple[cudart.cudaError_t]) -> None: ...
@overload
def _checked(result: tuple[cudart.cudaError_t, T | None]) -> T: ...
def _checked(result: tuple[cudart.cudaError_t] | tuple[cudart.cudaError_t, T | None]) -> T | None:
    """The value of a call that went well. Raises DeviceMemoryError, BackendExecutionError."""
    from cuda.bindings import runtime as cudart

    if result[0] == cudart.cudaError_t.cudaErrorMemoryAllocation:
        raise DeviceMemoryError("the GPU has too little free memory. Use a smaller batch_size, or free some.")
    if result[0] != cudart.cudaError_t.cudaSuccess:
        raise BackendExecutionError(
            f"CUDA failed: {_text(result[0])}. Make a new Scorer; if it repeats, check the driver."
        )
    return result[1] if len(result) == 2 else None


def _text(error: cudart.cudaError_t) -> str:
    from cuda.bindings import runtime as cudart

    _, text = cudart.cudaGetErrorString(error)
    return str(error) if text is None else text.decode()
