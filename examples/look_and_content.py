"""Pictures with the look of one photo and the content of a text, at rising strength of the look.

python examples/look_and_content.py dp.engine examples/photos/coffee.jpg "a lighthouse" pictures/

Needs the extra: pip install 'declip-sdk[generate]', and an engine that generates (docs/generation.md). The seed stays
the same, so that only the strength makes the difference.
"""

import sys
from pathlib import Path

from declip_sdk import DPAdapter, save


def main(engine: str, look: str, prompt: str, folder: str) -> None:
    Path(folder).mkdir(exist_ok=True)
    with DPAdapter(engine) as adapter:
        for scale in (0.3, 0.6, 0.9):
            (picture,) = adapter.generate(prompt, perceptual=look, perceptual_scale=scale, seed=1)
            print(save(picture, Path(folder) / f"look-{scale}.png"))


if __name__ == "__main__":
    main(*sys.argv[1:])
