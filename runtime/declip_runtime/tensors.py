"""Pictures in the memory of another library, by DLPack: those of the host become arrays, those of a GPU stay there."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from . import cuda
from .errors import BackendUnavailableError, InvalidArrayError

# DLPack's numbers (dlpack.h, version 0 to 1).
_ON_GPUS = (2, 13)  # CUDA and its managed memory, which the host may read, but not while a kernel writes
_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 6: "bool"}
_LEGACY_STREAM = 1  # CUDA's default stream
# What libraries are known to raise where they do not export.
_REFUSALS = (BufferError, RuntimeError, TypeError, ValueError, AssertionError, AttributeError)


@runtime_checkable
class Tensor(Protocol):
    """What gives its memory by DLPack: a tensor of PyTorch or JAX, an array of CuPy, an image of nvImageCodec, ..."""

    def __dlpack__(self, *, stream: Any = None) -> Any: ...

    def __dlpack_device__(self) -> tuple[Any, Any]: ...


@dataclass(frozen=True)
class DeviceTensor:
    """Memory of GPU number ``device``: ``address`` of its first element, ``strides`` in bytes.

    ``owner`` keeps it alive. It is there to be read when this object is.
    """

    owner: object
    device: int
    address: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def ndim(self) -> int:
        """How many dimensions it has."""
        return len(self.shape)

    def __iter__(self) -> Iterator[DeviceTensor]:
        """What it has along its first dimension."""
        for index in range(self.shape[0]):
            address = self.address + index * self.strides[0]
            yield replace(self, address=address, shape=self.shape[1:], strides=self.strides[1:])


def is_tensor(source: object) -> TypeGuard[Tensor]:
    """Whether ``source`` gives its memory by DLPack and is no NumPy array."""
    return isinstance(source, Tensor) and not isinstance(source, np.ndarray)


def exchanged(source: object) -> object:
    """``exchange`` of a tensor that gives its memory; everything else as it is."""
    if not is_tensor(source):
        return source
    try:
        return exchange(source)
    except InvalidArrayError:
        return source  # whoever prepares it is told why


def exchange(source: Tensor) -> NDArray[Any] | DeviceTensor:
    """The memory of ``source``, not copied. What its library still computes there for this thread is waited for.

    Raises InvalidArrayError where it does not give it, BackendUnavailableError where it is on a GPU out of our reach.
    """
    try:
        kind, index = map(int, source.__dlpack_device__())
        if kind not in _ON_GPUS:
            array: NDArray[Any] = np.from_dlpack(source)
            return array
        _make_current(index)
        tensor = of_capsule(source.__dlpack__(stream=_LEGACY_STREAM))
    except _REFUSALS as error:
        words = " ".join(str(error).split())
        raise InvalidArrayError(
            f"a {type(source).__name__} does not give its memory by DLPack ({words}). Give a NumPy array of it."
        ) from error
    cuda.finish_default_stream()
    return tensor


def _make_current(index: int) -> None:
    """Make the tensor's GPU that of this thread: PyTorch exports no other."""
    reason = cuda.unavailable()
    if reason is not None:
        raise BackendUnavailableError(f"a tensor on a GPU was given, but {reason} Or give its copy on the CPU.")
    cuda.use(index)


def of_capsule(capsule: object) -> DeviceTensor:
    """What a DLPack capsule holds, which stays its owner."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _Tensor.from_address(get(capsule, b"dltensor"))
    shape = tuple(int(tensor.shape[axis]) for axis in range(tensor.dimensions))
    size = int(tensor.dtype.bits * tensor.dtype.lanes // 8)
    if tensor.strides:
        strides = tuple(tensor.strides[axis] * size for axis in range(tensor.dimensions))
    else:
        strides = tuple(size * int(np.prod(shape[axis + 1 :])) for axis in range(tensor.dimensions))
    kind = _KINDS.get(tensor.dtype.code, f"type {tensor.dtype.code} of ")
    name = f"{kind}{tensor.dtype.bits}" if kind != "bool" else kind
    address = (tensor.data or 0) + tensor.offset
    return DeviceTensor(capsule, tensor.device.index, address, name, shape, strides)


def require_device_picture(tensor: DeviceTensor) -> None:
    """Raise InvalidArrayError, with the fix for the likely mistake, unless the tensor is uint8 [H, W, 3]."""
    if tensor.dtype == "uint8" and tensor.ndim == 3 and tensor.shape[2] == 3 and 0 not in tensor.shape:
        return
    if tensor.dtype != "uint8":
        problem = "Bring its values to 0..255 and convert it, as with tensor.clamp(0, 255).to(torch.uint8)."
    elif tensor.ndim == 3 and tensor.shape[0] == 3:
        problem = "Channels come last: use tensor.permute(1, 2, 0), of a batch tensor.permute(0, 2, 3, 1)."
    elif 0 in tensor.shape:
        problem = "It has no pixels."
    else:
        problem = "Bring it to three dimensions, with red, green and blue in the last."
    raise InvalidArrayError(
        f"a tensor {tensor.dtype} {list(tensor.shape)} on cuda:{tensor.device} was given, wanted is uint8 [H, W, 3]."
        f" {problem}"
    )


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("index", ctypes.c_int32))


class _Type(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    """DLTensor, which a managed tensor of DLPack begins with."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("dimensions", ctypes.c_int32),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
    )
