"""Facts as `declip info` and `declip doctor` show them: names on the left, what backends can do, what is chosen."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .screen import separator
from .text import visible


def empty_grid() -> Table:
    """A table without lines whose first column keeps its width."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    return table


def grid(facts: Mapping[str, str]) -> Table:
    """One line a fact; empty ones are left out."""
    table = empty_grid()
    for name, value in facts.items():
        if value:
            table.add_row(Text(f"  {visible(name)}", style="dim"), Text(visible(value), overflow="fold"))
    return table


def states(reasons: Mapping[str, str | None]) -> Table:
    """A line for each thing that can be used (None) or not (the reason)."""
    table = empty_grid()
    for name, reason in reasons.items():
        state = Text("ready", style="green") if reason is None else Text(visible(reason), style="dim")
        table.add_row(Text(f"  {visible(name)}"), state)
    return table


def choice(chosen: Mapping[str, str], console: Console) -> tuple[str, str]:
    """What ``Scorer`` would take, or in red why it would take nothing: text and style."""
    failed = chosen.get("error")
    return (visible(" ".join(failed.split())), "red") if failed else (separator(console).join(chosen.values()), "bold")
