"""The table that people read in a terminal."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from declip_runtime.scorer_manifest import ScoreSpec
from declip_runtime.scores import Score

from .output import Output
from .screen import draw, ellipsis, printable
from .text import count, shorten

_BAR_CELLS = 10
_EIGHTHS = " ▏▎▍▌▋▊▉"
_NAME_MIN, _NAME_MAX = 16, 60
_GAP = 2
NOT_VALIDATED = "not validated"


class TableWriter:
    """Collects scores and draws them when all are there, in the order they came; failed ones go below."""

    def __init__(self, stream: Output, specs: Sequence[ScoreSpec], lead: str, views: int) -> None:
        self._stream = stream
        self._specs = specs
        self._lead = lead
        self._views = views
        self._scores: list[Score] = []

    def write(self, score: Score) -> None:
        """Add one image."""
        self._scores.append(score)

    def finish(self, left_out: int) -> None:
        """Draw."""
        draw(self._stream, lambda console: self._page(left_out, console))

    def _page(self, left_out: int, console: Console) -> RenderableType:
        return score_table(self._scores, self._specs, self._lead, self._views, left_out, console)


def score_table(
    scores: Sequence[Score], specs: Sequence[ScoreSpec], lead: str, views: int, left_out: int, console: Console
) -> RenderableType:
    """Scored images as given, ``lead`` with bars in front; failed ones below with their reasons.

    A line below says in which direction the columns count. Columns that do not fit the console's width are named in
    another instead of being squeezed, and so is the number of images that were left out. So is a number of ``views``
    other than the one of the calibration.
    """
    folder = _common_folder([s.image for s in scores])
    good = [s for s in scores if s.error is None]
    failed = [s for s in scores if s.error is not None]
    parts: list[RenderableType] = []
    if good:
        parts += _good(good, specs, lead, folder, console)
        if views > 1:
            note = f"views={views}: calibrated with one view; compare with scores of the same views only"
            parts.append(_note(note))
    if left_out:
        parts.append(_note(f"{count(left_out, 'more image')} left out by --min or --top"))
    if failed:
        parts += _failed(failed, folder, console)
    return Group(*parts)


def _good(
    scores: Sequence[Score], specs: Sequence[ScoreSpec], lead: str, folder: str, console: Console
) -> list[RenderableType]:
    names = [printable(s.image[len(folder) :], console) for s in scores]
    heading, cut = printable(folder, console) or "image", ellipsis(console)
    name_width = min(max(map(cell_len, [*names, heading])), _NAME_MAX)
    ordered = sorted(specs, key=lambda spec: spec.name != lead)  # stable: the lead first, then the engine's order
    shown, name_width = _fit(ordered, name_width, console.width - len(str(len(scores))) - _GAP)

    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("", justify="right", style="dim")
    table.add_column(Text(shorten(heading, name_width, cut)), width=name_width, no_wrap=True)
    for spec in shown:
        leads = spec.name == lead
        table.add_column(_score_heading(spec, leads), justify="left" if leads else "right", no_wrap=True)
    for place, (score, name) in enumerate(zip(scores, names, strict=True), start=1):
        cells = [_cell(score[spec.name], spec, spec.name == lead, console.options.ascii_only) for spec in shown]
        table.add_row(str(place), Text(shorten(name, name_width, cut)), *cells)

    parts: list[RenderableType] = [table]
    if len(shown) > 1:
        parts.append(_note(_directions(shown)))
    if hidden := [spec.name for spec in ordered if spec not in shown]:
        note = f"{count(len(hidden), 'more score')} in a wider terminal or with --format csv: {', '.join(hidden)}"
        parts.append(_note(note))
    return parts


def _directions(specs: Sequence[ScoreSpec]) -> str:
    """What a high value says; that much noise is little of it, the name does not tell."""
    words = {"quality": "better", "degree": "more"}
    named = {kind: [spec.name for spec in specs if spec.kind == kind] for kind in words}
    return "; ".join(f"higher is {words[kind]}: {', '.join(names)}" for kind, names in named.items() if names)


def _note(text: str) -> RenderableType:
    return Padding(Text(text, style="dim italic"), (1, 0, 0, 0))


def _fit(ordered: Sequence[ScoreSpec], name_width: int, width: int) -> tuple[list[ScoreSpec], int]:
    """The scores whose columns fit, and what then remains for the name."""
    widths = [_column_width(spec, i == 0) + _GAP for i, spec in enumerate(ordered)]
    shown = len(ordered)
    while shown > 1 and sum(widths[:shown]) + min(name_width, _NAME_MIN) + _GAP > width:
        shown -= 1
    room = width - sum(widths[:shown]) - _GAP
    return list(ordered[:shown]), max(min(name_width, room), 1)


def _column_width(spec: ScoreSpec, lead: bool) -> int:
    heading = max(cell_len(line) for line in _score_heading(spec, lead).plain.split("\n"))
    return max(heading, len("0.00") + (1 + _BAR_CELLS if lead else 0))


def _score_heading(spec: ScoreSpec, lead: bool) -> Text:
    heading = Text(spec.name)
    if spec.validated is None:  # the lead's column is wide enough for one line
        heading.append("\n" + (NOT_VALIDATED if lead else NOT_VALIDATED.replace(" ", "\n")), "not bold dim italic")
    return heading


def _cell(value: float, spec: ScoreSpec, lead: bool, ascii_only: bool) -> Text:
    colour = _colour(value, spec)
    cell = Text(f"{value:.2f}", style=colour)
    if lead:
        cell.append(" ").append(_bar(value, ascii_only), style=colour)
    return cell


def _bar(value: float, ascii_only: bool) -> str:
    eighths = round(min(max(value, 0.0), 1.0) * _BAR_CELLS * 8)
    if ascii_only:
        return "#" * round(eighths / 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (_EIGHTHS[rest] if rest else "")


def _colour(value: float, spec: ScoreSpec) -> str:
    """Red to green where more is better; one neutral colour where more is only more."""
    if spec.kind == "degree":
        return "cyan"
    red, green = min(1.0, 2.0 * (1.0 - value)), min(1.0, 2.0 * value)
    return f"rgb({_channel(red)},{_channel(green)},{_channel(0.3)})"


def _channel(share: float) -> int:
    return math.floor(60 + 150 * min(max(share, 0.0), 1.0))


def _failed(scores: Sequence[Score], folder: str, console: Console) -> list[RenderableType]:
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, show_header=False)
    names = [printable(s.image[len(folder) :], console) for s in scores]
    name_width = min(max(map(cell_len, names)), _NAME_MAX, max(console.width // 3, 1))
    table.add_column(width=name_width, no_wrap=True)
    table.add_column(style="red")
    for score, name in zip(scores, names, strict=True):
        reason = str(score.error).removeprefix(f"{score.image!r} ")  # the name stands beside it
        table.add_row(Text(shorten(name, name_width, ellipsis(console))), Text(printable(reason, console)))
    return [Padding(Text(f"{len(scores)} failed", style="bold red"), (1, 0, 0, 0)), table]


def _common_folder(paths: Sequence[str]) -> str:
    """The folder, with its trailing separator, that all paths start with; empty where there is none."""
    folders = {path[: path.rfind(os.sep) + 1] for path in paths}
    shared = min(folders, key=len, default="")
    while not all(folder.startswith(shared) for folder in folders):
        shared = shared[: shared.rfind(os.sep, 0, -1) + 1]
    return shared
