"""Score the JPEGs of a folder and print them, best first.

python examples/score_folder.py examples/photos
"""

import sys
from pathlib import Path

from declip_sdk import Scorer


def main(folder: str, engine: str | None = None) -> None:
    with Scorer(engine) as scorer:
        scores = scorer.score(sorted(Path(folder).glob("*.jpg")))
    name = scores.names[0]
    for score in sorted(scores, key=lambda score: score[name], reverse=True):
        print(f"{score[name]:.3f}  {score.image}")


if __name__ == "__main__":
    main(*sys.argv[1:])
