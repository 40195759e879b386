"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")


def engine_option(command: _Command) -> _Command:
    """``--engine``."""
    return click.option("--engine", metavar="FILE", help="Engine file; default is the bundled one.")(command)


def backend_options(command: _Command) -> _Command:
    """``--backend``, ``--device``, ``--precision``, ``--threads``."""
    for option in (
        click.option("--threads", type=click.IntRange(1), metavar="N", help="CPU budget; default is every CPU."),
        click.option("--precision", type=click.Choice(PRECISIONS), default="auto", show_default=True),
        click.option("--device", metavar="NAME", help="Device, as the backend names it."),
        click.option("--backend", default="auto", show_default=True, metavar="NAME", help="See: declip info"),
    ):
        command = option(command)
    return command
