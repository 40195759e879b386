"""What is done with a table that is there: checks, numbers, the page; and the estimate before there is one."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from declip_runtime.errors import TrainingError
from declip_training.i2t.candidates import Candidate, hash_of
from declip_training.i2t.checking import check_table
from declip_training.i2t.decoupling import Vocabularies
from declip_training.i2t.estimate import estimate
from declip_training.i2t.journal import Reply
from declip_training.i2t.page import page, sample
from declip_training.i2t.pictures import file_sha256
from declip_training.i2t.prompt import Prompt
from declip_training.i2t.records import Record, write_records
from declip_training.i2t.reply import Judge
from declip_training.i2t.summary import summarise

from .chat_server import PERCEPTUAL, SEMANTIC
from .conftest import save_image


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    made = []
    for n in range(4):
        image = save_image(tmp_path / f"{n}.jpg", n)
        digests = {"image_sha256": file_sha256(image), "text_sha256": hash_of("human")}
        made.append(Record(f"r{n}", f"{n}.jpg", PERCEPTUAL, SEMANTIC, "Q-Instruct", "human", **digests))
    return made


def test_a_good_table_has_no_problems(records: list[Record], judge: Judge, tmp_path: Path) -> None:
    write_records(tmp_path / "t.parquet", records)
    rows, problems = check_table(tmp_path / "t.parquet", judge)
    assert rows == 4
    assert not problems


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"id": "r0"}, "repeated id"),
        ({"id": ""}, "id is empty or no text"),
        ({"perceptual": " "}, "perceptual is empty or no text"),
        ({"semantic": ""}, "semantic is empty or no text"),
        ({"image": ""}, "image is empty or no text"),
        ({"image": "none.jpg"}, "image cannot be opened"),
        ({"image": "broken.jpg"}, "image cannot be opened"),
        ({"image": "half.jpg"}, "image cannot be opened"),
        ({"image": "0.jpg"}, "image does not match its hash"),
        ({"source_text": "other"}, "source text does not match its hash"),
        ({"semantic": PERCEPTUAL}, "texts are not decoupled"),
        ({"semantic": "Un perro marrón corre por la hierba junto al lago."}, "semantic text is not English"),
        ({"semantic": SEMANTIC * 5}, "semantic text has more than 60 words"),
    ],
)
def test_each_problem_is_found(
    change: dict[str, str], problem: str, records: list[Record], judge: Judge, tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "3.jpg").read_bytes()[:-200])
    records[3] = replace(records[3], **change)
    write_records(tmp_path / "t.parquet", records)
    _, problems = check_table(tmp_path / "t.parquet", judge)
    assert problem in problems.counts
    assert problems.examples[problem][0].startswith("row 4")
    if "image" in problem and "empty" not in problem:
        assert not check_table(tmp_path / "t.parquet", judge, images=False)[1]


def test_missing_columns_and_rows_are_problems_too(judge: Judge, tmp_path: Path) -> None:
    pd.DataFrame({"id": ["a"], "image": ["b"]}).to_parquet(tmp_path / "t.parquet")
    _, problems = check_table(tmp_path / "t.parquet", judge)
    assert problems.counts["semantic is empty or no text"] == 1
    write_records(tmp_path / "t.parquet", [])
    assert check_table(tmp_path / "t.parquet", judge)[1].counts == {"no rows": 1}
    with pytest.raises(TrainingError, match="does not exist"):
        check_table(tmp_path / "none.parquet", judge)


def test_integer_ids_are_no_problem_unless_they_are_repeated(
    records: list[Record], judge: Judge, tmp_path: Path
) -> None:
    pd.DataFrame(map(vars, records)).assign(id=[0, 1, 2, 2]).to_parquet(tmp_path / "t.parquet")
    _, problems = check_table(tmp_path / "t.parquet", judge)
    assert problems.examples == {"repeated id": ["row 4 (2)"]}


def test_half_a_character_is_a_problem_not_a_crash(records: list[Record], judge: Judge, tmp_path: Path) -> None:
    row = {**vars(records[0]), "source_text": "half \ud83d", "semantic": "\ud83d"}
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    assert check_table(tmp_path / "t.jsonl", judge)[1].counts["source text does not match its hash"] == 1
    (tmp_path / "t.jsonl").write_text("[" * 100_000)
    with pytest.raises(TrainingError, match=r"line 1 of .* is not JSON"):
        check_table(tmp_path / "t.jsonl", judge)


def test_many_rows_are_checked_in_their_order(records: list[Record], judge: Judge, tmp_path: Path) -> None:
    many = [replace(records[n % 4], id=f"x{n}") for n in range(1100)]
    many[700] = replace(many[700], image="none.jpg")
    write_records(tmp_path / "t.parquet", many)
    rows, problems = check_table(tmp_path / "t.parquet", judge)
    assert rows == 1100
    assert problems.examples == {"image cannot be opened": ["row 701 (x700): none.jpg"]}


def test_numbers(records: list[Record], vocabularies: Vocabularies) -> None:
    more = [*records, replace(records[0], id="x", source="AesExpert", image_type="Art", perceptual="Noise, noise.")]
    found = summarise(more, vocabularies)
    assert (found.records, found.images) == (5, 4)
    assert found.by_source == {("Q-Instruct", ""): 4, ("AesExpert", "Art"): 1}
    assert found.terms["noise"] == 1
    assert found.terms["shallow depth of field"] == 4
    assert found.groups["depth and space"] == 4
    assert found.semantic.longest == len(SEMANTIC.split())
    assert found.semantic.semantic > 0.5
    assert found.perceptual.perceptual > 0.8


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</dd></dl></article><h2>more</h2>",
    "' onmouseover='alert(1)",
    "&lt;b&gt; & &amp; {title} {0} %s",
    "<!-- <![CDATA[ \0 \x1b[31m \u202e",
]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


def test_the_page_shows_hostile_texts_as_texts(tmp_path: Path) -> None:
    save_image(tmp_path / "a.jpg", 1, (900, 300))
    table = tmp_path / "<b>.parquet"
    records = [Record(h, "a.jpg", h, h, h, h, image_type=h) for h in HOSTILE]
    reader = _Reader()
    reader.feed("".join(page(table, records, "<i>sub</i>")))
    reader.close()
    allowed = {"html", "head", "meta", "title", "style", "body", "h1", "p", "article", "div", "img", "dl", "dt", "dd"}
    assert set(reader.tags) == allowed
    assert reader.tags.count("article") == len(HOSTILE)
    assert {(tag, name) for tag, name, _ in reader.attributes} == {
        ("html", "lang"),
        ("meta", "charset"),
        ("meta", "http-equiv"),
        ("meta", "name"),
        ("meta", "content"),
        ("dt", "class"),
        ("dd", "class"),
        ("img", "src"),
        ("img", "alt"),
    }
    everything = "".join(reader.texts)
    for text in HOSTILE[:-1]:
        assert everything.count(text) >= 4
    assert "\0" not in everything
    assert "\x1b" not in everything
    sources = [value or "" for tag, name, value in reader.attributes if (tag, name) == ("img", "src")]
    for source in sources:
        head, _, data = source.partition(",")
        assert head == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (320, 107)
    policy = next(v for _, n, v in reader.attributes if n == "content" and v and "default-src" in v)
    assert policy.startswith("default-src 'none'; img-src data:")


def test_an_image_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    reasons: list[str] = []
    records = [Record("a", "<none>.jpg", "p", "s")]
    text = "".join(page(tmp_path / "t.parquet", records, "", reasons.append))
    assert len(reasons) == 1
    assert "does not exist" in reasons[0]
    assert "&lt;none&gt;.jpg" in text
    assert "<none>" not in text


def test_a_sample_is_drawn_by_its_seed(records: list[Record]) -> None:
    many = [replace(records[0], id=str(n)) for n in range(50)]
    assert sample(many, 10, 0) == sample(many, 10, 0) != sample(many, 10, 1)
    drawn = [int(r.id) for r in sample(many, 10, 0)]
    assert drawn == sorted(drawn)
    assert sample(many, 99, 0) == many


def test_the_estimate_counts_text_and_pixels(candidates: list[Candidate]) -> None:
    prompt = Prompt("x" * 394 + "{text}")
    found = estimate(candidates, [], prompt, max_side=45, workers=2)
    assert found.requests == 6
    pixels = 45 * 30 / 784  # the images are 90 x 60
    assert found.tokens_in == pytest.approx(6 * (400 / 4 + pixels), abs=1)
    assert found.tokens_out == 6 * 150
    assert found.seconds == 6 * 5 / 2
    assert found.cost(2.0, 10.0) == pytest.approx(found.tokens_in * 2e-6 + 900 * 10e-6)
    given = estimate(candidates, [], prompt, max_side=45, workers=2, image_tokens=1000)
    assert given.tokens_in == 6 * 1100


def test_the_journal_is_a_better_estimate(candidates: list[Candidate]) -> None:
    replies = [Reply(f"r{n // 2}", "x", "stop", "", 1000, 50, 2.0) for n in range(20)]
    found = estimate(candidates, replies, Prompt.read(), max_side=45, workers=3)
    assert (found.requests, found.tokens_in, found.tokens_out) == (12, 12_000, 600)
    assert found.seconds == pytest.approx(12 * 2 / 3)
    silent = [replace(r, tokens_in=0, tokens_out=0) for r in replies]  # an endpoint that tells no tokens
    assert estimate(candidates, silent, Prompt.read(), max_side=45, workers=3).tokens_in > 6 * 250


def test_a_prompt_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text('Say {"a": 1} of {text}!', encoding="utf-8")
    assert Prompt.read(path).text("{text} {x}") == 'Say {"a": 1} of {text} {x}!'
    assert Prompt.read(path).sha256 != Prompt.read().sha256
    for bad in ("no place", "{text} {text}"):
        path.write_text(bad)
        with pytest.raises(TrainingError, match=r"must hold \{text\} once"):
            Prompt.read(path)
    with pytest.raises(TrainingError, match="cannot be read"):
        Prompt.read(tmp_path / "none.txt")
