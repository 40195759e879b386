"""A contact sheet: pictures in a grid, with a label for every row and column."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageOps

from declip_runtime.errors import UsageError
from declip_runtime.options import require_positive

from .lettering import Font, legible, wrapped

_PAPER, _INK, _EMPTY = "white", "black", "lightgray"
_LARGEST = 16_384
"""Pixels a side; viewers have trouble with more."""


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
    require_positive("cell", cell)
    if len(pictures) != len(rows) or any(len(row) != len(columns) for row in pictures) or not rows or not columns:
        raise UsageError(
            f"{len(rows)} rows and {len(columns)} columns are labelled, the pictures are"
            f" {[len(row) for row in pictures]} in {len(pictures)} rows. Give a label for each, and a picture or None."
        )
    letter = min(max(cell // 14, 11), 28)
    gap, line = max(letter // 3, 2), letter + letter // 3
    side = max(min(cell * 2 // 3, 8 * letter), 4 * letter)
    width = side + gap + len(columns) * (cell + gap)
    headings = [_lines(text, letter, cell, 3, font) for text in columns]
    heading = _lines(title, letter, width - 2 * gap, 3, font)
    top = gap + len(heading[0]) * line + (gap if heading[0] else 0)
    above = top + max(len(lines) for lines, _ in headings) * line + gap
    height = above + len(rows) * (cell + gap)
    if max(width, height) > _LARGEST:
        raise UsageError(
            f"a sheet of {width} x {height} pixels is over {_LARGEST} a side. Choose a smaller cell, or fewer pictures."
        )
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, heading, (gap, gap), line)
    for number, lettering in enumerate(headings):
        _write(draw, lettering, (side + gap + number * (cell + gap), top), line)
    for number, (label, row) in enumerate(zip(rows, pictures, strict=True)):
        y = above + number * (cell + gap)
        _write(draw, _lines(label, letter, side - gap, max(cell // line, 1), font), (gap, y), line)
        for column, picture in enumerate(row):
            _place(sheet, picture, (side + gap + column * (cell + gap), y), cell)
    return sheet


Lettering = tuple[list[str], Font]


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
