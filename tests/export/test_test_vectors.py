"""The published vectors let an embedder check each step alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from declip_export.test_vectors import main
from declip_runtime.backends import choose
from declip_runtime.engine_file import EngineFile
from declip_runtime.preprocess import prepare

TINY = Path(__file__).parents[1] / "data" / "tiny.engine"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (("wide.png", (40, 90, 3)), ("tall.jpg", (120, 64, 3))):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
    return folder


def test_vectors_are_what_the_engine_computes(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "vectors"
    assert main([str(TINY), str(photos), "-o", str(out)]) == 0
    data = json.loads((out / "vectors.json").read_text())
    engine = EngineFile.open(TINY)
    assert data["engine_id"] == engine.id
    assert [v["photo"] for v in data["vectors"]] == ["tall.jpg", "wide.png"]
    backend = choose(engine, precision="fp32")
    for vector in data["vectors"]:
        pixels = np.load(out / vector["pixels"])
        assert pixels.dtype == np.uint8
        assert pixels.shape == (32, 32, 3)
        with Image.open(out / vector["photo"]) as image:
            np.testing.assert_array_equal(prepare(image.convert("RGB"), engine.manifest.preprocess)[0], pixels)
        output = backend.run(pixels[None])
        np.testing.assert_allclose(list(vector["raw"].values()), output.scores[0], atol=1e-5)
        np.testing.assert_allclose(vector["perceptual"], output.perceptual[0], atol=1e-5)
        assert list(vector["calibrated"]) == list(engine.manifest.score_names)
        assert vector["calibrated"]["quality"] != vector["raw"]["quality"], "the tiny engine calibrates quality"
        assert vector["calibrated"]["brightness"] == vector["raw"]["brightness"]


def test_two_photos_of_one_name(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "wide.jpg").write_bytes((photos / "tall.jpg").read_bytes())
    assert main([str(TINY), str(photos), "-o", str(tmp_path / "v")]) == 2
    assert "two photos have the same name" in capsys.readouterr().err


def test_mistakes_are_one_line(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for engine, photo in ((TINY, tmp_path / "missing.jpg"), (photos / "tall.jpg", photos)):
        assert main([str(engine), str(photo), "-o", str(tmp_path / "v")]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_folders_in_a_folder_are_left_alone(photos: Path, tmp_path: Path) -> None:
    """As made anew in place: the folder of the photos has their pixels in it."""
    assert main([str(TINY), str(photos), "-o", str(photos)]) == 0
    (photos / "vectors.json").unlink()
    assert main([str(TINY), str(photos), "-o", str(photos)]) == 0
