"""Contact sheets: the conditions, and beside them the pictures of both methods."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from declip_runtime.generation.sheet import contact_sheet
from declip_runtime.images import open_image

from .conditions import ASPECTS, Condition
from .plan import METHODS
from .summary import Picture

_ROWS = 16
"""Conditions on a sheet."""
_CELL, _SMALLEST, _WIDTH = 256, 64, 12_000
"""Pixels: a place on the sheet, the least that it becomes for many strengths, and what all together should keep to."""


def contact_sheets(pictures: Sequence[Picture], folder: Path) -> dict[str, bytes]:
    """JPEG files by name, with up to 16 conditions each, of the pictures in ``folder``, of the first seed of all.

    A picture that there is not leaves its place empty.
    """
    seed = pictures[0].planned.seed
    files = {
        (p.planned.condition.name, p.planned.method, p.planned.scale): p.planned.file
        for p in pictures
        if p.planned.seed == seed and p.measures is not None
    }
    conditions = list({p.planned.condition.name: p.planned.condition for p in pictures}.values())
    scales = list(dict.fromkeys(p.planned.scale for p in pictures))
    made_by = [(method, scale) for scale in scales for method in METHODS]
    columns = [f"{aspect} image" for aspect in ASPECTS] + [f"{method}, strength {scale:g}" for method, scale in made_by]
    cell = max(min(_CELL, _WIDTH // len(columns)), _SMALLEST)
    pages = [conditions[start : start + _ROWS] for start in range(0, len(conditions), _ROWS)]
    found = {}
    for number, page in enumerate(pages, 1):
        grid = [
            [
                *(_small(condition.images.get(aspect), cell) for aspect in ASPECTS),
                *(_small(_place(folder, files.get((condition.name, *by))), cell) for by in made_by),
            ]
            for condition in page
        ]
        sheet = contact_sheet(grid, [_label(c) for c in page], columns, title=f"seed {seed}", cell=cell)
        stream = io.BytesIO()
        sheet.save(stream, "JPEG", quality=90)
        found[f"sheet-{number}.jpg"] = stream.getvalue()
    return found


def _label(condition: Condition) -> str:
    return f"{condition.name}: {condition.text}" if condition.text else condition.name


def _place(folder: Path, file: str | None) -> Path | None:
    return None if file is None else folder / file


def _small(path: Path | None, cell: int) -> Image.Image | None:
    """A copy no larger than it will be shown: a page of whole pictures would fill the memory."""
    if path is None:
        return None
    picture = open_image(path, minimum_side=2 * cell).copy()
    picture.thumbnail((cell, cell), Image.Resampling.LANCZOS)
    return picture
