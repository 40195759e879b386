"""Files of conditions: what they may say, and that every line that cannot be used is named."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from sdk.generation_world import CONDITIONS, save_picture, write_conditions

from declip_runtime.errors import UsageError
from declip_training.evaluation.generation.conditions import COLUMNS, CONTROLS, Condition, read_conditions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for seed, name in enumerate(("a.png", "b.png", "sub/c.png")):
        save_picture(tmp_path / name, seed)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return tmp_path


def _csv(path: Path, rows: Any) -> Path:
    with path.open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_both_forms_say_the_same(folder: Path, form: str) -> None:
    write = {"jsonl": write_conditions, "csv": _csv}[form]
    found = read_conditions(write(folder / f"conditions.{form}", CONDITIONS))
    first = 1 if form == "jsonl" else 2  # the heading is line 1
    assert [c.line for c in found] == list(range(first, first + 7))
    assert [c.name for c in found] == [row["name"] for row in CONDITIONS]
    assert [c.control for c in found] == [CONTROLS[0]] * 3 + [CONTROLS[1]] * 3 + [CONTROLS[2]]
    assert found[0] == Condition(first, "night", folder / "a.png", "a red house")
    assert found[5] == Condition(first + 5, "lamp", "much contrast", folder / "sub/c.png")
    assert found[6] == Condition(first + 6, "both", folder / "a.png", folder / "b.png")
    assert [found[i].text for i in (0, 5, 6)] == ["a red house", "much contrast", ""]
    assert found[0].images == {"perceptual": folder / "a.png"}
    assert found[5].images == {"semantic": folder / "sub/c.png"}
    assert found[6].images == {"perceptual": folder / "a.png", "semantic": folder / "b.png"}
    assert found[0].columns == {
        "name": "night",
        "perceptual_image": str(folder / "a.png"),
        "semantic_text": "a red house",
    }


def test_a_line_without_a_name_is_called_by_its_number(folder: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "name"} for row in CONDITIONS[:2]]
    (folder / "c.jsonl").write_text(f"{json.dumps(rows[0])}\n\n{json.dumps(rows[1])}\n")
    assert [c.name for c in read_conditions(folder / "c.jsonl")] == ["0001", "0003"]


def test_a_text_in_csv_may_hold_commas_and_line_breaks(folder: Path) -> None:
    row = {"perceptual_image": "a.png", "semantic_text": 'a "red" house,\nby the sea'}
    (only,) = read_conditions(_csv(folder / "c.csv", [row]))
    assert only.text == row["semantic_text"]


GOOD = {"perceptual_image": "a.png", "semantic_text": "a house"}
BAD: tuple[tuple[Any, str], ...] = (
    ({**GOOD, "look": "dark"}, "'look' is no column. Use name, perceptual_image, "),
    ({"perceptual_image": "a.png"}, "it has neither semantic_image and semantic_text"),
    ({**GOOD, "perceptual_text": "dark"}, "it has both perceptual_image and perceptual_text"),
    ({"perceptual_text": "dark", "semantic_text": "a dog"}, "it has two texts, and no image"),
    ({**GOOD, "perceptual_image": "gone.png"}, "gone.png' does not exist"),
    ({**GOOD, "perceptual_image": "broken.png"}, "broken.png' is "),
    ({**GOOD, "perceptual_image": "sub"}, "sub' is a folder"),
    ({**GOOD, "semantic_text": 3}, "semantic_text is 3. Give text."),
    ({**GOOD, "semantic_text": float("nan")}, "semantic_text is nan. Give text."),
    ({**GOOD, "semantic_text": "  "}, "it has neither semantic_image and semantic_text"),
    ({**GOOD, "semantic_text": "\ud800"}, "holds half a character"),
    ({**GOOD, "name": "a/b"}, "the name 'a/b' cannot become a file"),
    ({**GOOD, "name": "x" * 121}, "cannot become a file"),
    ({**GOOD, "name": "GOOD"}, "it is called 'GOOD', and so is line 1"),
    ({**GOOD, "name": "again"}, "it is the condition of line 1 again"),
    ([GOOD], "it is no JSON object"),
)


def test_every_bad_line_is_named_with_its_reason(folder: Path) -> None:
    lines = [json.dumps({**GOOD, "name": "good"}), *(json.dumps(row) for row, _ in BAD)]
    lines += ['{"name": "x"', '{"name": "x", "name": "y"}', json.dumps({**CONDITIONS[6]})]
    reasons = [reason for _, reason in BAD] + ["it is not JSON", "a key stands there twice"]
    (folder / "c.jsonl").write_text("\n".join(lines))
    with pytest.raises(UsageError) as failure:
        read_conditions(folder / "c.jsonl")
    heading, *told = str(failure.value).splitlines()
    assert heading == f"{len(reasons)} of the lines in {folder / 'c.jsonl'} are no condition. Correct them:"
    for number, (line, reason) in enumerate(zip(told, reasons, strict=True), 2):
        assert line.startswith(f"line {number}: ")
        assert reason in line


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("perceptual_image,look\na.png,dark\n", "the heading of .*: 'look' is no column"),
        ("name,name\na,b\n", "the heading of .*: a column stands there twice"),
        ("perceptual_image,semantic_text\na.png,house\na.png,red, house\nb.png\n",
         "line 3: it has 3 cells, the heading has 2.*\nline 4: it has 1 cells"),
        ('perceptual_image,semantic_text\na.png,"house\n', "line 2 of .* is not CSV"),
        ("perceptual_image,semantic_text\n\n,\n", "holds no condition"),
        ("", "holds no condition"),
    ],
)  # fmt: skip
def test_csv_that_cannot_be_used(folder: Path, text: str, reason: str) -> None:
    (folder / "c.csv").write_text(text)
    with pytest.raises(UsageError, match=re.compile(reason, re.DOTALL)):
        read_conditions(folder / "c.csv")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("c.jsonl", b"\n \n", "holds no condition. Write one a line"),
        ("c.jsonl", "{\"name\": \"é\"}".encode("latin-1"), "cannot be read .* Give a file in UTF-8"),
        ("c.jsonl", None, "cannot be read .No such file"),
        ("c.txt", b"", "is no file of conditions. Give one that ends in .jsonl or .csv"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=reason):
        read_conditions(tmp_path / name)
