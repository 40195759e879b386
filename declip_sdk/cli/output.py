"""Where results go: standard output, or a file that appears complete or not at all."""

from __future__ import annotations

import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import click

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
        return "table" if sys.stdout is not None and sys.stdout.isatty() else "csv"
    try:
        return _BY_SUFFIX[output.suffix.lower()]
    except KeyError:
        raise UsageError(
            f"the format of {output} does not follow from its name. Use one of {', '.join(_BY_SUFFIX)}, or --format."
        ) from None


class Output:
    """A stream of bytes whose failures name what could not be written: OutputError, or BrokenPipeError."""

    def __init__(self, stream: BinaryIO, output: Path | None = None) -> None:
        self._stream = stream
        self._output = output

    def write(self, data: bytes) -> None:
        """Write all of ``data``, at the latest with the next flush."""
        with writing(self._output):
            self._stream.write(data)

    def flush(self) -> None:
        """Let the other side see what was written."""
        with writing(self._output):
            self._stream.flush()

    def isatty(self) -> bool:
        """Whether a person reads it in a terminal."""
        return self._stream.isatty()


class OutputError(click.ClickException):
    """What was computed cannot be written; no use to go on."""


def standard_output() -> Output:
    """Standard output; raises UsageError where there is none."""
    if sys.stdout is None:
        raise UsageError("standard output is closed. Redirect it, or write a file with -o.")
    return Output(sys.stdout.buffer)


@contextmanager
def open_output(output: Path | None) -> Iterator[Output]:
    """Standard output, or ``output``, which is replaced only when the block ends without error.

    Raises UsageError for what is no place for a file, OutputError where the system does not write it.
    """
    if output is None:
        yield standard_output()
        return
    require_place(output)
    target = output.resolve()  # through a link, so that the link stays
    if target.exists() and not target.is_file():  # a device or a pipe is written to, never replaced
        with writing(output):
            stream = target.open("wb")
        with _closing(stream, output) as guarded:
            yield guarded
        return
    partial = target.parent / f".declip-{uuid.uuid4().hex}.partial"  # short: a legal name may fill all 255 bytes
    try:
        with writing(output):
            stream = partial.open("xb")
        with _closing(stream, output) as guarded:
            yield guarded
        with writing(output):
            partial.replace(target)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def _closing(stream: BinaryIO, output: Path) -> Iterator[Output]:
    try:
        yield Output(stream, output)
        with writing(output):
            stream.close()
    finally:
        with suppress(OSError):  # there is an error on its way already, or nothing left to write
            stream.close()


def require_place(output: Path) -> None:
    """Raise now, before minutes of work, where no file could be written at ``output``.

    Raises UsageError or OutputError.
    """
    with writing(output):
        if output.is_dir():
            raise UsageError(f"{output} is a folder. Name a file to write.")
        if not output.parent.is_dir():
            raise UsageError(f"cannot write {output}: the folder {output.parent} does not exist. Create it.")
        with suppress(FileNotFoundError):
            output.lstat()  # is the name too long?
        if not output.exists() or output.is_file():  # a device or pipe needs nothing beside it
            with tempfile.TemporaryFile(dir=output.resolve().parent):
                pass


@contextmanager
def writing(output: Path | None) -> Iterator[None]:
    """Make the OSError of a block that writes ``output``, None for standard output, an OutputError with its reason."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if isinstance(error, DeclipError):
            raise
        place = "standard output" if output is None else output
        raise OutputError(
            f"cannot write {place}: {error.strerror or error}. Choose another place with -o, or free some space."
        ) from error
