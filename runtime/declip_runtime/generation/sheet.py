"""A contact sheet: pictures in a grid, with a label for every row and column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageOps

from declip_runtime.errors import UsageError
from declip_runtime.options import require_positive

from .lettering import Font, legible, wrapped

_PAPER, _INK, _EMPTY = "white", "black", "lightgray"
_LARGEST = 16_384
"""Pixels a side; viewers have trouble with more."""
_CELLS = (256, 192, 128, 96, 64)


def contact_sheet(
    pictures: Sequence[Sequence[Image.Image | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str = "",
    cell: int = 256,
    font: str | None = None,
) -> Image.Image:
    """Lay out a grid of pictures, as RGB.

    Args:
        pictures: row by row; every row has one for each column. None leaves the place grey.
        rows: their labels.
        columns: their labels.
        title: what all have in common, mostly the prompt, in any script; long ones are wrapped and cut.
        cell: pixels a side that a picture is fitted into.
        font: file of the font; None takes the first at hand that has the letters. Letters that no font has become
            question marks.

    Raises UsageError where labels and pictures do not match, and for a sheet that would be too large.
    """
    if len(pictures) != len(rows) or any(len(row) != len(columns) for row in pictures) or not rows or not columns:
        raise UsageError(
            f"{len(rows)} rows and {len(columns)} columns are labelled, the pictures are"
            f" {[len(row) for row in pictures]} in {len(pictures)} rows. Give a label for each, and a picture or None."
        )
    layout = _laid_out(len(rows), columns, title, cell, font)
    sheet = Image.new("RGB", layout.size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, layout.heading, (layout.gap, layout.gap), layout.line)
    for number, lettering in enumerate(layout.headings):
        _write(draw, lettering, (layout.left(number), layout.top), layout.line)
    for number, (label, row) in enumerate(zip(rows, pictures, strict=True)):
        y = layout.above + number * (cell + layout.gap)
        lettering = _lines(label, layout.letter, layout.side - layout.gap, max(cell // layout.line, 1), font)
        _write(draw, lettering, (layout.gap, y), layout.line)
        for column, picture in enumerate(row):
            _place(sheet, picture, (layout.left(column), y), cell)
    return sheet


def largest_cell(rows: int, columns: Sequence[str], title: str = "", font: str | None = None) -> int:
    """The largest ``cell``, up to 256, with which a sheet of so many rows is not too large.

    Raises UsageError where no cell that shows something is small enough.
    """
    *larger, smallest = _CELLS
    for cell in larger:
        try:
            _laid_out(rows, columns, title, cell, font)
        except UsageError:
            continue
        return cell
    _laid_out(rows, columns, title, smallest, font)
    return smallest


Lettering = tuple[list[str], Font]


@dataclass(frozen=True)
class _Layout:
    """Where things are on a sheet, in pixels: ``letter`` and ``line`` are heights, ``side`` is the labels' width."""

    cell: int
    letter: int
    line: int
    gap: int
    side: int
    top: int
    above: int
    size: tuple[int, int]
    heading: Lettering
    headings: list[Lettering]

    def left(self, column: int) -> int:
        """Where a column begins."""
        return self.side + self.gap + column * (self.cell + self.gap)


def _laid_out(rows: int, columns: Sequence[str], title: str, cell: int, font: str | None) -> _Layout:
    require_positive("cell", cell)
    letter = min(max(cell // 14, 11), 28)
    gap, line = max(letter // 3, 2), letter + letter // 3
    side = max(min(cell * 2 // 3, 8 * letter), 4 * letter)
    width = side + gap + len(columns) * (cell + gap)
    headings = [_lines(text, letter, cell, 3, font) for text in columns]
    heading = _lines(title, letter, width - 2 * gap, 3, font)
    top = gap + len(heading[0]) * line + (gap if heading[0] else 0)
    above = top + max(len(lines) for lines, _ in headings) * line + gap
    height = above + rows * (cell + gap)
    if max(width, height) > _LARGEST:
        raise UsageError(
            f"a sheet of {width} x {height} pixels is over {_LARGEST} a side. Choose a smaller cell, or fewer pictures."
        )
    return _Layout(cell, letter, line, gap, side, top, above, (width, height), heading, headings)


def _lines(text: str, size: int, width: int, most: int, font: str | None) -> Lettering:
    written, chosen = legible(text, size, font)
    return wrapped(written, chosen, width, most), chosen


def _write(draw: ImageDraw.ImageDraw, lettering: Lettering, at: tuple[int, int], line: int) -> None:
    lines, font = lettering
    for number, text in enumerate(lines):
        draw.text((at[0], at[1] + number * line), text, fill=_INK, font=font)


def _place(sheet: Image.Image, picture: Image.Image | None, at: tuple[int, int], cell: int) -> None:
    if picture is None:
        sheet.paste(_EMPTY, (*at, at[0] + cell, at[1] + cell))
        return
    fitted = ImageOps.contain(picture.convert("RGB"), (cell, cell), Image.Resampling.LANCZOS)
    sheet.paste(fitted, (at[0] + (cell - fitted.width) // 2, at[1] + (cell - fitted.height) // 2))
