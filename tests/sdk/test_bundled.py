"""The bundled engine: what it promises, and golden scores at two tolerances."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from declip_runtime.engine_file import EngineFile, bundled_engine
from declip_runtime.images import open_image, shrunk_from
from declip_runtime.scorer import Scorer

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT / "examples/photos"
VECTORS = json.loads((ROOT / "tests/vectors/vectors.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def engine() -> EngineFile:
    return EngineFile.open(bundled_engine())


@pytest.fixture(scope="module")
def exact() -> Scorer:
    return Scorer(precision="fp32", decode="exact")


def test_it_is_whole_small_and_says_what_it_may_be_used_for(engine: EngineFile) -> None:
    engine.verify()
    assert engine.path.stat().st_size <= 15_000_000
    assert engine.manifest.license is not None
    assert "research, benchmarking" in " ".join(engine.manifest.license.text.split())


def test_it_offers_only_what_was_validated(engine: EngineFile) -> None:
    assert engine.manifest.score_names[0] == "quality"
    for score in engine.manifest.scores:
        assert score.validated is not None, score.name
        assert score.calibration is not None, score.name


@pytest.fixture(scope="module")
def looks(engine: EngineFile) -> list[dict[str, str]]:
    """The ledger's rows on this engine that leave near-duplicates out; those of declip evaluate do not."""
    with (ROOT / "benchmarks/results/biq2021_test.csv").open(newline="", encoding="utf-8") as stream:
        return [row for row in csv.DictReader(stream) if row["engine_id"] == engine.id[:16] and row["mean"]]


@pytest.fixture(scope="module")
def judged(looks: list[dict[str, str]]) -> dict[str, str]:
    """The last of them with one view."""
    rows = [row for row in looks if not row["note"].startswith("views=")]
    assert rows, "the bundled engine was never judged: python -m declip_training.evaluation.biq2021"
    return rows[-1]


def test_its_card_states_what_the_ledger_does(engine: EngineFile, judged: dict[str, str]) -> None:
    card = engine.manifest.provenance["model_card"]
    for number in ("ss01", "ss02", "ss03", "mean", "pooled"):
        assert judged[number] in card, number
    for number in ("ladder_noise", "ladder_jpeg", "ladder_mean"):
        assert f"{float(judged[number]):.3f}" in card, number
    score = engine.manifest.scores[0]
    assert score.validated is not None
    assert score.validated.srcc == pytest.approx(float(judged["mean"]), abs=1e-4)


def test_the_readme_states_what_the_ledger_does(looks: list[dict[str, str]], judged: dict[str, str]) -> None:
    (five,) = (row for row in looks if row["note"].startswith("views=5;"))
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    rows = {name: f"subset {name}" for name in ("ss01", "ss02", "ss03")}
    for number, name in {**rows, "mean": "**mean of the three**", "pooled": "pooled, all 2,000"}.items():
        (line,) = (line for line in lines if line.startswith(f"| {name}"))
        stated = [float(cell.strip(" *")) for cell in line.split("|")[2:4]]
        assert stated == pytest.approx([float(row[number]) for row in (judged, five)], abs=5.1e-4), name


def test_the_ledger_knows_this_engine(judged: dict[str, str]) -> None:
    """Agreement with people, the noise ladder and the mean over all ladders hold their bars."""
    assert float(judged["mean"]) >= 0.60
    assert float(judged["ladder_noise"]) >= 0.95
    assert float(judged["ladder_mean"]) >= 0.95


def test_golden_scores_of_stored_pixels_are_tight(engine: EngineFile) -> None:
    assert VECTORS["engine_id"] == engine.id
    from declip_runtime.backends import choose

    backend = choose(engine, "openvino", precision="fp32")
    for vector in VECTORS["vectors"]:
        pixels = np.load(ROOT / "tests/vectors" / vector["pixels"])
        output = backend.run(pixels[None])
        assert output.scores[0] == pytest.approx(list(vector["raw"].values()), abs=1e-4), vector["photo"]
        assert float(output.perceptual[0] @ np.array(vector["perceptual"])) > 0.99999


def test_golden_scores_of_decoded_photos_are_loose(exact: Scorer) -> None:
    """Another JPEG decoder may differ by a few grey levels; the score must not."""
    for vector in VECTORS["vectors"]:
        score = exact.score(ROOT / "tests/vectors" / vector["photo"])[0]
        assert score.quality == pytest.approx(vector["calibrated"]["quality"], abs=5e-3), vector["photo"]


def test_worse_copies_of_a_photo_score_lower(exact: Scorer) -> None:
    def quality(name: str) -> float:
        return float(exact.score(PHOTOS / name)[0].quality)

    for worse, better in (
        ("astronaut-noisy.jpg", "astronaut.jpg"),
        ("coffee-blurred.jpg", "coffee.jpg"),
        ("cat-underexposed.jpg", "cat.jpg"),
        ("cat-compressed.jpg", "cat.jpg"),
    ):
        assert quality(worse) < quality(better), worse


def test_bf16_barely_moves_a_score(exact: Scorer) -> None:
    photos = [p for p in sorted(PHOTOS.glob("*.jpg")) if p.name != "broken.jpg"]
    with Scorer(decode="exact") as chosen:  # bf16 where the CPU computes in it
        drift = np.abs(chosen.score(photos).quality - exact.score(photos).quality)
    assert drift.mean() < 0.01


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two of 12 megapixels and two of 16, from the example photos: enlarged, with the grain that a camera gives."""
    folder, rng, made = tmp_path_factory.mktemp("large"), np.random.default_rng(0), []
    names = ("astronaut.jpg", "astronaut-noisy.jpg", "coffee.jpg", "coffee-blurred.jpg")
    for photo, size in zip((PHOTOS / name for name in names), [(4000, 3000), (4896, 3264)] * 2, strict=True):
        with Image.open(photo) as image:
            pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS), np.float32)
        grainy = pixels + 4 * rng.standard_normal((*pixels.shape[:2], 1), np.float32)
        made.append(folder / photo.name)
        Image.fromarray(grainy.clip(0, 255).astype(np.uint8)).save(made[-1], quality=92)
    return made


def test_fast_decoding_barely_moves_a_score(engine: EngineFile, exact: Scorer, large: list[Path]) -> None:
    """Of photos that it really decodes at a half and at a quarter of their size."""
    side = 2 * engine.manifest.preprocess.size
    factors = [shrunk_from(open_image(photo, minimum_side=side)).factor for photo in large]
    assert factors == [2, 4, 2, 4]
    with Scorer(precision="fp32", decode="fast") as fast:
        drift = np.abs(fast.score(large).quality - exact.score(large).quality)
    assert 0 < drift.mean() < 0.01
    assert drift.max() < 0.03
