"""Options that several verbs share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8", "fp8")
THREADS = "Threads that decode, and as many that compute; default is every CPU."


def _not_empty(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """An empty path is a variable that was not set, not the working directory and not the bundled engine."""
    if value == "":
        raise click.BadParameter("the path of the engine is empty. Name a file, or leave it out for the bundled one.")
    return value


def numbers(kind: Callable[[str], float]) -> Callable[[Any, Any, str | None], tuple[float, ...] | None]:
    """The callback of an option that takes numbers (``kind`` int or float) with commas between; None stays None."""

    def parse(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
        if value is None:
            return None
        try:
            found = tuple(kind(part) for part in value.split(","))
        except ValueError:
            found = (math.nan,)
        if not all(-math.inf < number < math.inf for number in found):
            example = "0.4,0.7,1" if kind is float else "0,1,2"
            raise click.BadParameter(f"{value!r} is not numbers with commas between, as {example}.")
        return found

    return parse


def engine_option(command: _Command) -> _Command:
    """``--engine``."""
    help_ = "Engine file; default is the bundled one."
    return click.option("--engine", metavar="FILE", callback=_not_empty, help=help_)(command)


def engine_argument(*, required: bool) -> Callable[[_Command], _Command]:
    """``ENGINE``; where it is not required, the default is the bundled one."""
    return click.argument("engine", required=required, callback=_not_empty)


def backend_options(command: _Command) -> _Command:
    """``--backend``, ``--device``, ``--precision``, ``--threads``."""
    for option in (
        click.option("--threads", type=click.IntRange(1), metavar="N", help=THREADS),
        click.option(
            "--precision",
            type=click.Choice(PRECISIONS),
            default="auto",
            show_default=True,
            help="Arithmetic; auto is what the hardware is fast in: bf16, fp16 or fp32.",
        ),
        click.option("--device", metavar="NAME", help="Device, as the backend names it."),
        click.option("--backend", default="auto", show_default=True, metavar="NAME", help="See: declip info"),
    ):
        command = option(command)
    return command
