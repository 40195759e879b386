"""Score the JPEGs of a folder and print them, best first, and what cannot be scored with the reason.

python examples/score_folder.py examples/photos
"""

import sys
from pathlib import Path

from declip_sdk import Scorer


def main(folder: str, engine: str | None = None) -> None:
    photos = sorted(Path(folder).glob("*.jpg"))
    if not photos:
        sys.exit(f"{folder} has no .jpg files")
    with Scorer(engine) as scorer:
        scores = scorer.score(photos, on_error="record")
    name = scores.names[0]
    scored = [score for score in scores if score.error is None]
    for score in sorted(scored, key=lambda score: score[name], reverse=True):
        print(f"{score[name]:.3f}  {score.image}")
    for error in filter(None, scores.errors):
        print(f"failed: {error}", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
