"""One call of ``declip``: its verb is run, and whatever goes wrong becomes one line and an exit code."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

import click

from declip_runtime.errors import DeclipError

from . import signals
from .group import declip
from .say import abandon, say
from .words import in_words_of_options

WRONG_USE = 2
BROKEN_PIPE = 141


def invoke(arguments: Sequence[str]) -> int:
    """Run one verb and return the exit code; errors and warnings become one line each on standard error."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, _category, file, *_: _show(str(message), file)
        code = _guarded(arguments)
        _settle()
        return code


def _show(message: str, file: str) -> None:
    """One line; nothing of what Pillow thinks of a picture's metadata, which names no picture and changes no score."""
    if f"{os.sep}PIL{os.sep}" not in file:
        say(in_words_of_options(message))


def _guarded(arguments: Sequence[str]) -> int:
    try:
        code = _verb(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except click.exceptions.NoArgsIsHelpError as error:  # a verb group without its sub-command
        click.echo(error.format_message())
        return WRONG_USE
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "declip"
        return _complain(f"{error.format_message()} See: {where} --help", WRONG_USE)
    except click.ClickException as error:
        return _complain(error.format_message(), WRONG_USE)
    except DeclipError as error:
        return _complain(in_words_of_options(str(error)), WRONG_USE)
    except KeyboardInterrupt as interrupt:
        return _complain(signals.word(interrupt), signals.exit_code(interrupt))
    except click.Abort:
        return _complain("interrupted", signals.INTERRUPTED)
    except BrokenPipeError:
        return BROKEN_PIPE
    except OSError as error:
        return _complain(_what_the_system_refused(error), WRONG_USE)


def _verb(arguments: Sequence[str]) -> int:
    # Not declip.main(): that would end a broken pipe with exit code 1, which means failed images here.
    try:
        with declip.make_context("declip", list(arguments) or ["--help"]) as context:
            declip.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    return 0


def _what_the_system_refused(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.filename is not None:
        return f"{error.filename}: {reason}. Check the path, its permissions and the space on its disk."
    if error.errno is None:  # raised by a library that found a file wrong, not by the system
        return f"{error}. This was not foreseen; please report what was given."
    # Files are read and written under their names, so what has none is standard output.
    return f"cannot write to standard output: {reason}. Send it to another place."


def _settle() -> None:
    """Leave nothing in standard output that the interpreter would fail to write when it ends."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:
            abandon(sys.stdout)


def _complain(message: str, code: int) -> int:
    say(message)
    return code
