"""A function of our own on a GPU: its PTX, which the driver compiles for the GPU that is there, and its launch."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar, overload

from . import cuda
from .errors import BackendExecutionError, DeviceMemoryError

if TYPE_CHECKING:
    from cuda.bindings import driver

T = TypeVar("T")

_MOST_BLOCKS = 65535  # along y


class Kernel:
    """Function ``name`` of a module in ``ptx``, for the current GPU.

    Raises DeviceMemoryError, BackendExecutionError.

    ``launch`` may be called from any thread whose current GPU is the same.
    """

    def __init__(self, ptx: bytes, name: str) -> None:
        from cuda.bindings import driver

        module = _checked(driver.cuModuleLoadData(ptx))
        unloaded = weakref.finalize(self, _unload, module)
        unloaded.atexit = False  # the driver may be gone by then, and takes everything back by itself
        self.close = unloaded
        self._function = _checked(driver.cuModuleGetFunction(module, name.encode()))

    def launch(
        self,
        stream: cuda.Stream,
        work: tuple[int, int],
        threads: tuple[int, int],
        arguments: Sequence[ctypes.c_void_p | ctypes.c_longlong | ctypes.c_int],
    ) -> None:
        """Queue ``work`` (x, y) items in blocks of ``threads``; ``arguments`` are copied now.

        Along y there may be fewer threads than items, along x there are at least as many.
        """
        from cuda.bindings import driver

        across, down = (-(-items // each) for items, each in zip(work, threads, strict=True))
        places = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        _checked(
            driver.cuLaunchKernel(
                self._function,
                across,
                min(down, _MOST_BLOCKS),
                1,
                *threads,
                1,
                0,
                driver.CUstream(stream.handle),
                ctypes.addressof(places),
                0,
            )
        )


def _unload(module: driver.CUmodule) -> None:
    from cuda.bindings import driver

    _checked(driver.cuModuleUnload(module))


@overload
def _checked(result: tuple[driver.CUresult]) -> None: ...
@overload
def _checked(result: tuple[driver.CUresult, T | None]) -> T: ...
def _checked(result: tuple[driver.CUresult] | tuple[driver.CUresult, T | None]) -> T | None:
    """The value of a call that went well. Raises DeviceMemoryError, BackendExecutionError."""
    from cuda.bindings import driver

    codes = driver.CUresult
    if result[0] == codes.CUDA_ERROR_OUT_OF_MEMORY:
        raise DeviceMemoryError("the GPU has too little free memory for pictures. Free some, or use fewer threads.")
    if result[0] != codes.CUDA_SUCCESS:
        _, text = driver.cuGetErrorString(result[0])
        reason = str(result[0]) if text is None else text.decode()
        old = result[0] in (codes.CUDA_ERROR_INVALID_PTX, codes.CUDA_ERROR_UNSUPPORTED_PTX_VERSION)
        fix = "Update NVIDIA's driver" if old else "Make a new Scorer; if it repeats, check the driver"
        raise BackendExecutionError(f"CUDA cannot run a function of declip ({reason}). {fix}.")
    return result[1] if len(result) == 2 else None
