"""The example programs do what they say, run as a reader would run them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from declip_runtime.engine_file import EngineFile
from declip_sdk import Scorer

from .command import DECLIP, TINY

EXAMPLES = Path(__file__).parents[2] / "examples"
TOWER = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def example(name: str, *arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True)


def test_score_folder(photos: Path) -> None:
    (photos / ".hidden.jpg").unlink()
    shutil.copy(photos / "sub" / "d.jpg", photos)
    result = example("score_folder.py", photos, TINY)
    assert result.returncode == 0, result.stderr
    lines = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    assert sorted(Path(path).name for _, path in lines) == ["a.jpg", "d.jpg"]
    assert [value for value, _ in lines] == sorted((value for value, _ in lines), reverse=True)
    assert result.stderr.startswith("failed: ")
    assert "broken.jpg" in result.stderr
    assert "python examples/score_folder.py" in example("score_folder.py").stderr


def test_stream_with_errors(photos: Path) -> None:
    paths = [photos / "a.jpg", photos / "broken.jpg", photos / "gone.jpg", photos / "c.webp"]
    result = example("stream_with_errors.py", TINY, stdin="".join(f"{path}\n" for path in paths))
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("2 images, mean 0.")
    assert result.stdout.endswith("; 1 no longer there\n")
    assert result.stderr.count("cannot score") == 1
    assert "broken.jpg" in result.stderr


@pytest.mark.skipif(not shutil.which("bash"), reason="the example is a bash script")
def test_coprocess(photos: Path) -> None:
    paths = [str(photos / name) for name in ("a.jpg", "b.PNG", "broken.jpg")]
    environment = os.environ | {"DECLIP": " ".join([*DECLIP, "score", "--engine", str(TINY)])}
    command = ["bash", str(EXAMPLES / "coprocess.sh"), *paths]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["image"] for answer in answers] == paths
    assert [answer["error"] is None for answer in answers] == [True, True, False]
    assert result.returncode == 1


def test_custom_prompts(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "tower.json").write_text(json.dumps(TOWER))
    engine = tmp_path / "mine.engine"
    result = example("custom_prompts.py", tmp_path / "tower.json", "random", engine, photos / "a.jpg")
    assert result.returncode == 0, result.stderr
    assert "Scores of 1 image" in result.stdout
    assert EngineFile.open(engine).manifest.score_names == ("cosiness", "crowd")
    with Scorer(engine) as scorer:
        assert 0.0 < scorer.score(photos / "a.jpg")[0].cosiness < 1.0
