"""Makes ``tiny.engine``: a random ViT of a few thousand weights that runtime tests can score images with.

python tests/data/make_tiny.py
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from declip_export.engine import export_engine
from declip_export.photos import sample_images
from declip_runtime.manifest import License
from declip_runtime.scorer_manifest import CalibrationCurve, ScoreSpec, Validation
from declip_training.model.declip import DeCLIP
from declip_training.model.projector import Projector
from declip_training.model.prompts import PromptSet, ScorePrompts
from declip_training.model.tower import load_clip

CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
SCORES = (
    ScoreSpec(
        "quality",
        "quality",
        (("Good photo.", "Bad photo."), ("Fine photo.", "Poor photo.")),
        "Random; only for tests",
        Validation("nothing", 0.0, 1, "random weights"),
        CalibrationCurve((0.0, 0.25, 0.5, 0.75, 1.0), (0.1, 0.2, 0.5, 0.9, 1.0), "nothing"),
    ),
    ScoreSpec("brightness", "degree", (("Bright photo.", "Dark photo."),), "Random; only for tests"),
    ScoreSpec("sharpness", "quality", (("Sharp photo.", "Blurry photo."),), "Random; only for tests"),
)


def main() -> None:
    """Write the engine beside this file."""
    path = Path(__file__).with_name("tiny.engine")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "declip-tiny.json"
        config.write_text(json.dumps(CONFIG), encoding="utf-8")
        clip, tokenizer, preprocess = load_clip(str(config), "random", seed=5)
    generator = torch.Generator().manual_seed(5)
    dim = CONFIG["embed_dim"]
    assert isinstance(dim, int)
    declip = DeCLIP.from_clip(
        clip,
        tokenizer,
        PromptSet(tuple(ScorePrompts(spec) for spec in SCORES), logit_scale=10.0),
        Projector(dim, 48).randomize(generator),
        Projector(dim, 48, "before").randomize(generator),
    ).eval()
    export_engine(
        declip,
        preprocess,
        SCORES,
        path,
        int8_images=sample_images(preprocess.size, 16),
        semantic=True,
        name="declip-tiny",
        license=License("CC0-1.0", "Random numbers; do with them what you like."),
        provenance={"tower": "declip-tiny", "pretrained": "random", "made_by": "tests/data/make_tiny.py"},
        progress=print,
    )


if __name__ == "__main__":
    main()
