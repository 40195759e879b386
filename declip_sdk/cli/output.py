"""Where results go: standard output, or a file that appears complete or not at all."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import click

from declip_runtime.errors import DeclipError, UsageError

from .paths import IMAGE_SUFFIXES, UNREADABLE_SUFFIXES
from .text import count

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


def file_or_standard_output(_context: click.Context, _parameter: click.Parameter, value: Path | None) -> Path | None:
    """The callback of an option ``-o``: None, which is standard output, also for ``-`` and ``/dev/stdout``."""
    return None if value is None or value == Path("-") or _is_standard_output(value) else value


def _is_standard_output(output: Path) -> bool:
    if sys.stdout is None:
        return False
    try:
        return os.path.samestat(output.stat(), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError):  # there is no such file yet, or standard output is none
        return False


class Output:
    """A stream of bytes whose failures name what could not be written: OutputError, or BrokenPipeError.

    ``incomplete`` is set by who writes less than was asked for; ``place`` is where a file went, once it is closed.
    """

    def __init__(self, stream: BinaryIO, output: Path | None = None) -> None:
        self._stream = stream
        self._output = output
        self.incomplete = False
        self.place = output

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
def open_output(output: Path | None, heading: int | None = None) -> Iterator[Output]:
    """Standard output, or ``output``, which is replaced only when the block ends without error and keeps its mode.

    What is ``incomplete`` replaces nothing: it is put beside a file that is there already, as name.partial.csv. Where
    every line behind the first ``heading`` ones is of use by itself (None: it is not), so are those that were written
    before writing failed, as on a full disk.
    Raises UsageError for what is no place for a file, OutputError where the system does not write it.
    """
    if output is None:
        yield standard_output()
        return
    require_place(output)
    if output.exists() and not output.is_file():  # a device or a pipe is written to, never replaced
        with writing(output):
            stream = output.open("wb")
        with _closing(stream, output) as guarded:
            yield guarded
        return
    target = output.resolve()  # through a link, so that the link stays
    partial = target.parent / f".declip-{uuid.uuid4().hex}.partial"  # short: a legal name may fill all 255 bytes
    fragment = target.with_name(f"{target.stem}.partial{target.suffix}")
    try:
        with writing(output):
            stream = partial.open("xb")
        try:
            with _closing(stream, output) as guarded:
                yield guarded
        except OutputError as error:
            if heading is not None and (rows := _keep_rows(partial, fragment, heading)) > 0:
                kept = f"{count(rows, 'row')} before that: {output.with_name(fragment.name)}."
                raise OutputError(f"{error.message} {kept}") from error
            raise
        with writing(output):
            if guarded.incomplete and target.exists() and target.stat().st_size:
                target = fragment
                guarded.place = output.with_name(target.name)
            if target.exists():
                partial.chmod(stat.S_IMODE(target.stat().st_mode))
            partial.replace(target)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _keep_rows(path: Path, fragment: Path, heading: int) -> int:
    """Make ``path`` the file ``fragment``, up to its last whole line, where it has some behind ``heading`` lines; how
    many these are, 0 where that fails.
    """
    try:
        content = path.read_bytes()
        if (rows := content.count(b"\n") - heading) > 0:
            os.truncate(path, content.rfind(b"\n") + 1)
            path.replace(fragment)
    except OSError:  # what went wrong first is on its way already
        return 0
    return rows


@contextmanager
def _closing(stream: BinaryIO, output: Path) -> Iterator[Output]:
    try:
        yield Output(stream, output)
        with writing(output):
            stream.close()
    finally:
        with suppress(OSError):  # there is an error on its way already, or nothing left to write
            stream.close()


def require_place(
    output: Path, inputs: Iterable[str] = (), *, may_replace: Callable[[Path], bool] = lambda _: False
) -> None:
    """Raise now, before minutes of work, where no file could or should be written at ``output``.

    What should not be replaced: a photo, but for one that ``may_replace`` knows as ours, one of the ``inputs``, a file
    that is write-protected.

    Raises UsageError or OutputError.
    """
    with writing(output):
        if output.is_dir():
            raise UsageError(f"{output} is a folder. Name a file to write.")
        if not output.parent.is_dir():
            raise UsageError(f"cannot write {output}: the folder {output.parent} does not exist. Create it.")
        with suppress(FileNotFoundError):
            output.lstat()  # is the name too long?
        if output.is_file():
            _require_replaceable(output, inputs, may_replace)
        if not output.exists() or output.is_file():  # a device or pipe needs nothing beside it
            with tempfile.TemporaryFile(dir=output.resolve().parent):
                pass


def _require_replaceable(output: Path, inputs: Iterable[str], may_replace: Callable[[Path], bool]) -> None:
    if any(_is_same_file(output, path) for path in inputs):
        raise UsageError(f"{output} is read here and will not be overwritten. Name another file.")
    if output.suffix.lower() in IMAGE_SUFFIXES | UNREADABLE_SUFFIXES and not may_replace(output):
        raise UsageError(f"{output} is a photo and will not be overwritten. Name another file.")
    # The mode is looked at too, because a superuser may write everything.
    if not (output.stat().st_mode & 0o222 and os.access(output, os.W_OK)):
        raise UsageError(f"{output} is write-protected. Name another file, or allow writing: chmod u+w.")


def _is_same_file(output: Path, path: str) -> bool:
    try:
        return output.samefile(path)
    except (OSError, ValueError):  # there is no such image, which is told elsewhere
        return False


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
            f"cannot write {place}: {error.strerror or error}. Choose another place, or free some space."
        ) from error
