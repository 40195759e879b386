from __future__ import annotations

import json
from pathlib import Path

import pytest

from declip_runtime.errors import TrainingError
from declip_training.i2t.candidates import Candidate, candidate_lines, hash_of, read_candidates
from declip_training.i2t.selection import PAPER_MINIMUM, Texts, select
from declip_training.i2t.sources import Described
from declip_training.i2t.vocabulary import Vocabulary

TERMS = [f"term{n}x" for n in range(12)]
VOCABULARY = Vocabulary({f"={term}": "" for term in TERMS})


def text(terms: int, more: str = "") -> str:
    return " and ".join(TERMS[:terms]) + more


def described(image: str, words: str, source: str = "Q-Instruct", kind: str = "Natural") -> Described:
    return Described(source, image, Path("/images") / image, kind, words)


def test_seven_terms_are_enough_and_six_are_not() -> None:
    assert PAPER_MINIMUM == 7
    found = select([described("a", text(7)), described("b", text(6)), described("c", text(1) * 9)], VOCABULARY)
    assert [(c.source_text, c.terms) for c in found.kept] == [(text(7), 7)]
    assert found.images == found.texts == {("Q-Instruct", "Natural"): 3}
    assert len(select([described("b", text(6))], VOCABULARY, minimum=6).kept) == 1
    repeated = f"{text(1)} " * 7
    assert not select([described("c", repeated)], VOCABULARY).kept
    assert select([described("c", repeated)], VOCABULARY, repeats=True).kept[0].terms == 7


COMMENTS = [
    described("a", text(8)),
    described("b", text(4)),
    described("a", text(9)),
    described("a", text(9, " and more")),
    described("b", " and ".join(TERMS[4:9])),
    described("a", text(3)),
]


def test_the_richest_text_stands_for_an_image() -> None:
    found = select(COMMENTS, VOCABULARY)
    assert [(c.image, c.source_text) for c in found.kept] == [("/images/a", text(9, " and more"))]
    assert found.images == {("Q-Instruct", "Natural"): 2}
    assert found.texts == {("Q-Instruct", "Natural"): 6}


def test_texts_can_be_joined_or_stand_alone() -> None:
    joined = select(COMMENTS, VOCABULARY, texts="joined")
    assert [(c.image, c.terms) for c in joined.kept] == [("/images/a", 9), ("/images/b", 9)]
    assert joined.kept[1].source_text == f"{text(4)}\n{' and '.join(TERMS[4:9])}"
    each = select(COMMENTS, VOCABULARY, texts="each")
    assert [c.terms for c in each.kept] == [8, 9, 9]
    assert joined.texts == each.texts == {("Q-Instruct", "Natural"): 6}


def test_counts_are_by_source_and_type() -> None:
    found = select(
        [
            described("a", text(7)),
            described("a", text(7), source="AesExpert", kind="Art"),
            described("b", text(2), source="AesExpert", kind="AIGC"),
        ],
        VOCABULARY,
    )
    assert found.kept_counts() == {("Q-Instruct", "Natural"): 1, ("AesExpert", "Art"): 1}
    assert found.images == {("Q-Instruct", "Natural"): 1, ("AesExpert", "Art"): 1, ("AesExpert", "AIGC"): 1}
    assert len({c.id for c in found.kept}) == 2


def test_what_two_files_share_is_kept_once(tmp_path: Path) -> None:
    """A copy of an image is the same; another one of that name is a mistake that would pair it with these words."""
    paths = [tmp_path / folder / "a" for folder in ("images", "copy", "other")]
    for path, content in zip(paths, (b"dog", b"dog", b"cat"), strict=True):
        path.parent.mkdir()
        path.write_bytes(content)
    first, copy, other = (Described("Q-Instruct", "a", path, "Natural", text(7)) for path in paths)
    found = select([first, copy, first], VOCABULARY)
    assert [c.image for c in found.kept] == [str(paths[0])]
    assert found.repeated == 2
    with pytest.raises(TrainingError, match=r"images/a and .*/other/a have the same name and description in two data"):
        select([first, other], VOCABULARY)


@pytest.mark.parametrize("texts", ["richest", "joined", "each"])
def test_the_same_file_twice_adds_nothing(texts: Texts) -> None:
    once, twice = (select(COMMENTS * times, VOCABULARY, texts=texts) for times in (1, 2))
    assert twice.kept == once.kept
    assert (once.repeated, twice.repeated) == (0, len(COMMENTS))


def test_an_image_counts_under_the_type_of_what_is_kept_of_it() -> None:
    several = [described("a", text(3), kind="Art"), described("a", text(9), kind="AIGC"), described("b", text(1))]
    found = select(several, VOCABULARY)
    assert found.images == {("Q-Instruct", "AIGC"): 1, ("Q-Instruct", "Natural"): 1}
    assert found.kept_counts() == {("Q-Instruct", "AIGC"): 1}


def test_an_id_follows_from_source_image_and_text() -> None:
    one = Candidate.of(described("a", "x"), 7)
    assert one.id == Candidate.of(Described("Q-Instruct", "a", Path("/moved/a"), "Art", "x"), 9).id
    others = [described("b", "x"), described("a", "y"), described("a", "x", source="Q_Instruct")]
    assert one.id not in {Candidate.of(other, 7).id for other in others}
    assert one.text_sha256 == hash_of("x")


def test_candidates_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    written = [Candidate.of(described("a\u2028b", "line\nline \U0001f600 \u2028 é"), 7), Candidate.of(COMMENTS[0], 8)]
    path.write_bytes(b"".join(candidate_lines(written)))
    assert read_candidates(path) == written


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no candidates"),
        ("{", "is no file of candidates"),
        ("[]\n", "line 1 lacks one of id"),
        ('{"id": "a"}\n', "line 1 lacks one of id"),
        ("[" * 100_000, "is no file of candidates"),
        ("TWICE", "lines 1 and 2 have the same id"),
    ],
)
def test_a_damaged_file_is_named(content: str, message: str, tmp_path: Path) -> None:
    line = next(candidate_lines([Candidate.of(COMMENTS[0], 8)])).decode()
    (tmp_path / "c.jsonl").write_text(line * 2 if content == "TWICE" else content)
    with pytest.raises(TrainingError, match=message):
        read_candidates(tmp_path / "c.jsonl")
    with pytest.raises(TrainingError, match="is no file of candidates"):
        read_candidates(tmp_path / "none.jsonl")


def test_lines_are_ascii() -> None:
    assert json.loads(next(candidate_lines([Candidate.of(described("ü", "ü"), 7)])).decode("ascii"))["terms"] == 7
