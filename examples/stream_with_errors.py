"""Score any number of images with flat memory, keep going past the bad ones, and tell which those were.

find / -name '*.jpg' | python examples/stream_with_errors.py
"""

import sys
from collections.abc import Iterator

from declip_sdk import ImageNotFoundError, Scorer


def paths() -> Iterator[str]:
    """Anything that yields images will do: a catalogue, a queue, a camera."""
    for line in sys.stdin:
        yield line.rstrip("\n")


def main(engine: str | None = None) -> None:
    total, good, gone = 0.0, 0, 0
    with Scorer(engine) as scorer:
        for score in scorer.stream(paths()):
            if isinstance(score.error, ImageNotFoundError):
                gone += 1
            elif score.error is not None:
                print(f"cannot score {score.image}: {score.error}", file=sys.stderr)
            else:
                good += 1
                total += score[scorer.names[0]]
    print(f"{good} images, mean {total / good if good else float('nan'):.3f}; {gone} no longer there")


if __name__ == "__main__":
    main(*sys.argv[1:])
