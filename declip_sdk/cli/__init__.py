"""The command line: one file a verb, imported when called.

Exit codes of every verb: 0 all done (``score``: all images scored), 1 some images failed, 2 wrong use or an engine,
backend or file that cannot be used, 130 interrupted by Ctrl-C, 141 the reader of our output went away (as of a
program ended by SIGPIPE).
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

import click

from declip_runtime.errors import DeclipError

from .group import declip
from .text import visible

WRONG_USE = 2
INTERRUPTED = 130
BROKEN_PIPE = 141


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``declip``: run one verb and leave the process with its exit code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one verb and return the exit code; errors and warnings become one line each on standard error."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: _say(str(message))
        return _run(arguments)


def _run(arguments: Sequence[str]) -> int:
    try:
        # Not declip.main(): that would end a broken pipe with exit code 1, which means failed images here.
        with declip.make_context("declip", list(arguments) or ["--help"]) as context:
            declip.invoke(context)
        sys.stdout.flush()
        return 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as error:  # a verb group without its sub-command
        click.echo(error.format_message())
        return WRONG_USE
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "declip"
        return _complain(f"{error.format_message()} See: {where} --help", WRONG_USE)
    except click.ClickException as error:
        return _complain(error.format_message(), WRONG_USE)
    except DeclipError as error:
        return _complain(str(error), WRONG_USE)
    except (KeyboardInterrupt, click.Abort):
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # What is still buffered has no reader either; without this the interpreter would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def _complain(message: str, code: int) -> int:
    _say(message)
    return code


def _say(message: str) -> None:
    click.echo(f"declip: {visible(' '.join(message.split()))}", err=True)
