"""Where results go: standard output, or a file that appears complete or not at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from declip_runtime.errors import DeclipError, UsageError

FORMATS = ("table", "json", "jsonl", "csv")
_BY_SUFFIX = {".csv": "csv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "table"}


def choose_format(requested: str | None, output: Path | None) -> str:
    """The format asked for, else the one of the file's extension, else a table for people and CSV for a pipe.

    Raises UsageError for an extension that says nothing.
    """
    if requested is not None:
        return requested
    if output is None:
        return "table" if sys.stdout.isatty() else "csv"
    try:
        return _BY_SUFFIX[output.suffix.lower()]
    except KeyError:
        raise UsageError(
            f"the format of {output} does not follow from its name. Use one of {', '.join(_BY_SUFFIX)}, or --format."
        ) from None


@contextmanager
def open_output(output: Path | None) -> Iterator[BinaryIO]:
    """A binary stream to standard output or to ``output``, which is replaced only when the block ends without error.

    Raises UsageError where the file cannot be written.
    """
    if output is None:
        yield sys.stdout.buffer
        return
    target = output.resolve()  # through a link, so that the link stays
    if target.is_dir():
        raise UsageError(f"{output} is a folder. Name a file to write.")
    in_place = target.exists() and not target.is_file()  # a device or a pipe is written to, never replaced
    partial = target if in_place else target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with writing(output):
            with partial.open("wb") as stream:
                yield stream
            if not in_place:
                partial.replace(target)
    finally:
        if not in_place:
            partial.unlink(missing_ok=True)


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Make the OSError of a block that writes ``output`` the user's: UsageError with the reason of the system."""
    try:
        yield
    except OSError as error:
        if isinstance(error, DeclipError):
            raise
        raise UsageError(f"cannot write {output}: {error.strerror}. Choose another place with -o.") from error
