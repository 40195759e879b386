"""The feature bank holds what the towers say, survives a kill, and is never taken for another."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from declip_runtime.errors import ImageDecodeError, TrainingError
from declip_training.i2t.records import Record, read_records
from declip_training.train import bank as bank_module
from declip_training.train.bank import Bank, BankBuilder
from declip_training.train.crops import RandomCrops
from declip_training.train.sole import sole
from declip_training.train.towers import Towers, _config_sha256
from declip_training.train.world import World

from .conftest import environment


@pytest.fixture(autouse=True)
def blocks_of_32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_module, "BLOCK", 32)


def builder(table: Path, folder: Path, towers: Towers, records: list[Record] | None = None, **more: Any) -> BankBuilder:
    crops = RandomCrops(towers.preprocess, more.pop("least", 0.7), more.pop("seed", 0))
    count = more.pop("count", 2)
    return BankBuilder(folder, records or read_records(table), table.parent, towers, crops, count, threads=2)


def build(*arguments: Any, **more: Any) -> Bank:
    return builder(*arguments, **more).build(World(), lambda stage, done, total: None)


class KilledError(Exception):
    """Stands for kill -9."""


class Counting:
    """Towers that count pictures and die at one of them."""

    def __init__(self, towers: Towers, dies_at: int | None = None) -> None:
        self._towers, self.seen, self._dies_at = towers, 0, dies_at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._towers, name)

    def images(self, pixels: list[Any]) -> torch.Tensor:
        self.seen += len(pixels)
        if self._dies_at is not None and self.seen > self._dies_at:
            raise KilledError
        return self._towers.images(pixels)


def test_rows_are_what_the_towers_say_of_each_crop_and_text(table: Path, towers: Towers, tmp_path: Path) -> None:
    bank = build(table, tmp_path / "bank", towers)
    records = read_records(table)
    assert bank.images.shape == (120, 2, 32)
    assert isinstance(bank.images, np.memmap)
    crops = RandomCrops(towers.preprocess, 0.7, 0)
    for row in (0, 31, 32, 119):
        image = Image.open(table.parent / records[row].image).convert("RGB")
        alone = towers.images(crops.of(image, records[row].id, (0, 1))).numpy()
        assert np.allclose(bank.images[row], alone, atol=2e-3 * np.abs(alone).max())
        texts = towers.texts([records[row].perceptual, records[row].semantic]).numpy()
        assert np.allclose(bank.texts[row], texts, atol=1e-3)
    assert np.abs(bank.images[:, 0] - bank.images[:, 1]).max() > 0.01, "crops differ"


def test_a_killed_build_does_the_rest_only(table: Path, towers: Towers, tmp_path: Path) -> None:
    whole = build(table, tmp_path / "whole", towers)
    dying: Any = Counting(towers, dies_at=150)  # two blocks of 64 crops are done
    with pytest.raises(KilledError):
        build(table, tmp_path / "killed", dying)
    assert len(list((tmp_path / "killed" / "blocks").glob("*.json"))) == 2
    rest: Any = Counting(towers)
    resumed = build(table, tmp_path / "killed", rest)
    assert rest.seen == 240 - 128
    assert (resumed.images == whole.images).all()
    assert (resumed.texts == whole.texts).all()
    again: Any = Counting(towers)
    build(table, tmp_path / "killed", again)
    assert again.seen == 0


_SLOW_BUILD = """
import sys, time
from pathlib import Path
import torch
from declip_training.i2t.records import read_records
from declip_training.train import bank
from declip_training.train.crops import RandomCrops
from declip_training.train.towers import Towers
from declip_training.train.world import World
table, config, folder, pause = sys.argv[1:]
torch.set_num_threads(1)
bank.BLOCK = 8

class Slow(Towers):
    def images(self, pixels):
        time.sleep(float(pause))
        return super().images(pixels)

towers = Slow.load(config, "random", torch.device("cpu"), "fp32")
crops = RandomCrops(towers.preprocess, 0.7, 0)
builder = bank.BankBuilder(Path(folder), read_records(Path(table)), Path(table).parent, towers, crops, 2, 2)
builder.build(World(), lambda *_: None)
"""


def test_kill_9_costs_a_block_and_no_bit(table: Path, tiny_config: Path, tmp_path: Path) -> None:
    def start(name: str, pause: float) -> subprocess.Popen[bytes]:
        program = [sys.executable, "-c", _SLOW_BUILD, str(table), str(tiny_config), str(tmp_path / name), str(pause)]
        return subprocess.Popen(program, env=environment())

    assert start("whole", 0).wait() == 0
    for wanted in (1, 7):
        process = start("killed", 0.3)
        while process.poll() is None and len(list((tmp_path / "killed" / "blocks").glob("*.json"))) < wanted:
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert start("killed", 0).wait() == 0
    for name in ("images.npy", "texts.npy", "bank.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_ranks_share_the_blocks(table: Path, towers: Towers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build(table, tmp_path / "whole", towers)
    monkeypatch.setattr(World, "_tell", lambda self, refusal: [refusal])
    first, second, both = (Counting(towers) for _ in range(3))
    make: Any = builder
    with pytest.raises(TrainingError, match="cannot be read"):  # the second's blocks are missing
        make(table, tmp_path / "bank", first).build(World(0, 2), lambda *_: None)
    bank = make(table, tmp_path / "bank", second).build(World(1, 2), lambda *_: None)
    assert (first.seen, second.seen) == (128, 112)
    assert (bank.images == whole.images).all()
    build(table, tmp_path / "bank", both)
    assert both.seen == 0


@pytest.mark.parametrize("change", ["tower", "seed", "count", "least", "text", "order"])
def test_a_bank_of_another_key_is_refused_by_name(
    change: str, table: Path, towers: Towers, tiny_config: Path, tmp_path: Path
) -> None:
    build(table, tmp_path / "bank", towers)
    records, more = read_records(table), {}
    named = {"seed": "seed is 1, was 0", "count": "crops is 3, was 2", "least": "crop_side is 0.5, was 0.7"}
    named |= {"tower": "tower_sha256 is", "text": "records_sha256 is", "order": "records_sha256 is"}
    if change == "tower":
        towers = Towers.load(str(tiny_config), "random", towers.device, "fp32")
        next(towers.visual.parameters()).add_(0.1)
    elif change == "text":
        records[5] = dataclasses.replace(records[5], semantic="something else")
    elif change == "order":
        records.reverse()
    else:
        more = {change: {"seed": 1, "count": 3, "least": 0.5}[change]}
    with pytest.raises(TrainingError, match=rf"holds features of another tower or other data: .*{named[change]}"):
        build(table, tmp_path / "bank", towers, records, **more)


def test_text_tower_weights_are_part_of_the_key(table: Path, towers: Towers, tiny_config: Path, tmp_path: Path) -> None:
    build(table, tmp_path / "bank", towers)
    other = Towers.load(str(tiny_config), "random", towers.device, "fp32")
    dict(other.clip.named_parameters())["text_projection"].add_(0.1)
    with pytest.raises(TrainingError, match="data: clip_sha256 is"):
        build(table, tmp_path / "bank", other)


def test_an_image_that_changed_is_noticed_and_one_that_was_touched_is_not(
    place: Path, towers: Towers, tmp_path: Path
) -> None:
    build(place, tmp_path / "bank", towers)
    (place.parent / "7.png").touch()
    build(place, tmp_path / "bank", towers)
    Image.new("RGB", (50, 50), "red").save(place.parent / "7.png")
    with pytest.raises(TrainingError, match=r"1 images have changed since .*7\.png"):
        build(place, tmp_path / "bank", towers)
    (place.parent / "7.png").unlink()
    assert build(place, tmp_path / "bank", towers).gone == 1


def test_what_cannot_be_read_is_counted_and_read_again_when_it_was_repaired(
    place: Path, towers: Towers, tmp_path: Path
) -> None:
    good = build(place, tmp_path / "good", towers)
    whole = (place.parent / "40.png").read_bytes()
    (place.parent / "40.png").write_bytes(whole[:100])
    (place.parent / "41.png").rename(place.parent / "away.png")
    bank = build(place, tmp_path / "bank", towers)
    assert sorted(bank.unreadable) == [40, 41]
    assert "40.png" in bank.unreadable[40]
    assert len(bank.usable) == 118
    (place.parent / "40.png").write_bytes(whole)
    (place.parent / "away.png").rename(place.parent / "41.png")
    counting: Any = Counting(towers)
    bank = build(place, tmp_path / "bank", counting)
    assert counting.seen == 64, "one block is read again"
    assert not bank.unreadable
    assert np.allclose(bank.images, good.images, atol=2e-3)


def test_an_image_that_changed_is_noticed_beside_one_that_was_repaired(
    place: Path, towers: Towers, tmp_path: Path
) -> None:
    """Both in one block, which would be built again."""
    whole = (place.parent / "3.png").read_bytes()
    (place.parent / "3.png").write_bytes(whole[:100])
    before = build(place, tmp_path / "bank", towers)
    assert list(before.unreadable) == [3]
    held = np.array(before.images)
    (place.parent / "3.png").write_bytes(whole)
    Image.new("RGB", (50, 50), "red").save(place.parent / "7.png")
    for _ in range(2):
        with pytest.raises(TrainingError, match=r"1 images have changed since .*7\.png"):
            build(place, tmp_path / "bank", towers)
    assert (np.load(tmp_path / "bank" / "images.npy") == held).all()


def test_a_tower_of_another_form_with_the_same_weights_is_another(
    table: Path, towers: Towers, tiny_config: Path, tmp_path: Path
) -> None:
    config = json.loads(tiny_config.read_text())
    said = tmp_path / "written.json"
    said.write_text(json.dumps(config, indent=3, sort_keys=True))
    assert _config_sha256(said) == towers.config_sha256
    said.write_text(json.dumps({**config, "quick_gelu": True}))
    other = dataclasses.replace(towers, config_sha256=_config_sha256(said))
    build(table, tmp_path / "bank", towers)
    stated = tmp_path / "bank" / "bank.json"
    known = json.loads(stated.read_text())
    del known["key"]["config_sha256"]  # as banks of before are
    stated.write_text(json.dumps(known))
    counting: Any = Counting(towers)
    build(table, tmp_path / "bank", counting)
    assert counting.seen == 0
    with pytest.raises(TrainingError, match="data: config_sha256 is"):
        build(table, tmp_path / "bank", other)


def test_an_image_that_is_not_its_records_is_unreadable(place: Path, towers: Towers, tmp_path: Path) -> None:
    records = [dataclasses.replace(r, image_sha256="0" * 64 if r.id == "r3" else "") for r in read_records(place)]
    bank = build(place, tmp_path / "bank", towers, records)
    assert list(bank.unreadable) == [3]
    assert "SHA-256" in bank.unreadable[3]


def test_a_stated_hash_counts_as_the_table_has_it_now(place: Path, towers: Towers, tmp_path: Path) -> None:
    def verdict(stated: str) -> list[int]:
        records = read_records(place)
        records[3] = dataclasses.replace(records[3], image_sha256=stated)
        return list(build(place, tmp_path / "bank", counting, records).unreadable)

    counting: Any = Counting(towers)
    right = hashlib.sha256((place.parent / "3.png").read_bytes()).hexdigest()
    assert [verdict(stated) for stated in ("0" * 64, right.upper(), "", "1" * 64)] == [[3], [], [], [3]]
    assert counting.seen == 240, "no image is read twice"


def test_an_image_that_can_be_read_now_though_its_file_is_the_same(
    place: Path, towers: Towers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when pillow-heif was installed since."""

    def opens(self: RandomCrops, path: Path) -> Image.Image:
        if path.name == "40.png":
            raise ImageDecodeError(f"{path} cannot be read yet")
        return original(self, path)

    original = RandomCrops.open
    monkeypatch.setattr(RandomCrops, "open", opens)
    assert list(build(place, tmp_path / "bank", towers).unreadable) == [40]
    moved = Path(shutil.move(place.parent, tmp_path / "moved")) / place.name
    still: Any = Counting(towers)
    assert str(moved.parent / "40.png") in build(moved, tmp_path / "bank", still).unreadable[40]
    assert still.seen == 0
    monkeypatch.undo()
    monkeypatch.setattr(bank_module, "BLOCK", 32)
    assert not build(moved, tmp_path / "bank", towers).unreadable


def test_a_bank_that_another_run_makes_is_waited_for(table: Path, towers: Towers, tmp_path: Path) -> None:
    with ExitStack() as other:
        other.enter_context(sole(tmp_path / "bank" / "blocks", World(), print))
        told: list[str] = []

        def say(line: str) -> None:
            told.append(line)
            other.close()

        builder(table, tmp_path / "bank", towers).build(World(), lambda *_: None, say)
    assert len(told) == 1
    assert f"in use by another run (process {os.getpid()} on " in told[0]


def test_whatever_a_photo_folder_holds(hostile: Any, towers: Towers, tmp_path: Path) -> None:
    paths = {**hostile.good, **{name: path for name, (path, _) in hostile.bad.items()}}
    records = [Record(str(i), str(path), "look", "content") for i, path in enumerate(paths.values())]
    crops = RandomCrops(towers.preprocess, 0.7, 0)
    bank = BankBuilder(tmp_path / "bank", records, tmp_path, towers, crops, 1).build(World(), lambda *_: None)
    assert len(bank.usable) == len(hostile.good)
    assert len(bank.unreadable) == len(hostile.bad)
    assert not any(bank.images[sorted(bank.unreadable)].any(axis=(1, 2)))
    assert bank.images[bank.usable].any(axis=(1, 2)).all()


def test_texts_that_are_cut_are_counted(place: Path, towers: Towers, tmp_path: Path) -> None:
    records = read_records(place)
    records[0] = dataclasses.replace(records[0], perceptual="very " * 40 + "sharp")
    assert build(place, tmp_path / "bank", towers, records).cut == 1


def test_features_that_are_no_numbers_are_refused_by_record(table: Path, towers: Towers, tmp_path: Path) -> None:
    class Broken(Counting):
        def images(self, pixels: list[Any]) -> torch.Tensor:
            return super().images(pixels) * torch.tensor([1e6] + [1.0] * (len(pixels) - 1))[:, None]

    broken: Any = Broken(towers)
    with pytest.raises(TrainingError, match=r"no finite FP16 features for \d+ records: 'r0'"):
        build(table, tmp_path / "bank", broken)


def test_a_full_disk_shows_before_the_towers_run(
    table: Path, towers: Towers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bank_module.os, "posix_fallocate", full)
    counting: Any = Counting(towers)
    with pytest.raises(TrainingError, match=r"No space left on device\. Free some space"):
        build(table, tmp_path / "bank", counting)
    assert counting.seen == 0
    monkeypatch.undo()
    assert len(build(table, tmp_path / "bank", towers).usable) == 120


def test_a_folder_with_other_things_is_left_alone(table: Path, towers: Towers, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "images.npy").write_text("precious")
    with pytest.raises(TrainingError, match="not empty and no feature bank"):
        build(table, tmp_path / "mine", towers)
    assert (tmp_path / "mine" / "images.npy").read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "content"),
    [("bank.json", "{broken"), ("bank.json", "{}"), ("texts.npy", "{broken"), ("images.npy", ""),
     ("blocks/00001.json", "{broken"), ("blocks/00001.json", "{}"), ("blocks/00001.json", "[]")],
)  # fmt: skip
def test_a_damaged_bank_is_one_error(name: str, content: str, table: Path, towers: Towers, tmp_path: Path) -> None:
    build(table, tmp_path / "bank", towers)
    (tmp_path / "bank" / "blocks" / "00000.json").unlink()  # which is to be built again
    (tmp_path / "bank" / name).write_text(content)
    with pytest.raises(TrainingError, match=name.rpartition("/")[2]):
        build(table, tmp_path / "bank", towers)


def test_markers_are_written_after_the_rows(table: Path, towers: Towers, tmp_path: Path) -> None:
    """A block counts as done only with all that is needed to recognise its images."""
    build(table, tmp_path / "bank", towers)
    block = json.loads((tmp_path / "bank" / "blocks" / "00003.json").read_text())
    assert len(block["files"]) == 120 - 96
    assert all(len(sha) == 64 for _, _, sha in block["files"])
