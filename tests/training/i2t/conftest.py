from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from declip_training.i2t.candidates import Candidate
from declip_training.i2t.decoupling import Vocabularies
from declip_training.i2t.reply import Judge
from declip_training.i2t.sources import Described


@pytest.fixture(scope="session")
def vocabularies() -> Vocabularies:
    return Vocabularies.default()


@pytest.fixture(scope="session")
def judge(vocabularies: Vocabularies) -> Judge:
    return Judge(vocabularies)


def save_image(path: Path, seed: int, size: tuple[int, int] = (90, 60)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


@pytest.fixture
def candidates(tmp_path: Path) -> list[Candidate]:
    """Six, whose texts are ``text 0`` to ``text 5``."""
    return [
        Candidate.of(
            Described(
                "Q-Instruct", f"{n}.jpg", save_image(tmp_path / "images" / f"{n}.jpg", n), "Natural", f"text {n}"
            ),
            7,
        )
        for n in range(6)
    ]
