"""The published formats, made as their repositories describe them, and what is wrong in real files."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from declip_runtime.errors import TrainingError
from declip_training.i2t.sources import Columns, Described, Source, json_stream, read_source
from declip_training.i2t.tally import Tally

from .conftest import save_image


def read(source: Source, **options: Any) -> tuple[list[Described], Tally]:
    tally = Tally()
    return list(read_source(source, tally, **options)), tally


def conversation(image: Any, *answers: str) -> dict[str, Any]:
    turns = [t for a in answers for t in ({"from": "human", "value": "<image>\nWhy?"}, {"from": "gpt", "value": a})]
    return {"id": "1", "image": image, "conversations": turns}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for name in ("a.jpg", "wikiart/images/b.jpg", "coco/train2017/c.jpg", "spaq_koniq/d.jpg"):
        save_image(folder / name, 1)
    for name in ("livefb_liveitw_aigc/AttnGAN_normal_000.jpg", "livefb_liveitw_aigc/1.jpg", "12.jpg"):
        save_image(folder / name, 1)
    return folder


def test_aesmmit(tmp_path: Path, images: Path) -> None:
    """Fields id, image, conversations, type, qtype."""
    entry = {**conversation("a.jpg", "The light is soft.", "<image> Sharp."), "type": "x", "qtype": "y"}
    (tmp_path / "AesMMIT.json").write_text(json.dumps([entry]))
    found, tally = read(Source("aesexpert", tmp_path / "AesMMIT.json", images))
    assert found == [Described("AesExpert", "a.jpg", images / "a.jpg", "unknown", "The light is soft.\nSharp.")]
    assert not tally


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("baid_95698.jpg", "Art"),
        ("artemis_pierre-auguste-renoir_girl-1890.jpg", "Art"),
        ("para_iaa_pub22358_.jpg", "Natural"),
        ("TAD66K_2213.jpg", "Natural"),
        ("sd1.5_lowstep_158.jpg", "AIGC"),
        ("maxlight_2.jpg", "unknown"),
        ("separa_2.jpg", "unknown"),
    ],
)
def test_types_of_aesmmit_stand_in_its_names(name: str, kind: str, tmp_path: Path, images: Path) -> None:
    save_image(images / name, 1)
    (tmp_path / "AesMMIT.json").write_text(json.dumps([conversation(name, "The light is soft.")]))
    found, _ = read(Source("aesexpert", tmp_path / "AesMMIT.json", images))
    assert [d.type for d in found] == [kind]


def test_q_instruct(tmp_path: Path, images: Path) -> None:
    names = ["spaq_koniq/d.jpg", "livefb_liveitw_aigc/AttnGAN_normal_000.jpg", "livefb_liveitw_aigc/1.jpg"]
    (tmp_path / "cleaned_labels.json").write_text(json.dumps([conversation(n, "Blurry.") for n in names]))
    found, _ = read(Source("q-instruct", tmp_path / "cleaned_labels.json", images))
    assert [(d.name, d.type) for d in found] == list(zip(names, ["Natural", "AIGC", "unknown"], strict=True))


def test_sharegpt4v(tmp_path: Path, images: Path) -> None:
    names = ["coco/train2017/c.jpg", "wikiart/images/b.jpg"]
    (tmp_path / "cap100k.json").write_text(json.dumps([conversation(n, "In the image.") for n in names]))
    found, _ = read(Source("sharegpt4v", tmp_path / "cap100k.json", images))
    assert [(d.source, d.type) for d in found] == [("ShareGPT4V", "Natural"), ("ShareGPT4V", "Art")]


@pytest.mark.parametrize(
    "content",
    [
        {"ID": "12", "raw_comments": ["Nice light.", " Soft focus. "], "clean_comments": ["other"]},
        {"raw_comments": [], "clean_comments": ["Nice light.", "Soft focus."]},
        {"score_comments": [{"comment": {"comment": c}, "sum_score": 1} for c in ("Nice light.", "Soft focus.")]},
        {"comments": [{"comment": "Nice light."}, {"comment": "Soft focus."}]},
        {"raw_comments": [{"text": "of another form"}], "clean_comments": ["Nice light.", "Soft focus."]},
    ],
)
def test_dpc2022(content: dict[str, Any], tmp_path: Path, images: Path) -> None:
    folder = tmp_path / "clean_and_all_score"
    folder.mkdir()
    (folder / "12.json").write_text(json.dumps(content))
    (folder / "13.json").write_text(json.dumps({"raw_comments": ["There is no such image."]}))
    (folder / "14.json").write_text(json.dumps({"ID": "14"}))
    (folder / "15.json").write_text('{"raw_comments": ["half')
    (folder / "readme.txt").write_text("not read")
    found, tally = read(Source("ava-comments", folder, images))
    assert [(d.source, d.name, d.type, d.text) for d in found] == [
        ("AVA-Comments", "12.jpg", "Natural", "Nice light."),
        ("AVA-Comments", "12.jpg", "Natural", "Soft focus."),
    ]
    assert tally.counts == {"missing image": 1, "file without comments": 1, "unreadable file": 1}


def test_ava_comments_full(tmp_path: Path, images: Path) -> None:
    """The form that V-Sense's script reads: a line an image, parted by #; the second is the ID."""
    lines = ["0#12#Nice light. # Soft focus.#\n", "1#13#Not there.\n", "2#12##\n", "\n", "3#x#No ID.\n", "4#12\n"]
    (tmp_path / "AVA_Comments_Full.txt").write_text("".join(lines), encoding="utf-8")
    found, tally = read(Source("ava-comments", tmp_path / "AVA_Comments_Full.txt", images))
    assert [(d.source, d.name, d.type, d.text) for d in found] == [
        ("AVA-Comments", "12.jpg", "Natural", "Nice light."),
        ("AVA-Comments", "12.jpg", "Natural", "Soft focus."),
    ]
    assert tally.counts == {"missing image": 1, "image without comments": 2, "line without an image's number": 2}


@pytest.mark.parametrize("first", ["images", "dataset"])
def test_clean_ava_full_comments(first: str, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What that script writes, keys in any order, read in pieces."""
    sentences = [
        {"raw": " Nice light. ", "clean": "nice light", "tokens": ["nice"]},
        {"raw": ""},
        {"raw": "Soft focus."},
    ]
    entries = [
        {"filename": "12.jpg", "imgid": 12, "split": "train", "sentences": sentences},
        {"filename": "13.jpg", "sentences": [{"raw": "Not there."}]},
        {"filename": "12.jpg", "sentences": []},
        {"imgid": 3, "sentences": sentences},
    ]
    content = {"images": entries, "dataset": "AVA"}
    ordered = {key: content[key] for key in sorted(content, key=lambda key: key != first)}
    (tmp_path / "CLEAN_AVA_FULL_COMMENTS.json").write_text(json.dumps(ordered))
    monkeypatch.setattr(json_stream, "_CHUNK", 40)
    found, tally = read(Source("ava-comments", tmp_path / "CLEAN_AVA_FULL_COMMENTS.json", images))
    assert [(d.name, d.text) for d in found] == [("12.jpg", "Nice light."), ("12.jpg", "Soft focus.")]
    assert tally.counts == {"missing image": 1, "image without comments": 1, "entry without an image": 1}


def test_data_in_place_of_paths_and_texts_is_called_that(tmp_path: Path, images: Path) -> None:
    rows = [
        {"image": {"bytes": "x", "path": "a.jpg"}, "text": "Soft light."},
        {"image": "a.jpg", "text": ["Soft light.", "Sharp."]},
        {"image": "a.jpg", "text": None},
        {"image": " ", "text": "Soft light."},
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, tally = read(Source("table", tmp_path / "t.jsonl", images))
    assert not found
    assert tally.counts == {
        "row whose image is no path but data": 1, "row whose text is no text but data": 1, "empty text": 1,
        "row without an image": 1,
    }  # fmt: skip
    (tmp_path / "q.json").write_text(json.dumps([conversation(["a.jpg", "12.jpg"], "Soft light.")]))
    assert read(Source("q-instruct", tmp_path / "q.json", images))[1].counts == {"entry with a list of images": 1}


def test_comments_that_are_no_text_are_counted(tmp_path: Path, images: Path) -> None:
    (tmp_path / "dpc").mkdir()
    (tmp_path / "dpc" / "12.json").write_text(json.dumps({"raw_comments": ["Nice light.", None, 3, {"user": "x"}]}))
    found, tally = read(Source("ava-comments", tmp_path / "dpc", images))
    assert [d.text for d in found] == ["Nice light."]
    assert tally.counts == {"comment that is no text": 3}


ROWS = [
    {"image": "a.jpg", "text": 'A "soft", warm\nlight.', "kind": "Art"},
    {"image": "12.jpg", "text": "Noise.", "kind": None},
    {"image": "12.jpg", "text": None, "kind": "x"},
    {"image": None, "text": "Lost.", "kind": "x"},
]


def test_types_may_be_numbers(tmp_path: Path, images: Path) -> None:
    pd.DataFrame({"image": ["a.jpg", "12.jpg"], "text": ["x", "y"], "kind": [0, 1]}).to_parquet(tmp_path / "t.parquet")
    found, _ = read(Source("table", tmp_path / "t.parquet", images), columns=Columns(type="kind"))
    assert [d.type for d in found] == ["0", "1"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_tables(kind: str, tmp_path: Path, images: Path) -> None:
    frame = pd.DataFrame(ROWS).rename(columns={"image": "file", "text": "caption"})
    path = tmp_path / f"my captions.{kind}"
    if kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    found, tally = read(Source("table", path, images), columns=Columns("file", "caption", "kind"))
    assert [(d.source, d.name, d.type, d.text) for d in found] == [
        ("my captions", "a.jpg", "Art", 'A "soft", warm\nlight.'),
        ("my captions", "12.jpg", "unknown", "Noise."),
    ]
    assert tally.counts == {"empty text": 1, "row without an image": 1}
    with pytest.raises(TrainingError, match="has no column 'text'"):
        read(Source("table", path, images), columns=Columns("file"))


def test_what_cannot_be_used_is_counted_with_examples(tmp_path: Path, images: Path) -> None:
    good = conversation("a.jpg", "Soft light.")
    bad: list[Any] = [
        good,
        conversation("a.jpg", "  "),
        conversation("a.jpg", "Half \ud83d of a character."),
        conversation("no.jpg", "x"),
        conversation("../secret.jpg", "x"),
        conversation("/etc/passwd", "x"),
        conversation("..\\secret.jpg", "x"),
        conversation("nul\0.jpg", "x"),
        conversation("x" * 5000, "x"),
        conversation(None, "x"),
        {"id": 3},
        {"image": "a.jpg", "conversations": "x"},
        {"image": "a.jpg", "conversations": [{"from": "gpt"}, 3, {"from": "gpt", "value": 4}]},
        "text",
        None,
    ]
    (tmp_path / "secret.jpg").write_bytes(b"")
    path = tmp_path / "q.json"
    path.write_text(json.dumps([good, *bad]))
    found, tally = read(Source("q-instruct", path, images))
    assert [d.text for d in found] == ["Soft light.", "Half ? of a character."]
    assert tally.counts == {
        "repeated description": 1,
        "empty text": 2,
        "missing image": 3,
        "image outside the image folder": 3,
        "entry without an image": 2,
        "entry without conversations": 1,
        "not a JSON object": 2,
    }
    lines = list(tally.lines())
    assert lines[0].startswith("3 x ")
    assert "q.json entry 5 (no.jpg)" in next(line for line in lines if "missing image" in line)


def test_absolute_paths_count_where_they_lie_in_the_folder(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_image(tmp_path / "images more" / "a.jpg", 1)
    inside = [images / "a.jpg", images / "wikiart" / "images" / "b.jpg"]
    outside = [tmp_path / "images more" / "a.jpg", images / ".." / "images more" / "a.jpg"]
    frame = pd.DataFrame({"image": map(str, [*inside, *outside]), "text": "Soft light."})
    frame.to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "link").symlink_to(images)
    monkeypatch.chdir(tmp_path)
    for folder in (images, Path("images"), Path("link")):
        found, tally = read(Source("table", tmp_path / "t.csv", folder))
        assert [d.image for d in found] == inside
        assert tally.counts == {"image outside the image folder": 2}


def test_unreadable_lines_are_counted(tmp_path: Path, images: Path) -> None:
    path = tmp_path / "t.jsonl"
    deep = "[" * 100_000
    path.write_text(
        f'{{"image": "a.jpg", "text": "one"}}\n{{"image"\n\n[1]\n{deep}\n{{"image": "a.jpg", "text": "two"}}'
    )
    found, tally = read(Source("table", path, images))
    assert [d.text for d in found] == ["one", "two"]
    assert tally.counts == {"unreadable line": 2, "not a JSON object": 1}
    assert tally.examples["unreadable line"] == ["t.jsonl line 2", "t.jsonl line 5"]


@pytest.mark.parametrize("cut", [1, 30, 80, -1])
def test_a_download_that_ended_early_is_an_error(cut: int, tmp_path: Path, images: Path) -> None:
    whole = json.dumps([conversation("a.jpg", "Soft light.")] * 2)
    (tmp_path / "q.json").write_text(whole[:cut])
    with pytest.raises(TrainingError, match="is damaged at entry"):
        read(Source("q-instruct", tmp_path / "q.json", images))


@pytest.mark.parametrize("between", ["", "\n", " " * 50])
@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_a_second_list_in_a_file_is_not_passed_over(
    between: str, chunk: int, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    one = json.dumps([conversation("a.jpg", "Soft light.")])
    (tmp_path / "q.json").write_text(f"{one}{between}\n")
    assert len(read(Source("q-instruct", tmp_path / "q.json", images))[0]) == 1
    (tmp_path / "q.json").write_text(f"{one}{between}{one}")
    with pytest.raises(TrainingError, match="goes on after the end of its list"):
        read(Source("q-instruct", tmp_path / "q.json", images))


@pytest.mark.parametrize("content", ["", "{}", '{"a": [1]}', "x"])
def test_a_file_that_is_no_list_is_an_error(content: str, tmp_path: Path, images: Path) -> None:
    (tmp_path / "q.json").write_text(content)
    with pytest.raises(TrainingError, match="is not a JSON list"):
        read(Source("q-instruct", tmp_path / "q.json", images))


def test_types_can_be_told(tmp_path: Path, images: Path) -> None:
    (tmp_path / "q.json").write_text(json.dumps([conversation(n, "x") for n in ("livefb_liveitw_aigc/1.jpg", "a.jpg")]))
    rules = [("livefb_*", "AIGC"), ("*", "Natural"), ("a.jpg", "never")]
    found, _ = read(Source("q-instruct", tmp_path / "q.json", images), types=rules)
    assert [d.type for d in found] == ["AIGC", "Natural"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (("q-bench", "q.json", "images"), "there is no source format 'q-bench'. Use one of: aesexpert"),
        (("q-instruct", "none.json", "images"), "none.json does not exist"),
        (("q-instruct", "q.json", "none"), "none is no folder"),
        (("ava-comments", "q.csv", "images"), "q.csv is none of AVA's files of comments. Give DPC2022's folder"),
        (("ava-comments", "12.json", "images"), "12.json is not a JSON list"),
        (("ava-comments", "images", "images"), "holds no .json files"),
        (("q-instruct", "images", "images"), "cannot be read"),
        (("table", "q.json", "images"), "is not a table"),
    ],
)
def test_a_source_that_cannot_be_read_says_why(
    source: tuple[str, str, str], message: str, tmp_path: Path, images: Path
) -> None:
    for name in ("q.json", "q.csv"):
        (tmp_path / name).write_text("[]")
    (tmp_path / "12.json").write_text('{"ID": "12", "raw_comments": ["One of many."]}')
    with pytest.raises(TrainingError, match=message):
        read(Source(source[0], tmp_path / source[1], tmp_path / source[2]))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(_JSON, max_size=6), st.integers(1, 9), st.sampled_from([None, 2]), st.booleans())
def test_a_list_read_in_pieces_is_what_the_library_reads(
    elements: list[Any], chunk: int, indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(elements, indent=indent, ensure_ascii=ascii_only)
    before, json_stream._CHUNK = json_stream._CHUNK, chunk
    try:
        found = list(json_stream._elements(io.StringIO(text), Path("x.json")))
    finally:
        json_stream._CHUNK = before
    assert [element for _, element in found] == elements
