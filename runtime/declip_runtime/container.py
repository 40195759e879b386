"""The ZIP layout of an engine file: stored entries, each starting on a page, in exactly one byte-for-byte form.

Every byte outside the entries follows from their names, sizes and checksums. So reading does not interpret an
archive: it takes the list of entries from the central directory, builds anew what such an archive must look like, and
compares. Whatever differs (compression, overlaps, gaps, duplicates, comments, a flipped bit) is refused without
being understood. Any zip tool reads the result; an archive written by another tool is not an engine file.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

PAGE = 4096
"""Entries begin at multiples of this, so that each can be mapped into memory."""

FIRST = "weights.bin"
"""Name of the first entry of every engine file; it tells an engine file from other archives."""

_NAME = re.compile(r"(?:[a-z0-9_][a-z0-9_.-]*/)*[a-z0-9_][a-z0-9_.-]*\Z")
_MAX_ENTRIES = 1024
_SATURATED = 0xFFFFFFFF  # a 32-bit field with this value says: see the ZIP64 field
_ZIP64_FROM = _SATURATED  # sizes and positions from here on are written that way

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")

_EXTRA_ZIP64 = 0x0001
_EXTRA_PADDING = 0xD935  # the identifier that Android's zipalign uses for the same purpose
_EXTRA_HEADER = struct.Struct("<HH")
_LOCAL_RESERVE = _EXTRA_HEADER.size + 16 + _EXTRA_HEADER.size  # room for a ZIP64 field and for the padding's header

_UNIX = 3 << 8
_REGULAR_FILE = 0o100644 << 16
_DATE = 0x21  # 1980-01-01, the earliest that ZIP knows: equal content gives equal bytes


class LayoutError(Exception):
    """The bytes are not a container in our form; engine_file says what that means for the user."""


class TruncatedError(LayoutError):
    """The container begins as ours but does not end as one."""


@dataclass(frozen=True)
class Member:
    """One stored file: where its bytes lie in the container, how many, and their CRC-32."""

    name: str
    start: int  # of the local header
    size: int
    crc: int

    @property
    def offset(self) -> int:
        """Where the bytes begin: the first page boundary after the header."""
        header = _LOCAL.size + len(self.name) + _LOCAL_RESERVE
        return -(-(self.start + header) // PAGE) * PAGE

    @property
    def end(self) -> int:
        """Where the next header begins."""
        return self.offset + self.size


def looks_like_container(head: bytes) -> bool:
    """Whether a file's first bytes (64, or all it has) are those of a container, complete or not."""
    name = head[_LOCAL.size : _LOCAL.size + len(FIRST)]
    return b"PK\x03\x04".startswith(head[:4]) and FIRST.encode().startswith(name)


def check_name(name: str) -> None:
    """Lower-case relative paths only, so that unpacking is safe on every file system. Raises LayoutError."""
    if not _NAME.match(name) or len(name) > 255:
        raise LayoutError(f"entry name {name!r} is not allowed")


# --- writing


def append(file: BinaryIO, name: str, chunks: Iterable[bytes], observe: Callable[[bytes], object]) -> Member:
    """Write one entry at the file's position; ``observe`` sees every chunk on its way (to hash it)."""
    check_name(name)
    start = file.tell()
    offset = Member(name, start, 0, 0).offset
    file.write(bytes(offset - start))
    size = crc = 0
    for chunk in chunks:
        observe(chunk)
        crc = zlib.crc32(chunk, crc)
        size += len(chunk)
        file.write(chunk)
    member = Member(name, start, size, crc)
    file.seek(start)
    file.write(_local_header(member))
    file.seek(member.end)
    return member


def finish(file: BinaryIO, members: Sequence[Member]) -> None:
    """Write the central directory behind the last entry."""
    file.write(_directory(members))


def _local_header(member: Member) -> bytes:
    zip64 = _zip64(member.size, member.size)
    size = _narrow(member.size)
    extra_size = member.offset - member.start - _LOCAL.size - len(member.name)
    padding = extra_size - len(zip64) - _EXTRA_HEADER.size
    extra = zip64 + _EXTRA_HEADER.pack(_EXTRA_PADDING, padding) + bytes(padding)
    needed = 45 if zip64 else 20
    head = _LOCAL.pack(b"PK\x03\x04", needed, 0, 0, 0, _DATE, member.crc, size, size, len(member.name), len(extra))
    return head + member.name.encode() + extra


def _directory(members: Sequence[Member]) -> bytes:
    parts = [_central_header(m) for m in members]
    start = members[-1].end
    size = sum(map(len, parts))
    if start >= _ZIP64_FROM:
        end64 = _END64.pack(
            b"PK\x06\x06", _END64.size - 12, _UNIX | 45, 45, 0, 0, len(members), len(members), size, start
        )
        parts += [end64, _LOCATOR.pack(b"PK\x06\x07", 0, start + size, 1)]
    parts.append(_END.pack(b"PK\x05\x06", 0, 0, len(members), len(members), size, _narrow(start), 0))
    return b"".join(parts)


def _central_header(member: Member) -> bytes:
    extra = _zip64(member.size, member.size, member.start)
    needed = 45 if extra else 20
    size, start = _narrow(member.size), _narrow(member.start)
    head = _CENTRAL.pack(
        b"PK\x01\x02", _UNIX | needed, needed, 0, 0, 0, _DATE, member.crc, size, size,
        len(member.name), len(extra), 0, 0, 0, _REGULAR_FILE, start,
    )  # fmt: skip
    return head + member.name.encode() + extra


def _narrow(value: int) -> int:
    return value if value < _ZIP64_FROM else _SATURATED


def _zip64(*values: int) -> bytes:
    """The extra field with those of the values that do not fit into 32 bits; empty where all do."""
    wide = [v for v in values if v >= _ZIP64_FROM]
    return _EXTRA_HEADER.pack(_EXTRA_ZIP64, 8 * len(wide)) + struct.pack(f"<{len(wide)}Q", *wide) if wide else b""


# --- reading


def read(file: BinaryIO, total: int) -> tuple[Member, ...]:
    """The entries of a container of ``total`` bytes; their content is not read.

    Raises TruncatedError where the end is missing, LayoutError where anything but the content of entries differs from
    what ``append`` and ``finish`` write.
    """
    file.seek(max(0, total - _END.size))
    tail = file.read(_END.size)
    if len(tail) < _END.size or tail[:4] != b"PK\x05\x06":
        raise TruncatedError("the end of the archive is missing")
    _, _, _, _, count, size, start, _ = _END.unpack(tail)
    if start == _SATURATED:
        start = total - _END.size - _LOCATOR.size - _END64.size - size
    if not 0 < count <= _MAX_ENTRIES or not 0 <= start <= total - size:
        raise LayoutError("the archive's directory is damaged")
    file.seek(start)
    directory = file.read(total - start)
    members = _members(directory, count)
    if members[0].name != FIRST or members[-1].end != start or _directory(members) != directory:
        raise LayoutError(
            "the archive's directory is not in the form of an engine file (if a zip tool wrote it, unzip it and run: "
            "declip pack FOLDER -o x.engine)"
        )
    for member in members:
        expected = _local_header(member)
        file.seek(member.start)
        if file.read(len(expected)) != expected:
            raise LayoutError(f"the header of {member.name} is damaged")
    return members


def _members(directory: bytes, count: int) -> tuple[Member, ...]:
    """Entries in the order of the directory, laid out behind one another."""
    members: list[Member] = []
    at = start = 0
    for _ in range(count):
        if len(directory) < at + _CENTRAL.size:
            raise LayoutError("the archive's directory ends too early")
        fields = _CENTRAL.unpack_from(directory, at)
        crc, size, name_size, extra_size = fields[7], fields[9], fields[10], fields[11]
        at += _CENTRAL.size
        name = directory[at : at + name_size].decode("latin-1")
        check_name(name)
        at += name_size
        if size == _SATURATED:
            wide = directory[at + _EXTRA_HEADER.size : at + _EXTRA_HEADER.size + 8]
            size = int.from_bytes(wide, "little")
        at += extra_size
        members.append(Member(name, start, size, crc))
        start = members[-1].end
    if len({m.name for m in members}) != count:
        raise LayoutError("two entries share a name")
    return tuple(members)
