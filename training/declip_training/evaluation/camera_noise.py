"""Noise as cameras make it: single shots of still scenes against the mean of about 500, from the PolyU pairs.

A score that knows noise ranks the mean above the single shot. J. Xu, H. Li, Z. Liang, D. Zhang, L. Zhang: "Real-world
noisy image denoising: a new benchmark" (arXiv 1804.02603), cropped to 512 x 512 by its authors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from declip_runtime.errors import TrainingError
from declip_runtime.images import open_image

from .bootstrap import interval

Pixels = npt.NDArray[np.uint8]
REPOSITORY = "https://github.com/csjunxu/PolyU-Real-World-Noisy-Images-Dataset"
SUBFOLDER = "CroppedImages"
_NAME = re.compile(
    r"(?P<camera>[^_]+)_(?P<setting>[^_]+_[^_]+)_(?P<iso>\d+)_(?P<object>[^_]+)_+(?P<crop>\d+)_(?P<kind>mean|real)"
)
_PAIRS_AT_ONCE = 16


@dataclass(frozen=True)
class NoisePair:
    """A crop of one still scene: ``mean`` of many shots, ``single`` one of them.

    Crops of one ``scene`` (camera, aperture, shutter, ISO and object) come from the same shots.
    """

    mean: Path
    single: Path
    camera: str
    iso: int
    scene: str


@dataclass(frozen=True)
class Share:
    """Of ``pairs`` crops of ``scenes`` scenes, the share 0..1 that is ranked right; a tie is half."""

    right: float
    pairs: int
    scenes: int


@dataclass(frozen=True)
class CameraNoise:
    """Shares of all pairs, by camera and by ISO; ``interval`` is the central 95 % of a bootstrap over scenes."""

    all: Share
    interval: tuple[float, float]
    by_camera: Mapping[str, Share]
    by_iso: Mapping[int, Share]


def read_polyu(folder: Path) -> list[NoisePair]:
    """Pairs of a clone of the PolyU repository, sorted by name.

    Raises TrainingError where its folder of crops is missing or empty, a name is not one of theirs, or a crop lacks
    its mean or its single shot.
    """
    crops = folder / SUBFOLDER
    clone = f"Clone {REPOSITORY} as {folder}"
    try:
        paths = sorted(path for path in crops.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    except OSError as error:
        raise TrainingError(f"the folder {crops} cannot be read ({error.strerror}). {clone}.") from error
    if not paths:
        raise TrainingError(f"{crops} holds no JPEG. {clone}.")
    found: dict[str, dict[str, tuple[Path, re.Match[str]]]] = {}
    for path in paths:
        match = _NAME.fullmatch(path.stem)
        if match is None:
            raise TrainingError(
                f"{path} is not named Camera_aperture_shutter_ISO_object_number_mean or _real. Remove it, or {clone}."
            )
        found.setdefault(path.stem[: match.start("kind")], {})[match["kind"]] = path, match
    pairs = []
    for name, kinds in found.items():
        missing = sorted({"mean", "real"} - set(kinds))
        if missing:
            raise TrainingError(f"{crops / name}{missing[0]}.JPG is missing, its pair is there. {clone} again.")
        (mean, match), (single, _) = kinds["mean"], kinds["real"]
        scene = "_".join(match.group("camera", "setting", "iso", "object"))
        pairs.append(NoisePair(mean, single, match["camera"], int(match["iso"]), scene))
    return pairs


def judge_pairs(
    score: Callable[[list[Pixels]], npt.NDArray[np.floating]], pairs: Sequence[NoisePair], *, draws: int = 2000
) -> CameraNoise:
    """How often ``score`` (RGB photos uint8 [H, W, 3] to one number each, higher is better) prefers the mean.

    Raises ImageError for a file that cannot be read, TrainingError where there is no pair.
    """
    if not pairs:
        raise TrainingError(f"there is no pair to judge by. Clone {REPOSITORY}.")
    margins = []
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        files = [path for pair in pairs[start : start + _PAIRS_AT_ONCE] for path in (pair.mean, pair.single)]
        scores = np.asarray(score([np.asarray(open_image(path)) for path in files]), np.float64)
        margins.append(scores[0::2] - scores[1::2])
    right = (np.sign(np.concatenate(margins)) + 1) / 2
    cameras, isos = [p.camera for p in pairs], [p.iso for p in pairs]
    everything = np.ones(len(pairs), bool)
    return CameraNoise(
        all=_share(right, pairs, everything),
        interval=_interval_over_scenes(right, [p.scene for p in pairs], draws),
        by_camera={c: _share(right, pairs, np.array([c == other for other in cameras])) for c in sorted(set(cameras))},
        by_iso={i: _share(right, pairs, np.array([i == other for other in isos])) for i in sorted(set(isos))},
    )


def _share(right: npt.NDArray[np.float64], pairs: Sequence[NoisePair], chosen: npt.NDArray[np.bool_]) -> Share:
    scenes = {pair.scene for pair, taken in zip(pairs, chosen, strict=True) if taken}
    return Share(float(right[chosen].mean()), int(chosen.sum()), len(scenes))


def _interval_over_scenes(right: npt.NDArray[np.float64], scenes: Sequence[str], draws: int) -> tuple[float, float]:
    """Scenes are drawn with replacement, each with all its crops: they share light, noise and subject."""
    _, places = np.unique(scenes, return_inverse=True)
    sums, counts = np.bincount(places, weights=right), np.bincount(places)
    drawn = np.random.default_rng(0).integers(0, len(sums), (draws, len(sums)))
    return interval(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
