"""TFRecord files of tf.train.Example messages, read without TensorFlow: framing, and the three kinds of lists.

Formats: tensorflow.org/tutorials/load_data/tfrecord (length, its checksum, data, its checksum) and
protobuf.dev/programming-guides/encoding. Lengths are verified by their masked CRC-32C, so damage and another kind of
file are noticed; the data are not, which in Python would take minutes for heat maps that nobody reads here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from declip_runtime.errors import TrainingError

Feature = list[bytes] | list[float] | list[int]

_MASK = 0xA282EAD8
_CASTAGNOLI = 0x82F63B78  # bits reversed
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_examples(path: Path) -> Iterator[dict[str, Feature]]:
    """Yield the features of each example by name.

    Raises TrainingError for a file that is truncated, damaged or of another kind.
    """
    with path.open("rb") as stream:
        place = 0
        while header := stream.read(12):
            place += 1
            if len(header) < 12 or masked_crc32c(header[:8]) != struct.unpack("<I", header[8:])[0]:
                raise TrainingError(f"{path} is no TFRecord file, or is damaged at record {place}. Get it again.")
            (length,) = struct.unpack("<Q", header[:8])
            data = stream.read(length + 4)
            if len(data) < length + 4:
                raise TrainingError(f"{path} ends within record {place}. Get it again.")
            try:
                yield _example(data[:length])
            except (IndexError, ValueError, struct.error) as error:
                raise TrainingError(f"record {place} of {path} is no tf.train.Example: {error}.") from error


def masked_crc32c(data: bytes) -> int:
    """The checksum of TFRecord's framing: CRC-32C, rotated by 15 bits, plus a constant."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (_CASTAGNOLI if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF


def _example(data: bytes) -> dict[str, Feature]:
    features: dict[str, Feature] = {}
    for features_message in _messages(data, 1):
        for entry in _messages(features_message, 1):
            (name,) = _messages(entry, 1)
            (feature,) = _messages(entry, 2)
            features[name.decode("utf-8")] = _feature(feature)
    return features


def _feature(data: bytes) -> Feature:
    for kind, value in _fields(data):
        if isinstance(value, int):
            raise ValueError("a list of values is expected")
        if kind == 1:
            return list(_messages(value, 1))
        if kind == 2:
            packed = b"".join(v if isinstance(v, bytes) else struct.pack("<I", v) for _, v in _fields(value))
            return list(struct.unpack(f"<{len(packed) // 4}f", packed))
        if kind == 3:
            return [number for _, v in _fields(value) for number in ([v] if isinstance(v, int) else _varints(v))]
    return []


def _messages(data: bytes, field: int) -> Iterator[bytes]:
    return (value for number, value in _fields(data) if number == field and isinstance(value, bytes))


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Number and value of every field: bytes where it has a length, otherwise an int."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
            yield tag >> 3, int.from_bytes(_slice(data, at, size), "little")
            at += size
        elif kind == _BYTES:
            size, at = _varint(data, at)
            yield tag >> 3, _slice(data, at, size)
            at += size
        else:
            raise ValueError(f"unknown wire type {kind}")


def _slice(data: bytes, at: int, size: int) -> bytes:
    if at + size > len(data):
        raise ValueError("a field is longer than its message")
    return data[at : at + size]


def _varints(data: bytes) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
