"""Make an engine that scores what you care about, in your own words, and use it.

python examples/custom_prompts.py ViT-B-32 laion2b_s34b_b79k mine.engine examples/photos/cat.jpg

Needs the extra: pip install 'declip-sdk[export]'. The first run downloads the tower. With identity projectors this is
zero-shot CLIP; nobody has compared these scores with people, so they are marked "not validated".
"""

import sys
import tempfile
from pathlib import Path

from declip_export.engine import export_engine
from declip_sdk import Scorer
from declip_training.model.declip import DeCLIP
from declip_training.model.prompts import PromptSet
from declip_training.model.tower import load_clip

PROMPTS = """
[scores.cosiness]
kind = "quality"
description = "Would one like to be there on a rainy day?"
pairs = [["A cosy place.", "A bleak place."], ["Warm light.", "Cold light."]]

[scores.crowd]
kind = "degree"
description = "How many people there are"
pairs = [["A crowd of people.", "A deserted place."]]
"""


def main(tower: str, pretrained: str, engine: str, *photos: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.toml"
        file.write_text(PROMPTS, encoding="utf-8")
        prompts = PromptSet.read(file)
    clip, tokenizer, preprocess = load_clip(tower, pretrained)
    export_engine(DeCLIP.from_clip(clip, tokenizer, prompts), preprocess, prompts.specs(), engine)
    with Scorer(engine) as scorer:
        print(scorer.score(photos))


if __name__ == "__main__":
    main(*sys.argv[1:])
