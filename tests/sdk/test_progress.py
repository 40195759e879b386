"""The bar of ``declip score`` and ``declip evaluate``: its rate is true although answers come a batch at once."""

from __future__ import annotations

import io
import re
import sys
from typing import Any

import pytest
from rich.console import Console

from declip_sdk.cli import progress


class Clock:
    """Seconds that pass only when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def terminal(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a person sees."""
    seen = io.StringIO()

    def console(**_: Any) -> Console:
        return Console(file=seen, force_terminal=True, width=120, color_system=None, get_time=clock, _environ={})

    monkeypatch.setattr(progress, "Console", console)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    return seen


def last(terminal: io.StringIO) -> str:
    """The bar as it was drawn last."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("total", "batches", "rate", "left"),
    [
        (18_740, [(4.0, 48)], "12/s", "0:25:58"),
        (18_740, [(4.0, 48), (4.0, 48)], "12/s", "0:25:54"),
        (100, [(8.0, 32), (8.0, 32)], "4.0/s", "0:00:09"),
        (150, [(1.0, 75), (1.0, 75)], "75/s", "0:00:00"),
        (None, [(2.0, 64)], "32/s", ""),
    ],
)
def test_rate_and_remaining_time_count_from_the_start(
    total: int | None, batches: list[tuple[float, int]], rate: str, left: str, clock: Clock, terminal: io.StringIO
) -> None:
    with progress.progress_bar(total, shown=True) as advance:
        for seconds, answers in batches:
            clock.now += seconds
            for _ in range(answers):  # all at once, as a batch is
                advance()
    assert re.findall(r"[0-9.,]+/s|\d+:\d\d:\d\d", last(terminal)) == [rate, *filter(None, [left])]


@pytest.mark.parametrize(("seconds", "answers"), [(0.4, 32), (5.0, 0)])
def test_nothing_is_said_before_something_is_known(
    seconds: float, answers: int, clock: Clock, terminal: io.StringIO
) -> None:
    with progress.progress_bar(34_021, shown=True) as advance:
        clock.now += seconds
        for _ in range(answers):
            advance()
    shown = last(terminal)
    assert f"{answers}/34021" in shown
    assert not re.search(r"\d/s|:\d\d", shown)


def test_the_rate_of_what_stands_still_falls(clock: Clock, terminal: io.StringIO) -> None:
    with progress.progress_bar(1000, shown=True) as advance:
        clock.now += 1.0
        for _ in range(20):
            advance()
        clock.now += 9.0
    assert "2.0/s" in last(terminal)
