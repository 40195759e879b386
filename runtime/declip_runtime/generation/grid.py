"""Pictures to compare: the same generation, changed along two axes (modes, scales, seeds) and nothing else."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image

from declip_runtime.errors import UsageError
from declip_runtime.images import open_image, sources

from .adapter import DPAdapter
from .progress import Step
from .request import OUTPUTS, References, make_request
from .schedulers import require_possible

OnCellStep = Callable[[int, int, Step], object]
"""Called with the number of the picture, how many there are, and the step."""

OnCell = Callable[[int, int, Image.Image], object]
"""Called with row, column and picture of a place as soon as the picture is made."""


@dataclass(frozen=True, eq=False)
class Setting:
    """One row or column: its label, and the arguments of ``generate`` that it changes."""

    label: str
    arguments: Mapping[str, Any]


def modes(**conditions: Any) -> list[Setting]:
    """The ways to use conditions (``perceptual``, ``semantic``, ``image``): none, the first two together, each alone.

    Raises UsageError where none is given.
    """
    given = {kind: _listed(conditions[kind]) for kind in OUTPUTS if conditions.get(kind) is not None}
    if not given:
        raise UsageError(
            "modes compare reference images, and none was given. Give a perceptual, semantic or image one."
        )
    none: dict[str, Any] = dict.fromkeys(OUTPUTS)
    labels = {"perceptual": "perceptual", "semantic": "semantic", "image": "plain IP-Adapter"}
    found = [Setting("text only", none)]
    if "perceptual" in given and "semantic" in given:
        both = {kind: given[kind] for kind in ("perceptual", "semantic")}
        found.append(Setting("perceptual + semantic", {**none, **both}))
    return found + [Setting(labels[kind], {**none, kind: images}) for kind, images in given.items()]


def scales(values: Sequence[float]) -> list[Setting]:
    """The same strength for all conditions, one setting a value."""
    return [Setting(f"scale {value:g}", {f"{kind}_scale": value for kind in OUTPUTS}) for value in values]


def seeds(values: Sequence[int]) -> list[Setting]:
    """One setting a seed."""
    return [Setting(f"seed {value}", {"seed": value}) for value in values]


def generate_grid(
    adapter: DPAdapter,
    rows: Sequence[Setting],
    columns: Sequence[Setting],
    *,
    on_step: OnCellStep | None = None,
    on_cell: OnCell | None = None,
    **arguments: Any,
) -> list[list[Image.Image]]:
    """Generate a picture for every row and column; ``contact_sheet`` shows them with the settings' labels.

    ``arguments`` are those of ``DPAdapter.generate`` that all have in common. Where no seed is stated one is drawn for
    all. Where two cells ask for the same (a scale without a condition), the picture is made once. ``on_cell`` is called
    for every place when its picture is made: what it keeps is not lost when a later one fails.

    Raises before the first step UsageError for arguments that cannot work in one of the cells, and for axes that change
    the same, ImageError for an image of any cell; then what ``generate`` raises.
    """
    both = {name for row in rows for name in row.arguments} & {name for col in columns for name in col.arguments}
    if both or not rows or not columns:
        what = f"rows and columns both change {', '.join(sorted(both))}" if both else "rows or columns are empty"
        raise UsageError(f"{what}. Choose two different axes with at least one setting each.")
    seed = arguments.get("seed")
    common = {**arguments, "seed": secrets.randbelow(1 << 32) if seed is None else seed}
    common.update({kind: _listed(common[kind]) for kind in OUTPUTS if common.get(kind) is not None})
    cells = [[{**common, **row.arguments, **column.arguments} for column in columns] for row in rows]
    _require_valid(adapter, [cell for line in cells for cell in line])
    places: dict[tuple[tuple[str, object], ...], list[tuple[int, int]]] = {}
    for row, line in enumerate(cells):
        for column, cell in enumerate(line):
            places.setdefault(_key(cell), []).append((row, column))
    made: dict[tuple[int, int], Image.Image] = {}
    for number, same in enumerate(places.values()):
        step = partial(on_step, number, len(places)) if on_step is not None else None
        row, column = same[0]
        (picture,) = adapter.generate(**cells[row][column], on_step=step)
        for row, column in same:
            made[row, column] = picture
            if on_cell is not None:
                on_cell(row, column, picture)
    return [[made[row, column] for column in range(len(columns))] for row in range(len(rows))]


def _listed(images: References) -> list[Any]:
    """The images of a condition, which may be an iterator that gives them once only."""
    return list(sources(images))  # type: ignore[arg-type]


def _require_valid(adapter: DPAdapter, cells: Sequence[Mapping[str, Any]]) -> None:
    """Raise whatever one of the cells would raise before its first step: the first picture shall not be in vain."""
    opened: set[int] = set()
    for cell in cells:
        request = make_request(adapter.manifest, **cell)
        if len(request.seeds) != 1:
            raise UsageError("a place on the sheet has one picture. Give one prompt, and leave images_per_prompt out.")
        require_possible(adapter.manifest.scheduler, request.scheduler, request.steps)
        for image in (image for condition in request.conditions for image in condition.images):
            if id(image) not in opened:
                open_image(image)
                opened.add(id(image))


def _key(cell: Mapping[str, Any]) -> tuple[tuple[str, object], ...]:
    """What tells a cell from another; a strength without its condition does not."""
    idle = {f"{kind}_scale" for kind in OUTPUTS if cell.get(kind) is None}
    return tuple((name, _same(value)) for name, value in sorted(cell.items()) if name not in idle)


def _same(value: Any) -> object:
    """Plain values by what they are; whatever else, as images, by which object it is."""
    plain = isinstance(value, str | int) or (isinstance(value, float) and not math.isnan(value))
    return (type(value).__name__, value) if plain else id(value)
