"""What a photographer asks: how much blur and noise in a photo of 12 to 24 megapixels does the score still notice?

    python benchmarks/visibility.py [--photos FOLDER] [--pictures 12]

Gaussian blur (standard deviation in pixels of the full picture) and Gaussian noise (standard deviation of 255,
independent in each channel) are added to sharp pictures at full resolution. A strength is noticed if the first quality
score falls by more than 0.02 on average and on at least nine of ten pictures, and at every greater strength as well.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import engine_column, save
from photos import Pixels, sharp_pictures
from PIL import Image, ImageFilter

from declip_runtime.benchmark import Row
from declip_runtime.scorer import Scorer

VIEWS = (1, 5)
FALL, SHARE = 0.02, 0.9
BLUR = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.7, 8.0, 11.0, 16.0)
NOISE = (2.0, 3.0, 4.0, 6.0, 8.0, 11.0, 16.0, 23.0, 32.0, 45.0, 64.0, 90.0)


def blur(picture: Pixels, sigma: float) -> Pixels:
    """Blur by Pillow's Gaussian (three box filters)."""
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(sigma)))


def noise(picture: Pixels, sigma: float) -> Pixels:
    """Add noise that is the same for every strength but for its scale."""
    sample = np.random.default_rng(0).standard_normal(picture.shape, np.float32)
    noisy: Pixels = (picture + sigma * sample).round().clip(0, 255).astype(np.uint8)
    return noisy


KINDS: dict[str, tuple[Callable[[Pixels, float], Pixels], tuple[float, ...]]] = {
    "blur": (blur, BLUR),
    "noise": (noise, NOISE),
}


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of sharp photos; default: scikit-image's samples")
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--engine", help="default: the bundled one")
    options = parser.parse_args()
    scorers = {views: Scorer(options.engine, views=views) for views in VIEWS}
    scores = [measure(scorers, picture) for picture in sharp_pictures(options.pictures, options.photos)]
    rows = [
        row(kind, views, strengths, np.array([s[kind, views] for s in scores]))
        for kind, (_, strengths) in KINDS.items()
        for views in VIEWS
    ]
    rows = [{**r, "model": scorers[1].manifest.name, **engine_column(scorers[1].engine)} for r in rows]
    save("visibility", "The smallest blur and noise that the score notices at 12 to 24 megapixels", rows, [])


def measure(scorers: dict[int, Scorer], picture: Pixels) -> dict[tuple[str, int], list[float]]:
    """Scores of one picture, for each kind and number of views: untouched first, then by strength."""
    result: dict[tuple[str, int], list[float]] = {(kind, views): [] for kind in KINDS for views in scorers}
    for kind, (degrade, strengths) in KINDS.items():
        for strength in (0.0, *strengths):
            given = degrade(picture, strength) if strength else picture
            for views, scorer in scorers.items():
                quality = next(s.name for s in scorer.manifest.scores if s.kind == "quality")
                result[kind, views].append(scorer.score(given)[0][quality])
    print(
        f"{picture.shape[1]} x {picture.shape[0]}: ",
        {k: np.round(v, 3).tolist() for k, v in result.items()},
        flush=True,
    )
    return result


def row(
    kind: str, views: int, strengths: tuple[float, ...], scores: np.ndarray[tuple[int, int], np.dtype[np.float64]]
) -> Row:
    """Scores [pictures, 1 + strengths] -> what is noticed, and the mean score by strength."""
    falls = scores[:, :1] - scores[:, 1:]
    noticed = (falls.mean(0) > FALL) & ((falls > FALL).mean(0) >= SHARE)
    from_here_on = np.logical_and.accumulate(noticed[::-1])[::-1]
    smallest = next((s for s, n in zip(strengths, from_here_on, strict=True) if n), None)
    curve = " ".join(f"{s:g}:{v:.3f}" for s, v in zip((0.0, *strengths), scores.mean(0), strict=True))
    return {
        "added": f"{kind} ({'pixels' if kind == 'blur' else 'of 255'})",
        "views": views,
        "smallest noticed": "none" if smallest is None else smallest,
        "pictures": len(scores),
        "mean score by strength": curve,
    }


if __name__ == "__main__":
    main()
