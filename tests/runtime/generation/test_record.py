"""What a picture says of how it was made, through PNG files and back to the same picture."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from declip_runtime.errors import ImageDecodeError, ImageNotFoundError, UsageError
from declip_runtime.generation.adapter import DPAdapter
from declip_runtime.generation.record import KEY, differences, read_record, repeat, save, stamp

Picture = Callable[[int], Image.Image]

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning:diffusers")

PROMPT = 'a "red" house,\n写真 📷, café \x07'


def pixels(image: Image.Image) -> list[Any]:
    return list(np.asarray(image).tolist())


def test_a_record_repeats_the_picture(adapter: DPAdapter, folder: Path) -> None:
    scale = {"up": {"block_0": [0.0, 1, 0.5]}}
    made = adapter.generate(
        ["a dog", PROMPT], negative_prompt="blurry", perceptual=[folder / "a.png", folder / "b.png"],
        semantic=str(folder / "b.png"), perceptual_scale=0.25, semantic_scale=scale, steps=3, guidance=2.5, width=48,
        height=16, seed=[7, 11], scheduler="euler-a",
    )  # fmt: skip
    path = save(made[1], folder / "made.PNG")
    record = read_record(path)
    assert record == read_record(made[1])
    arguments = repeat(record)
    assert arguments["prompt"] == PROMPT
    assert arguments["seed"] == 11
    assert arguments["semantic_scale"] == scale
    assert pixels(adapter.generate(**arguments)[0]) == pixels(made[1])
    with Image.open(path) as again:
        assert pixels(again) == pixels(made[1])


def test_the_record_names_everything(adapter: DPAdapter, folder: Path) -> None:
    made = adapter.generate("a dog", image=folder / "a.png")[0]
    record = json.loads(made.info[KEY])
    assert record["engine"] == {"id": adapter.engine.id, "name": "tiny-sd"}
    assert (record["backend"], record["device"], record["precision"]) == ("fake", "cpu", "fp32")
    assert record["description"].startswith("fake")
    assert {"declip-sdk", "python", "torch", "diffusers", "tokenizers", "numpy", "pillow"} <= set(record["versions"])
    assert (record["steps"], record["guidance"], record["scheduler"]) == (4, 5.0, None)
    assert (record["width"], record["height"], record["negative_prompt"]) == (32, 32, "")
    reference = record["conditions"]["image"]["images"][0]
    assert reference["path"] == str(folder / "a.png")
    assert (len(reference["sha256"]), reference["of"]) == (64, "file")


def test_any_reader_of_png_texts_sees_it(adapter: DPAdapter, folder: Path) -> None:
    path = save(adapter.generate(PROMPT)[0], folder / "made.png")
    with Image.open(path) as image:
        assert isinstance(image, PngImagePlugin.PngImageFile)
        assert json.loads(image.text[KEY])["prompt"] == PROMPT
        assert image.text[KEY].isascii()


# --- saving


def test_saving_needs_png(adapter: DPAdapter, folder: Path) -> None:
    with pytest.raises(UsageError, match=r"made\.jpg would lose the record .* Name a \.png"):
        save(adapter.generate()[0], folder / "made.jpg")
    assert not (folder / "made.jpg").exists()


def test_saving_is_all_or_nothing(adapter: DPAdapter, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = adapter.generate()[0]
    path = save(image, folder / "made.png")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"cannot write .*made\.png: No space left on device\. Choose"):
        save(adapter.generate()[0], path)
    assert path.read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == ["a.png", "b.png", "made.png"]
    with pytest.raises(UsageError, match="cannot write"):
        save(image, folder / "nowhere" / "made.png")


@pytest.mark.parametrize("place", ["a.png/x.png", "a\0.png", "folder.png"])
def test_a_place_that_can_be_none_is_told(folder: Path, picture: Picture, place: str) -> None:
    (folder / "folder.png").mkdir()
    with pytest.raises(UsageError, match=r"cannot write .*\. Choose another place"):
        save(picture(1), folder / place)
    assert sorted(p.name for p in folder.iterdir()) == ["a.png", "b.png", "folder.png"]


def test_a_picture_without_a_record_is_saved_without(folder: Path, picture: Picture) -> None:
    path = save(picture(1), folder / "plain.png")
    with pytest.raises(UsageError, match=r"plain\.png' does not say how it was made"):
        read_record(path)


# --- reading


def test_what_has_no_record_is_told(folder: Path, picture: Picture) -> None:
    (folder / "text.png").write_text("hello")
    picture(1).save(folder / "photo.jpg")
    for name, error, told in (
        ("a.png", UsageError, "does not say how it was made"),
        ("photo.jpg", UsageError, "no PNG file"),
        ("text.png", ImageDecodeError, "not an image"),
        ("nowhere.png", ImageNotFoundError, "does not exist"),
        (".", ImageNotFoundError, "is no file"),
    ):
        with pytest.raises(error, match=told):
            read_record(folder / name)
    with pytest.raises(UsageError, match="does not say how it was made"):
        read_record(picture(1))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "1"}', "[" * 100_000])
def test_a_damaged_record_is_told(text: str, picture: Picture) -> None:
    image = picture(1)
    image.info[KEY] = text
    with pytest.raises(UsageError, match="damaged"):
        read_record(image)


def test_a_newer_record_is_told(picture: Picture) -> None:
    image = picture(1)
    stamp(image, {"format": 2})
    with pytest.raises(UsageError, match="newer SDK"):
        read_record(image)


# --- repeating


def test_relative_paths_are_looked_for_here_and_beside_the_picture(
    adapter: DPAdapter, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    record = read_record(adapter.generate(perceptual="a.png", semantic="b.png")[0])
    assert repeat(record)["perceptual"] == [Path("a.png")]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert repeat(record, folder=folder)["semantic"] == [folder / "b.png"]
    with pytest.raises(ImageNotFoundError, match=r"the perceptual image of the record is not at 'a\.png'\. Give"):
        repeat(record)


def test_a_changed_file_is_named(adapter: DPAdapter, folder: Path, picture: Picture) -> None:
    record = read_record(adapter.generate(perceptual=folder / "a.png", semantic=folder / "b.png")[0])
    repeat(record)
    picture(9).save(folder / "b.png")
    with pytest.raises(UsageError, match=r"b\.png' is not the semantic image of the record any more"):
        repeat(record)
    with pytest.raises(UsageError, match=r"a\.png' is not the semantic image"):
        repeat(record, semantic=folder / "a.png")
    picture(1).save(folder / "moved.png")
    assert repeat(record, semantic=folder / "moved.png")["semantic"] == [folder / "moved.png"]


def test_images_from_memory_are_asked_for_again(adapter: DPAdapter, folder: Path, picture: Picture) -> None:
    data = (folder / "a.png").read_bytes()
    record = read_record(adapter.generate(perceptual=data, image=picture(1), seed=1)[0])
    assert [c["images"][0]["path"] for c in record["conditions"].values()] == [None, None]
    with pytest.raises(UsageError, match=r"perceptual image of the record came without a file\. Give it again"):
        repeat(record, image=picture(1))
    # The same pixels in an array are the same image, and the same bytes in a file.
    arguments = repeat(record, perceptual=folder / "a.png", image=np.asarray(picture(1)))
    assert pixels(adapter.generate(**arguments)[0]) == pixels(
        adapter.generate(perceptual=data, image=picture(1), seed=1)[0]
    )
    with pytest.raises(UsageError, match="not the image image of the record"):
        repeat(record, perceptual=data, image=picture(2))
    with pytest.raises(UsageError, match="known by its file"):
        repeat(record, perceptual=picture(0), image=picture(1))
    with pytest.raises(UsageError, match="2 images were given for perceptual, the record has 1"):
        repeat(record, perceptual=[data, data], image=picture(1))


def test_one_place_is_named_once(adapter: DPAdapter, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    record = read_record(adapter.generate(perceptual="a.png")[0])
    (folder / "a.png").unlink()
    with pytest.raises(ImageNotFoundError, match=r"is not at 'a\.png'\. Give its new place as perceptual"):
        repeat(record, folder="")
    with pytest.raises(ImageNotFoundError, match=r"is not at 'a\.png' and 'x/a\.png'\."):
        repeat(record, folder="x")


def test_what_made_it_otherwise_is_named(adapter: DPAdapter) -> None:
    record = read_record(adapter.generate()[0])
    assert differences(record, adapter.identity) == []
    other = {**record, "engine": {"id": "0123456789"}, "backend": "openvino"}
    told = ["another engine (01234567, here ", "another backend (openvino, here fake)"]
    for found, wanted in zip(differences(other, adapter.identity), told, strict=True):
        assert found.startswith(wanted)
    for engine in ("abc", [], None):
        assert len(differences({**record, "engine": engine}, adapter.identity)) == 1


@pytest.mark.parametrize("conditions", [[], "perceptual", 5, None])
def test_conditions_that_are_none_are_told(adapter: DPAdapter, conditions: Any) -> None:
    record = read_record(adapter.generate()[0])
    with pytest.raises(UsageError, match="incomplete"):
        repeat({**record, "conditions": conditions})


@pytest.mark.parametrize("missing", ["prompt", "seed", "conditions", "scheduler"])
def test_an_incomplete_record_is_told(adapter: DPAdapter, missing: str) -> None:
    record = read_record(adapter.generate()[0])
    del record[missing]
    with pytest.raises(UsageError, match="incomplete"):
        repeat(record)
    with pytest.raises(UsageError, match="incomplete"):
        repeat({**record, missing: 1, "conditions": {"image": {"images": [5]}}})
