"""Readers, splits, distortions and batches."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from declip_runtime.errors import TrainingError
from declip_training.data.attributes import ALTERATIONS, measure
from declip_training.data.batches import FAINT, Batch, BatchLabels, BatchShape, BatchSource
from declip_training.data.biq2021 import Rated, read_split, read_splits
from declip_training.data.descriptions import distortion_sentences, level_sentences, strength_of
from declip_training.data.distortions import DISTORTIONS, distort, ladder
from declip_training.data.flickr8k import Captioned, read_flickr8k
from declip_training.data.pixel_bank import build_pixel_bank


def save(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(path, "JPEG", quality=90)


@pytest.fixture
def biq(tmp_path: Path) -> Path:
    """A miniature in the official layout, traps included: one .JPG, two extra columns, a Train copy of a Test photo."""
    train = [f"{s} ({i}).jpg" for s in ("ss01", "ss02", "ss03") for i in range(10)]
    test = [f"{s} ({i}).jpg" for s in ("ss01", "ss02", "ss03") for i in range(10, 13)]
    for seed, name in enumerate(train + test):
        save(tmp_path / "Images" / (name.replace(".jpg", ".JPG") if name == "ss03 (4).jpg" else name), seed)
    (tmp_path / "Images" / "ss02 (11).jpg").write_bytes((tmp_path / "Images" / "ss02 (5).jpg").read_bytes())
    rows = "".join(f"{n},{0.1 + 0.02 * i:.4f},,\n" for i, n in enumerate(train))
    (tmp_path / "Train (Images and MOS).csv").write_text("Image Name,MOS,,\n" + rows)
    rows = "".join(f"{n},0.5\n" for n in test)
    (tmp_path / "Test (Images and MOS).csv").write_text("\ufeffImage Name,MOS\n" + rows, encoding="utf-8")
    return tmp_path


def test_biq_official_tables_are_read(biq: Path) -> None:
    train, test = read_split(biq, "Train"), read_split(biq, "Test")
    assert (len(train), len(test)) == (30, 9)
    assert train[0].mos == pytest.approx(0.1)
    assert {p.subset for p in train} == {"ss01", "ss02", "ss03"}


def test_splits_never_share_a_photo_or_a_lookalike(biq: Path) -> None:
    splits = read_splits(biq, validation_share=0.2)
    names = [{p.path.name for p in part} for part in (splits.fit, splits.validation, splits.test)]
    assert not names[0] & names[1]
    assert not (names[0] | names[1]) & names[2]
    assert "ss02 (5).jpg" not in names[0] | names[1]  # a Test photo looks like it
    assert [p.path.name for p in splits.test if not splits.test_unique[splits.test.index(p)]] == ["ss02 (11).jpg"]
    assert {p.subset for p in splits.validation} == {"ss01", "ss02", "ss03"}


def test_a_missing_file_is_named(biq: Path) -> None:
    (biq / "Images" / "ss01 (3).jpg").unlink()
    with pytest.raises(TrainingError, match=r"ss01 \(3\)\.jpg"):
        read_split(biq, "Train")
    with pytest.raises(TrainingError, match="BIQ2021"):
        read_split(biq / "nowhere", "Train")


@pytest.mark.parametrize("mos", ["n.a.", "nan", "7", ""])
def test_a_mos_that_is_none_is_named(biq: Path, mos: str) -> None:
    table = biq / "Test (Images and MOS).csv"
    table.write_text(table.read_text(encoding="utf-8").replace("ss02 (10).jpg,0.5", f"ss02 (10).jpg,{mos}"))
    with pytest.raises(TrainingError, match=rf"ss02 \(10\)\.jpg the MOS '{mos}', which is no number in 0\.\.1"):
        read_split(biq, "Test")


def test_a_photo_that_cannot_be_decoded_is_named(biq: Path) -> None:
    photo = biq / "Images" / "ss02 (10).jpg"
    photo.write_bytes(b"no picture")
    with pytest.raises(TrainingError, match=r"ss02 \(10\)\.jpg cannot be decoded: .* Take the photo from"):
        read_splits(biq)


def test_flickr8k_keeps_photos_with_captions_only(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        save(tmp_path / "images" / name, 1)
    table = tmp_path / "Flickr8k.token.txt"
    table.write_text("a.jpg#0\tA dog .\na.jpg#1\tThe dog runs .\nc.jpg#0\tA cat .\nd.jpg#0\tNo file .\n")
    found = read_flickr8k(tmp_path / "images", table)
    assert [(p.path.name, len(p.captions)) for p in found] == [("a.jpg", 2), ("c.jpg", 1)]
    with pytest.raises(TrainingError, match="captions are missing"):
        read_flickr8k(tmp_path / "images", tmp_path / "other.txt")


def test_pixel_bank_is_built_once_and_keyed(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.jpg" for i in range(4)]
    for i, path in enumerate(paths):
        save(path, i)
    bank = build_pixel_bank(paths, 32, tmp_path / "cache")
    assert bank.shape == (4, 32, 32, 3)
    files = sorted((tmp_path / "cache").iterdir())
    build_pixel_bank(paths, 32, tmp_path / "cache")
    assert sorted((tmp_path / "cache").iterdir()) == files
    other = build_pixel_bank(paths[:3], 32, tmp_path / "cache")
    assert len(other) == 3


def test_a_pixel_bank_that_cannot_be_built_leaves_nothing(tmp_path: Path) -> None:
    save(tmp_path / "whole.jpg", 0)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-300])
    with pytest.raises(TrainingError, match=r"cut\.jpg cannot be decoded: .* give the same command"):
        build_pixel_bank([tmp_path / "whole.jpg", tmp_path / "cut.jpg"], 32, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_full_disk_is_an_error_before_the_work_and_not_a_crash(
    tmp_path: Path, on_full_disk: Callable[..., Any]
) -> None:
    save(tmp_path / "photo.jpg", 0)
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from declip_runtime.errors import TrainingError\n"
        "from declip_training.data.pixel_bank import build_pixel_bank\n"
        "folder = Path(sys.argv[1])\ntry:\n    build_pixel_bank([folder / 'photo.jpg'] * 9, 64, folder / 'cache')\n"
        "except TrainingError as error:\n    print(error)"
    )
    done = on_full_disk([sys.executable, "-c", program, str(tmp_path)], 10_000)
    assert done.returncode == 0, done.stderr
    assert "cannot write" in done.stdout
    assert "Free some space" in done.stdout
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("kind", DISTORTIONS)
def test_distortions_are_deterministic_and_grow(kind: str, photos: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    clean = photos[-1]
    seed = 6  # an accident that covers some of so small a photo from the start, which not all do
    results = [distort(clean, kind, s, np.random.default_rng(seed)) for s in (0.1, 0.5, 1.0)]
    again = distort(clean, kind, 0.5, np.random.default_rng(seed))
    assert np.array_equal(results[1], again)
    assert all(r.dtype == np.uint8 and r.shape == clean.shape for r in results)
    errors = [np.mean((r.astype(float) - clean) ** 2) for r in results]
    assert 0 < errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("kind", DISTORTIONS)
def test_ladders_show_what_the_tower_sees(kind: str, stored: bool, photos: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """What happens to the file is scaled with it; everything else is measured at the tower's scale."""
    from PIL import Image

    def scaled(pixels: Any) -> Any:
        return np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC))

    photo = photos[-1]  # 64 x 64
    rungs = ladder(photo, 32, DISTORTIONS[kind], (0.3, 0.9), 5, stored=stored)
    assert np.array_equal(rungs[0], scaled(photo))
    rng = np.random.default_rng(5)
    expected = scaled(distort(photo, kind, 0.9, rng)) if stored else distort(scaled(photo), kind, 0.9, rng)
    assert np.array_equal(rungs[2], expected)


def test_frequent_kinds_are_frequent(photos: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    rated = [Rated(Path(f"{i}.jpg"), i / 59, ("ss01", "ss02", "ss03")[i % 3]) for i in range(60)]
    captioned = [Captioned(Path(f"{i}.jpg"), ("thing",)) for i in range(60)]
    shape = BatchShape(rated=(1, 1, 1), ladders=50, captioned=1, extra_captions=0, ladder_odds={"jpeg": 50.0})
    odd = BatchSource(rated, photos, (photos,), captioned, photos, shape, seed=3)
    assert odd.batch(0, 8).labels.kinds.count("jpeg") > 35


def test_faint_ladders_start_soft_and_stay_faint(photos: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    rated = [Rated(Path(f"{i}.jpg"), i / 59, ("ss01", "ss02", "ss03")[i % 3]) for i in range(60)]
    captioned = [Captioned(Path(f"{i}.jpg"), ("thing",)) for i in range(60)]
    noise = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)

    def batch(faint: float, kind: str) -> Batch:
        odds = {name: float(name == kind) for name in DISTORTIONS}
        shape = BatchShape(rated=(1, 1, 1), ladders=6, captioned=1, extra_captions=0, ladder_odds=odds, faint=faint)
        return BatchSource(rated, photos, (noise,), captioned, photos, shape, seed=3).batch(0, 48)

    plain, faint = batch(0.0, "camera grain"), batch(1.0, "camera grain")
    assert FAINT < plain.labels.severities.max() <= 1
    assert faint.labels.severities[:, 1:].min() > 0
    assert faint.labels.severities.max() <= FAINT
    assert (faint.labels.severities[:, 0] == 0).all()
    assert faint.pixels[3].std() < 0.9 * plain.pixels[3].std()  # the clean picture of the first ladder
    assert np.array_equal(batch(1.0, "jpeg").pixels, batch(0.0, "jpeg").pixels)  # for noise only


def test_alterations_come_after_the_distortions_and_rated_photos_are_measured(
    photos: np.ndarray[Any, np.dtype[np.uint8]],
) -> None:
    rated = [Rated(Path(f"{i}.jpg"), i / 59, ("ss01", "ss02", "ss03")[i % 3]) for i in range(60)]
    captioned = [Captioned(Path(f"{i}.jpg"), ("thing",)) for i in range(60)]
    shape = BatchShape(rated=(2, 2, 2), ladders=3, captioned=1, extra_captions=0, alterations=4)
    batch = BatchSource(rated, photos, (photos,), captioned, photos, shape, seed=3).batch(0, 48)
    kinds = batch.labels.kinds
    assert set(kinds[:3]) <= set(DISTORTIONS)
    assert set(kinds[3:]) <= set(ALTERATIONS)
    assert batch.labels.severities.shape == (7, 4)
    assert len(batch.pixels) == 6 + 7 * 4 + 1
    for photo, values in zip(batch.pixels, batch.labels.measured, strict=False):
        assert values == pytest.approx(list(measure(photo[::2, ::2]).values()), abs=1e-6)


def test_cuts_are_scaled_as_whole_photos_are(photos: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """Rated photos of side 64, captioned of 32: a cut of 16 shows what a cut of 32 shows of a rated one."""
    rated = [Rated(Path(f"{i}.jpg"), i / 59, ("ss01", "ss02", "ss03")[i % 3]) for i in range(60)]
    captioned = [Captioned(Path(f"{i}.jpg"), ("thing",)) for i in range(60)]
    shape = BatchShape(rated=(1, 1, 1), ladders=1, captioned=1, extra_captions=0)
    small = np.zeros((60, 32, 32, 3), np.uint8)
    small[:, ::2] = 255  # lines of a pixel, which become lines of two
    batch = BatchSource(rated, photos, (photos,), captioned, small, shape, seed=3).batch(0, 32)
    lines = batch.pixels[-1].astype(int).mean(axis=(1, 2))
    assert batch.pixels.shape[1:] == (32, 32, 3)
    rises = np.flatnonzero(np.diff((lines > 127).astype(int)) == 1)
    assert set(np.diff(rises)) == {4}


def test_ladders_start_from_photos_smaller_than_the_cut(photos: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    rated = [Rated(Path(f"{i}.jpg"), i / 59, ("ss01", "ss02", "ss03")[i % 3]) for i in range(60)]
    captioned = [Captioned(Path(f"{i}.jpg"), ("thing",)) for i in range(60)]
    shape = BatchShape(rated=(1, 1, 1), ladders=20, captioned=1, extra_captions=0)
    small = BatchSource(rated, photos, (photos[:, :40, :40],), captioned, photos, shape, seed=3)
    assert small.batch(0, 56).pixels.shape == (3 + 20 * 4 + 1, 56, 56, 3)


def test_sentences_cover_every_distortion_and_follow_the_seed() -> None:
    sentences, index = distortion_sentences(np.random.default_rng(1))
    assert {kind for kind, _ in index} == set(DISTORTIONS)
    assert len(sentences) == 1 + 3 * len(DISTORTIONS)
    assert sentences == distortion_sentences(np.random.default_rng(1))[0]
    assert len(level_sentences(np.random.default_rng(2))) == 5
    assert [strength_of(s) for s in (0.0, 0.4, 0.99, 1.0)] == [0, 1, 2, 2]


def test_batches_depend_on_the_step_alone(source: BatchSource) -> None:
    one, two = source.batch(7, 48), source.batch(7, 48)
    assert np.array_equal(one.pixels, two.pixels)
    assert one.labels.captions == two.labels.captions
    assert not np.array_equal(one.pixels, source.batch(8, 48).pixels)
    labels = one.labels
    assert len(one.pixels) == len(labels.mos) + labels.severities.size + len(labels.captioned_kinds)
    assert (np.diff(labels.severities[:, 1:], axis=1) >= 0.0999).all()
    assert labels.severities.max() <= 1.0
    assert len(labels.captions) == 8


def test_labels_survive_json(source: BatchSource) -> None:
    labels = source.batch(1, 48).labels
    back = BatchLabels.from_dict(labels.to_dict())
    for name, value in vars(labels).items():
        assert np.array_equal(np.asarray(value), np.asarray(getattr(back, name))), name


def test_a_shape_is_told_from_another_by_its_text() -> None:
    kinds = ["jpeg", "sensor noise", "defocus"]
    one, same = (BatchShape(ladder_odds={"jpeg": 2.0}, stored=frozenset(order)) for order in (kinds, kinds[::-1]))
    assert one.to_json() == same.to_json()
    assert one.to_json() != BatchShape(ladder_odds={"jpeg": 2.0}).to_json()
    assert one.to_json() != BatchShape(ladder_odds={"jpeg": 3.0}, stored=frozenset(kinds)).to_json()
