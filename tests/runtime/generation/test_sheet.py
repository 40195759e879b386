"""Contact sheets: pictures in their places, labels that can be read in any script, and the grid behind them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFont

from declip_runtime.errors import GenerationCancelled, ImageNotFoundError, UsageError
from declip_runtime.generation import lettering
from declip_runtime.generation.adapter import DPAdapter
from declip_runtime.generation.grid import Setting, generate_grid, modes, scales, seeds
from declip_runtime.generation.lettering import legible, wrapped
from declip_runtime.generation.progress import Step
from declip_runtime.generation.sheet import contact_sheet, largest_cell

Picture = Callable[[int], Image.Image]

COLOURS = [["red", "green", "blue"], ["yellow", "purple", "orange"]]


def colours() -> list[list[Image.Image | None]]:
    return [[Image.new("RGB", (32, 32), colour) for colour in row] for row in COLOURS]


def areas(sheet: Image.Image) -> dict[tuple[int, ...], tuple[int, int, int, int]]:
    """Where every colour of ``COLOURS`` is: left, upper, right, lower."""
    array, found = np.asarray(sheet), {}
    for colour in (Image.new("RGB", (1, 1), c).getpixel((0, 0)) for row in COLOURS for c in row):
        rows, columns = np.nonzero((array == colour).all(axis=2))
        assert len(rows)
        found[colour] = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    return found


def ink(sheet: Image.Image, box: tuple[int, int, int, int]) -> int:
    """How much is written within ``box``."""
    return int((np.asarray(sheet.crop(box).convert("L")) < 128).sum())


def test_every_picture_is_in_its_place_with_a_label_at_its_row_and_column() -> None:
    sheet = contact_sheet(
        colours(), ["text only", "perceptual"], ["scale 0", "scale 0.5", "scale 1"], title="a dog", cell=100
    )
    assert sheet.mode == "RGB"
    boxes = list(areas(sheet).values())
    for row in range(2):
        for column in range(3):
            left, upper, right, lower = boxes[3 * row + column]
            assert (right - left, lower - upper) == (100, 100)
            assert left == boxes[column][0]
            assert upper == boxes[3 * row][1]
            if column:
                assert left > boxes[3 * row + column - 1][2]
        assert ink(sheet, (0, boxes[3 * row][1], boxes[0][0], boxes[3 * row][3])) > 20  # the row's label
    assert boxes[3][1] > boxes[0][3]
    for column in range(3):
        assert ink(sheet, (boxes[column][0], 0, boxes[column][2], boxes[0][1])) > 20
    plain = contact_sheet(colours(), ["", ""], ["", "", ""], cell=100)
    assert ink(plain, (0, 0, boxes[0][0] - 10, plain.height)) == 0


def test_pictures_of_any_shape_fit_into_their_cell_and_none_stays_empty() -> None:
    sheet = contact_sheet(
        [[Image.new("RGB", (200, 50), "red"), None], [Image.new("L", (10, 40), 0), Image.new("RGBA", (3, 3))]],
        ["a", "b"], ["c", "d"], cell=64,
    )  # fmt: skip
    array = np.asarray(sheet)
    rows, columns = np.nonzero((array == (255, 0, 0)).all(axis=2))
    assert (columns.max() - columns.min() + 1, rows.max() - rows.min() + 1) == (64, 16)
    grey = (array == (211, 211, 211)).all(axis=2)
    assert grey[rows.min() - 24 : rows.min() + 40, columns.max() + 1 :].sum() == 64 * 64


def test_a_long_title_is_wrapped_and_cut_and_never_runs_out_of_the_sheet() -> None:
    short = contact_sheet(colours(), ["a", "b"], ["c", "d", "e"], title="dog", cell=80)
    long = contact_sheet(colours(), ["a", "b"], ["c", "d", "e"], title="a dog by the sea, " * 100, cell=80)
    assert long.width == short.width
    assert short.height < long.height < short.height + 80
    title = (0, 0, long.width, areas(long)[255, 0, 0][1] - 16)
    assert ink(long, title) > ink(short, (0, 0, short.width, areas(short)[255, 0, 0][1] - 16)) > 20
    assert ink(long, (long.width - 2, *title[1:])) == 0


@pytest.mark.parametrize(
    "text", ["写真 📷 dog", "мир", "שלום", "\u202e\x00\x1b[31mred\n", "\ud800", "🏳️‍🌈", "a" * 5000, ""]
)
def test_any_text_becomes_a_sheet(text: str) -> None:
    contact_sheet([[Image.new("RGB", (8, 8))]], [text], [text], title=text, cell=32)


@pytest.mark.parametrize(
    ("pictures", "rows", "columns", "more", "told"),
    [
        ([[None]], ["a", "b"], ["c"], {}, "2 rows and 1 columns are labelled"),
        ([[None], [None, None]], ["a", "b"], ["c"], {}, r"\[1, 2\] in 2 rows"),
        ([], [], [], {}, "0 rows"),
        ([[None]], ["a"], ["b"], {"cell": 0}, "cell=0"),
        ([[None] * 100], ["a"], ["b"] * 100, {}, "over 16384 a side"),
        ([[None]], ["a"], ["b"], {"font": "nowhere.ttf"}, r"nowhere\.ttf is no font"),
    ],
)
def test_what_is_no_grid_is_told(pictures: Any, rows: Any, columns: Any, more: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        contact_sheet(pictures, rows, columns, **more)


def test_the_largest_cell_that_fits_is_found() -> None:
    sizes = {number: largest_cell(2, [str(n) for n in range(number)], "a dog") for number in (1, 60, 80, 200)}
    assert sizes == {1: 256, 60: 256, 80: 192, 200: 64}
    for number, cell in sizes.items():
        sheet = contact_sheet([[None] * number], ["a"], [str(n) for n in range(number)], cell=cell)
        assert sheet.width <= 16_384
    assert largest_cell(200, ["a"]) == 64
    with pytest.raises(UsageError, match="over 16384 a side"):
        largest_cell(300, ["a"])


# --- letters


def test_pillows_own_font_is_enough_for_western_letters() -> None:
    text, font = legible("scale 0.5, a\n  dog\t'x'", 14)
    assert text == "scale 0.5, a dog 'x'"
    assert isinstance(font, ImageFont.FreeTypeFont)
    assert font.getname() == ImageFont.load_default(14).getname()  # type: ignore[union-attr]


def test_other_letters_take_a_font_that_has_them_or_question_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    dejavu = lettering._system_font("DejaVuSans.ttf", 14)
    if dejavu is not None:
        assert legible("мир", 14) == ("мир", dejavu)
    monkeypatch.setattr(lettering, "_SYSTEM_FONTS", ())
    assert legible("мир a", 14)[0] == "??? a"


def test_without_freetype_letters_are_still_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(size: float | None = None) -> Any:
        if size is not None:
            raise ImportError("The _imagingft C module is not installed")
        return ImageFont.load_default_imagefont()

    monkeypatch.setattr(ImageFont, "load_default", without)
    assert legible("café мир", 14)[0] == "café ???"
    sheet = contact_sheet([[None]], ["мир"], ["café"], cell=64)
    assert ink(sheet, (0, 0, sheet.width, sheet.height)) > 20


def test_a_font_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "text.ttf"
    path.write_text("no font")
    with pytest.raises(UsageError, match=r"text\.ttf is no font that can be used"):
        legible("a", 14, str(path))
    if lettering._system_font("DejaVuSans.ttf", 14) is not None:
        assert legible("a", 14, "DejaVuSans.ttf")[1].getname() == ("DejaVu Sans", "Book")  # type: ignore[union-attr]


def test_lines_break_between_words_where_they_can() -> None:
    font = ImageFont.load_default(14)
    width = int(font.getlength("a dog by the")) + 1
    assert wrapped("a dog by the sea", font, width, 3) == ["a dog by the", "sea"]
    assert wrapped("", font, width, 3) == []
    for text in ("a dog by the sea and more of it", "x" * 200, "x"):
        lines = wrapped(text, font, width, 2)
        assert len(lines) <= 2
        assert all(font.getlength(line) <= width for line in lines)
    assert wrapped("a dog by the sea and more of it", font, width, 2)[1].endswith("...")


# --- the grid


def record(picture: Image.Image) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(picture.info["declip"])
    return found


def test_modes_use_the_conditions_that_are_there(picture: Picture) -> None:
    assert [m.label for m in modes(perceptual=picture(1), semantic=picture(2), image=picture(3))] == [
        "text only", "perceptual + semantic", "perceptual", "semantic", "plain IP-Adapter",
    ]  # fmt: skip
    assert [m.label for m in modes(image=picture(1), semantic=None)] == ["text only", "plain IP-Adapter"]
    with pytest.raises(UsageError, match="none was given"):
        modes(semantic=None)


def test_a_grid_of_modes_and_scales(adapter: DPAdapter, picture: Picture) -> None:
    seen: list[tuple[int, int, int]] = []
    grid = generate_grid(
        adapter, modes(perceptual=picture(1), semantic=iter([picture(2)])), scales([0.2, 0.9]), prompt="a dog",
        on_step=lambda number, count, step: seen.append((number, count, step.index)),
    )  # fmt: skip
    assert [len(row) for row in grid] == [2] * 4
    assert grid[0][0] is grid[0][1]  # text only knows no scale: made once
    assert seen == [(number, 7, index) for number in range(7) for index in range(5)]
    records = [[record(p) for p in row] for row in grid]
    assert len({r["seed"] for row in records for r in row}) == 1
    assert [sorted(row[0]["conditions"]) for row in records] == [
        [], ["perceptual", "semantic"], ["perceptual"], ["semantic"],
    ]  # fmt: skip
    assert [[r["conditions"].get("semantic", {}).get("scale") for r in row] for row in records] == [
        [None, None], [0.2, 0.9], [None, None], [0.2, 0.9],
    ]  # fmt: skip
    wanted = adapter.generate("a dog", semantic=picture(2), semantic_scale=0.9, seed=records[0][0]["seed"])
    assert np.asarray(grid[3][1]).tolist() == np.asarray(wanted[0]).tolist()


def test_a_grid_of_scales_and_seeds(adapter: DPAdapter, picture: Picture) -> None:
    grid = generate_grid(adapter, seeds([4, 9]), scales([0.0, 1.0]), prompt="a dog", image=picture(1), steps=2)
    assert [[record(p)["seed"] for p in row] for row in grid] == [[4, 4], [9, 9]]
    assert [[record(p)["conditions"]["image"]["scale"] for p in row] for row in grid] == [[0.0, 1.0]] * 2
    sheet = contact_sheet(grid, [s.label for s in seeds([4, 9])], [s.label for s in scales([0.0, 1.0])], cell=64)
    assert sheet.width > 128


@pytest.mark.parametrize(
    ("rows", "columns", "arguments", "told"),
    [
        (scales([1.0]), scales([0.5]), {}, "rows and columns both change image_scale, perceptual_scale"),
        (seeds([1]), [], {}, "rows or columns are empty"),
        (seeds([1, -1]), scales([1.0]), {}, "seed=-1"),
        (seeds([1]), scales([1.0]), {"prompt": ["a", "b"]}, "a place on the sheet has one picture"),
        (seeds([1]), scales([1.0]), {"width": 50}, "width=50"),
        (seeds([1]), [Setting("few", {"steps": 4}), Setting("many", {"steps": 60})], {"scheduler": "lcm"}, "60 steps"),
        (modes(image="nowhere.png"), seeds([1]), {}, "'nowhere.png' does not exist"),
    ],
)
def test_a_grid_that_cannot_be_is_told_before_it_begins(
    adapter: DPAdapter, rows: Any, columns: Any, arguments: Any, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DPAdapter, "generate", lambda *_, **__: pytest.fail("it generated"))
    with pytest.raises((UsageError, ImageNotFoundError), match=told):
        generate_grid(adapter, rows, columns, **arguments)


def test_every_place_is_told_as_soon_as_its_picture_is_made(adapter: DPAdapter, picture: Picture) -> None:
    told: list[tuple[int, ...] | str] = []
    grid = generate_grid(
        adapter, modes(perceptual=picture(1)), scales([0.2, 0.9]), prompt="a dog", steps=1, scheduler="ddim",
        on_step=lambda number, _count, _step: told.append((number,)),
        on_cell=lambda row, column, made: told.append((row, column, *made.size)),
    )  # fmt: skip
    wanted = [(0,), (0, 0, 32, 32), (0, 1, 32, 32), (1,), (1, 0, 32, 32), (2,), (1, 1, 32, 32)]
    assert told == wanted
    assert len({id(made) for row in grid for made in row}) == 3


def test_a_grid_can_be_stopped(adapter: DPAdapter) -> None:
    def stop(number: int, _count: int, step: Step) -> None:
        if number == 1:
            step.cancel()

    with pytest.raises(GenerationCancelled):
        generate_grid(adapter, seeds([1, 2]), scales([1.0]), on_step=stop)
