"""The disentanglement report: its numbers by hand, on embeddings that are known to be decoupled, and its files."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from declip_runtime.errors import TrainingError
from declip_training.evaluation.ladders import LADDERS
from declip_training.i2t.records import Record, read_records
from declip_training.train.report import Measured, disentanglement, measure, movement, retrieval
from declip_training.train.run import Job, report_run, train
from declip_training.train.schedule import held_out
from declip_training.train.seen import count_trained_on
from declip_training.train.towers import Towers
from declip_training.train.world import World

from .conftest import small


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_retrieval_counts_ranks_as_a_loop_would() -> None:
    images, texts = unit(30, 5), unit(30, 5, seed=1)
    similar = (images @ texts.T).numpy()
    ranks = np.array([(similar[i] > similar[i, i]).sum() for i in range(30)])
    back = np.array([(similar[:, i] > similar[i, i]).sum() for i in range(30)])
    found = retrieval(images, texts)
    for k in (1, 5, 10):
        assert found[f"recall@{k}"] == pytest.approx((ranks < k).mean())
        assert found[f"text_to_image_recall@{k}"] == pytest.approx((back < k).mean())
    assert found["mean_rank"] == pytest.approx(ranks.mean() / 29)


def test_equal_texts_do_not_compete() -> None:
    texts = unit(3, 8).repeat(10, 1)
    found = retrieval(texts + 0.01 * unit(30, 8, seed=2), texts)
    assert found["texts"] == 3
    assert found["recall@1"] == found["text_to_image_recall@1"] == 1
    assert found["mean_rank"] == 0


def test_several_texts_of_a_picture_do_not_compete() -> None:
    """As of five captions a picture: each is found by it, and finds it."""
    pictures = unit(40, 16)
    captions = F.normalize(pictures.repeat_interleave(5, 0) + 0.3 * unit(200, 16, seed=1), dim=-1)
    shown = pictures.repeat_interleave(5, 0)
    found = retrieval(shown, captions, torch.arange(40).repeat_interleave(5))
    similar = (pictures @ captions.T).numpy()
    own = np.kron(np.eye(40, dtype=bool), np.ones((1, 5), bool))
    best = np.where(own, similar, -2).max(1, keepdims=True)
    ranks = ((similar > best) & ~own).sum(1)
    back = (similar > np.where(own, similar, -2).max(0)).sum(0)
    for k in (1, 5, 10):
        assert found[f"recall@{k}"] == pytest.approx((ranks < k).mean())
        assert found[f"text_to_image_recall@{k}"] == pytest.approx((back < k).mean())
    assert found["recall@1"] > 0.9 > retrieval(shown, captions)["recall@1"]


def test_an_embedding_that_cannot_tell_texts_apart_finds_none() -> None:
    blind = torch.cat([unit(30, 4), torch.zeros(30, 30)], 1), torch.cat([torch.zeros(30, 4), torch.eye(30)], 1)
    found = retrieval(*blind)
    assert found["recall@10"] == found["text_to_image_recall@10"] == 0
    assert found["mean_rank"] == 0.5


def test_movement_is_the_mean_over_pairs() -> None:
    images = unit(3, 7, 6)
    cosines = np.einsum("kid,kjd->kij", images, images)
    content = np.mean([1 - cosines[k][~np.eye(7, dtype=bool)] for k in range(3)])
    moved = movement(images, ("a", "b"))
    assert moved["content"] == pytest.approx(content, rel=1e-5)
    each = [float((1 - (images[0] * images[k]).sum(-1)).mean()) for k in (1, 2)]
    assert list(moved["each"].values()) == pytest.approx(each)
    assert moved["ratio"] == pytest.approx(np.mean(each) / content, rel=1e-5)


def test_what_does_not_move_has_no_ratio() -> None:
    assert movement(unit(1, 1, 6).expand(3, 7, 6), ("a", "b"))["ratio"] is None


class Part(nn.Module):
    """A perfect projector: it keeps one half of the embedding."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.keep = torch.cat([torch.full((8,), float(first)), torch.full((8,), float(not first))])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.keep


def test_it_shows_decoupling_where_there_is_some_and_none_where_there_is_none() -> None:
    look, content = unit(40, 8), unit(40, 8, seed=1)
    distorted = torch.stack([look, look + unit(40, 8, seed=3)])
    zeros = torch.zeros(40, 8)
    texts = torch.stack([torch.cat([look, zeros], 1), torch.cat([zeros, content], 1)], 1)
    images = torch.cat([distorted, content.expand(2, 40, 8)], -1)
    records = tuple(Record(str(i), f"{i}.png", "look", "thing") for i in range(40))
    measured = Measured(images[0], texts, images, ("noise",), records, tuple(map(str, range(40))))
    report = disentanglement(measured, Part(True), Part(False))
    found, moves = report["retrieval"], report["movement"]
    assert found["perceptual"]["perceptual"]["recall@1"] == found["semantic"]["semantic"]["recall@1"] == 1
    assert found["perceptual"]["semantic"]["mean_rank"] > 0.3
    assert moves["perceptual"]["ratio"] > 1.3 * moves["clip"]["ratio"]
    assert moves["semantic"]["ratio"] < 1e-5
    same = disentanglement(measured, nn.Identity(), nn.Identity())
    assert same["retrieval"]["perceptual"] == same["retrieval"]["clip"] == same["retrieval"]["semantic"]
    assert same["movement"]["semantic"] == same["movement"]["clip"]


def test_pictures_are_distorted_as_they_are_named(table: Path, towers: Towers) -> None:
    records = read_records(table)[:8]
    measured, reasons = measure(towers, records, table.parent, kinds=("overexposure",), distorted=5)
    assert not reasons
    assert measured.clean.shape == (8, 32)
    assert measured.images.shape == (3, 5, 32)
    assert measured.distortions == ("overexposure, mild", "overexposure, strong")
    moved = [float((measured.images[k] - measured.images[0]).norm(dim=-1).mean()) for k in (1, 2)]
    assert 0 < moved[0] < moved[1]
    torch.testing.assert_close(measured.images[0], measured.clean[:5])


def test_the_order_of_the_table_does_not_matter(table: Path, towers: Towers) -> None:
    records = read_records(table)[:6]
    one, _ = measure(towers, records, table.parent, kinds=("jpeg",), distorted=3)
    other, _ = measure(towers, records[::-1], table.parent, kinds=("jpeg",), distorted=3)
    torch.testing.assert_close(one.images, other.images)


def test_a_run_is_reported_with_what_must_be_known(table: Path, towers: Towers, tmp_path: Path) -> None:
    job = Job(table, tmp_path / "run", small())
    train(job, towers, World())
    said: list[str] = []
    folder = report_run(job, towers, table, kinds=("blur",), say=said.append)
    report = json.loads((folder / "report.json").read_text())
    assert report["records"] == 120
    assert 60 < report["trained_on"] < 120
    assert said == [f"{report['trained_on']} of 120 records of the report were trained on. Give records that were not."]
    text = (folder / "report.md").read_text()
    assert "memory, not decoupling" in text
    assert f"| {report['retrieval']['perceptual']['perceptual']['recall@1']:.3f} |" in text
    for name in ("retrieval.png", "movement.png"):
        with Image.open(folder / name) as plot:
            assert np.asarray(plot.convert("L")).std() > 10

    rows = [json.loads(line) for line in table.read_text().splitlines()[:6]]
    renamed = [json.dumps({**row, "id": f"new {row['id']}", "image": str(table.parent / row["image"])}) for row in rows]
    (tmp_path / "renamed.jsonl").write_text("\n".join(renamed))
    folder = report_run(job, towers, tmp_path / "renamed.jsonl", kinds=("blur",))
    same = json.loads((folder / "report.json").read_text())["trained_on"]
    assert same == 6 - held_out([row["id"] for row in rows], job.settings.validation).sum() > 0


def test_equal_texts_are_one_wherever_they_stand(table: Path, towers: Towers) -> None:
    """The last of a batch is computed otherwise than the first, to the last bit."""
    words = [f"a picture that is {kind}, more or less" for kind in ("bright", "dark", "soft")]
    records = [replace(r, perceptual=words[i % 3]) for i, r in enumerate(read_records(table)[:67])]
    measured, _ = measure(towers, records, table.parent, kinds=("jpeg",), distorted=2)
    assert len(torch.unique(measured.texts[:, 0], dim=0)) == 3
    index = [words.index(record.perceptual) for record in measured.records]
    assert len({(place, tuple(row.tolist())) for place, row in zip(index, measured.texts[:, 0], strict=True)}) == 3


def test_a_picture_of_several_records_is_distorted_once(table: Path, towers: Towers) -> None:
    records = [
        replace(r, id=f"{r.id}-{n}", semantic=f"{n} {r.semantic}") for r in read_records(table)[:4] for n in (1, 2)
    ]
    measured, _ = measure(towers, records, table.parent, kinds=("jpeg",))
    assert (measured.clean.shape[0], measured.images.shape[1], len(set(measured.sha256))) == (8, 4, 4)
    assert len(torch.unique(measured.images[0], dim=0)) == 4
    measured, _ = measure(towers, records, table.parent, kinds=("jpeg",), distorted=3)
    assert measured.images.shape[1] == 3, "of pictures, not of records"


def test_an_untrained_projector_is_called_so(table: Path, towers: Towers, tmp_path: Path) -> None:
    run = Job(table, tmp_path / "run", small(lr=0.0))
    assert train(run, towers, World())["best_step"] == 0
    assert "those of step 0, not trained" in (report_run(run, towers, table, kinds=("jpeg",)) / "report.md").read_text()


@pytest.mark.parametrize(
    ("image", "text", "known", "seen"),
    [
        ("same", "other", "hash", True),
        ("other", "other", "hash", False),
        ("other", "same", "hash", True),
        ("other", "other", "", True),
        ("same", "same", None, False),
    ],
)
def test_who_was_trained_on(image: str, text: str, known: str | None, seen: bool) -> None:
    """Ids that are running numbers are those of many tables; what was left out was not trained on."""
    mine = Record("7", "a.png", "a soft picture", "a dog")
    theirs = mine if text == "same" else replace(mine, perceptual="a sharp picture", semantic="a cat")
    sha256 = "hash" if image == "same" else "another"
    nothing = torch.zeros(1, 2)
    measured = Measured(nothing, nothing, nothing, (), (theirs,), (sha256,))
    assert count_trained_on([mine], [known], 0.0, measured) == seen


def test_hostile_reports(table: Path, towers: Towers) -> None:
    records: Any = read_records(table)[:4]
    with pytest.raises(TrainingError, match=f"no distortion rain. Use {', '.join(LADDERS)}"):
        measure(towers, records, table.parent, kinds=("rain",))
    with pytest.raises(TrainingError, match="needs readable records of 2 pictures, there are 1 of 1"):
        measure(towers, records[:1], table.parent)
    records[2] = dataclasses.replace(records[2], image="gone.png")
    with pytest.raises(TrainingError, match=r"1 of 4 images of the report cannot be read: .*gone\.png"):
        measure(towers, records, table.parent, kinds=("blur",))
    measured, reasons = measure(towers, records, table.parent, kinds=("blur",), skip_unreadable=True)
    assert (len(measured.clean), len(measured.texts), len(reasons)) == (3, 3, 1)
