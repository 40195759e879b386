"""The protobuf of an ONNX file, just far enough to move its external weights; without the onnx package.

A graph in an engine is a *head*: an ``onnx.ModelProto`` whose initialisers lie in ``weights.bin``. Which file that is,
and from which byte on, must be rewritten before a vendor library reads the head. The message numbers are those of
onnx.proto: ModelProto.graph = 7, GraphProto.initializer = 5, TensorProto.{dims = 1, data_type = 2, name = 8,
external_data = 13}, StringStringEntryProto.{key = 1, value = 2}.

Malformed bytes raise EngineCorruptError, whatever they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from .errors import EngineCorruptError

IN_MEMORY = "*/_ORT_MEM_ADDR_/*"
"""As a tensor's location this says, to OpenVINO and ONNX Runtime, that its offset is an address in memory."""

_GRAPH, _INITIALIZER, _EXTERNAL_DATA = 7, 5, 13
_DIMS, _DATA_TYPE, _TENSOR_NAME = 1, 2, 8
_KEY, _VALUE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16", 17: "float8e4m3fn",
}  # fmt: skip


class ExternalTensor(NamedTuple):
    """An initialiser whose bytes lie in another file: ``length`` bytes from ``offset`` on in ``location``."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    offset: int
    length: int
    location: str


class _Field(NamedTuple):
    """One field of a message; ``value`` is the number of a varint, else the payload's bytes."""

    number: int
    value: int | bytes
    raw: bytes  # the field as it stands, tag included


def relocate(head: bytes, location: str, base: int) -> bytes:
    """The same graph with its external tensors in the file ``location``, ``base`` bytes further on."""
    return _rewrite(head, (_GRAPH, _INITIALIZER), lambda tensor: _moved(tensor, location, base))


def tensors(head: bytes) -> list[ExternalTensor]:
    """The initialisers that lie outside the head, in its order."""
    graphs = (_payload(f) for f in _fields(head) if f.number == _GRAPH)
    initializers = (_payload(f) for g in graphs for f in _fields(g) if f.number == _INITIALIZER)
    return [_external_tensor(t) for t in initializers if _external_data(t)]


def _rewrite(message: bytes, path: tuple[int, ...], change: Callable[[bytes], bytes]) -> bytes:
    """``change`` applied to every submessage at ``path`` of field numbers; all else byte for byte as it was."""
    if not path:
        return change(message)
    number, *rest = path
    return b"".join(
        _field(number, _rewrite(_payload(f), tuple(rest), change)) if f.number == number else f.raw
        for f in _fields(message)
    )


def _moved(tensor: bytes, location: str, base: int) -> bytes:
    external = _external_data(tensor)
    if not external:
        return tensor
    offset = _number(external.get("offset", "0")) + base
    left = {**external, "location": location, "offset": str(offset)}
    parts = []
    for field in _fields(tensor):
        if field.number != _EXTERNAL_DATA:
            parts.append(field.raw)
            continue
        key = _pair(field)[0]
        if key in left:
            parts.append(_entry(key, left.pop(key)))
    return b"".join([*parts, *(_entry(key, value) for key, value in left.items())])


def _external_tensor(tensor: bytes) -> ExternalTensor:
    external = _external_data(tensor)
    name, dtype = "", 0
    dims: list[int] = []
    for field in _fields(tensor):
        if field.number == _TENSOR_NAME:
            name = _text(field)
        elif field.number == _DATA_TYPE and isinstance(field.value, int):
            dtype = field.value
        elif field.number == _DIMS:
            dims += [field.value] if isinstance(field.value, int) else _packed(field.value)
    return ExternalTensor(
        name,
        _DTYPES.get(dtype, f"onnx type {dtype}"),
        tuple(dims),
        _number(external.get("offset", "0")),
        _number(external.get("length", "")),
        external.get("location", ""),
    )


def _external_data(tensor: bytes) -> dict[str, str]:
    return dict(_pair(f) for f in _fields(tensor) if f.number == _EXTERNAL_DATA)


def _pair(entry: _Field) -> tuple[str, str]:
    texts = {f.number: _text(f) for f in _fields(_payload(entry)) if f.number in (_KEY, _VALUE)}
    return texts.get(_KEY, ""), texts.get(_VALUE, "")


def _entry(key: str, value: str) -> bytes:
    pair = _field(_KEY, key.encode()) + _field(_VALUE, value.encode("utf-8", "surrogateescape"))
    return _field(_EXTERNAL_DATA, pair)


# --- the wire format


def _fields(message: bytes) -> Iterator[_Field]:
    at = 0
    while at < len(message):
        start = at
        tag, at = _read_varint(message, at)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise _corrupt()
        value: int | bytes
        if wire == _VARINT:
            value, at = _read_varint(message, at)
        else:
            if wire == _BYTES:
                size, at = _read_varint(message, at)
            elif wire in (_FIXED64, _FIXED32):
                size = 8 if wire == _FIXED64 else 4
            else:
                raise _corrupt()
            if at + size > len(message):
                raise _corrupt()
            value = message[at : at + size]
            at += size
        yield _Field(number, value, message[start:at])


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _corrupt()


def _packed(payload: bytes) -> list[int]:
    values, at = [], 0
    while at < len(payload):
        value, at = _read_varint(payload, at)
        values.append(value)
    return values


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _payload(field: _Field) -> bytes:
    if isinstance(field.value, int):
        raise _corrupt()
    return field.value


def _text(field: _Field) -> str:
    try:
        return _payload(field).decode()
    except UnicodeDecodeError as error:
        raise _corrupt() from error


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise _corrupt()
    return int(text)


def _corrupt() -> EngineCorruptError:
    return EngineCorruptError("a graph in the engine is not readable ONNX. Export or download the engine again.")
