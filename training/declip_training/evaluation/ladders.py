"""Ladders that judge a model: one photo, one distortion, rising strength; a trustworthy score falls at every rung.

Made with SciPy and the exact sRGB curve, from photos that no training step saw. Nothing is shared with
``declip_training.data.distortions``: noise is counted in photons on a Bayer mosaic and demosaiced, JPEG is quantised
DCT blocks, blur happens in linear light.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage, stats

from declip_runtime.images import open_image

Pixels = npt.NDArray[np.uint8]
Light = npt.NDArray[np.float64]


def to_linear(pixels: Pixels) -> Light:
    """Linear light 0..1 of sRGB pixels (IEC 61966-2-1)."""
    v = pixels / 255.0
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def to_srgb(light: Light) -> Pixels:
    """SRGB pixels of linear light; values outside 0..1 clip."""
    v = np.clip(light, 0, 1)
    encoded = np.where(v <= 0.0031308, v * 12.92, 1.055 * v ** (1 / 2.4) - 0.055)
    return np.round(encoded * 255).astype(np.uint8)


def to_pixels(values: npt.NDArray[np.float64]) -> Pixels:
    """Values rounded to uint8; those outside 0..255 clip."""
    pixels: Pixels = np.clip(np.round(values), 0, 255).astype(np.uint8)
    return pixels


def centred(pixels: Pixels) -> tuple[Light, Light]:
    """Row and column of every pixel, in -1..1 from the middle."""
    height, width = pixels.shape[:2]
    rows, columns = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    return rows, columns


def blur(pixels: Pixels, sigma: float) -> Pixels:
    """Gaussian blur of ``sigma`` pixels in linear light."""
    return to_srgb(ndimage.gaussian_filter(to_linear(pixels), (sigma, sigma, 0), mode="nearest"))


def sensor_noise(pixels: Pixels, electrons: float) -> Pixels:
    """A Bayer sensor whose white is ``electrons`` photo-electrons, 3 electrons of read noise, bilinear demosaicing."""
    light = to_linear(pixels)
    height, width = light.shape[:2]
    rng = np.random.default_rng(1)
    masks = np.zeros((height, width, 3))
    masks[0::2, 0::2, 0] = masks[0::2, 1::2, 1] = masks[1::2, 0::2, 1] = masks[1::2, 1::2, 2] = 1
    mosaic = (light * masks).sum(axis=2)
    raw = (rng.poisson(mosaic * electrons) + rng.normal(0, 3.0, mosaic.shape)) / electrons
    kernel = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 4.0
    planes = [
        ndimage.convolve(raw * masks[..., c], kernel, mode="mirror")
        / ndimage.convolve(masks[..., c], kernel, mode="mirror")
        for c in range(3)
    ]
    return to_srgb(np.stack(planes, axis=2))


_LUMA = np.array(
    [[16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
     [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
     [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99]]
)  # fmt: skip
_TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


def jpeg(pixels: Pixels, coarseness: float) -> Pixels:
    """JPEG's loss without its file: 8 x 8 DCT of Y, Cb, Cr, quantised by Annex K's luma table times ``coarseness``."""
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, -height % 8), (0, -width % 8), (0, 0)), mode="edge")
    ycc = padded @ _TO_YCC.T - np.array([128.0, 0, 0])
    blocks = ycc.reshape(padded.shape[0] // 8, 8, padded.shape[1] // 8, 8, 3)
    table = np.maximum(1.0, _LUMA * coarseness)[None, :, None, :, None]
    quantised = np.round(fft.dctn(blocks, axes=(1, 3), norm="ortho") / table) * table
    restored = fft.idctn(quantised, axes=(1, 3), norm="ortho").reshape(padded.shape) + np.array([128.0, 0, 0])
    rgb = restored @ np.linalg.inv(_TO_YCC).T
    return to_pixels(rgb[:height, :width])


def exposure(pixels: Pixels, stops: float) -> Pixels:
    """``stops`` of more (or less) light, clipped as a sensor clips."""
    return to_srgb(to_linear(pixels) * 2.0**stops)


Rung = Callable[[Pixels], Pixels]


def rungs(function: Callable[[Pixels, float], Pixels], *strengths: float) -> list[Rung]:
    """``function(pixels, strength)`` at each strength."""
    return [lambda pixels, s=s: function(pixels, s) for s in strengths]  # type: ignore[misc]


LADDERS: Mapping[str, Sequence[Rung]] = {
    "blur": rungs(blur, 0.8, 1.4, 2.4, 4.0, 7.0),
    "noise": rungs(sensor_noise, 800.0, 300.0, 120.0, 50.0, 20.0),
    "jpeg": rungs(jpeg, 1.0, 2.5, 5.0, 9.0, 16.0),
    "underexposure": rungs(exposure, -1.0, -2.0, -3.0, -4.0, -5.0),
    "overexposure": rungs(exposure, 0.7, 1.4, 2.1, 2.8, 3.5),
}
"""Five rungs above the untouched photo, from just visible to severe."""


def judge(
    score: Callable[[list[Pixels]], npt.NDArray[np.floating]],
    photos: Sequence[Path],
    limit: int | None = None,
    ladders: Mapping[str, Sequence[Rung]] = LADDERS,
) -> dict[str, float]:
    """Mean Spearman correlation of rung and falling score for each ladder, and their ``mean``; 1 is perfect.

    ``score`` takes RGB photos uint8 [H, W, 3] and returns one number each, higher is better. Raises ImageError for a
    photo that cannot be read.
    """
    correlations: dict[str, list[float]] = {name: [] for name in ladders}
    for path in photos[:limit]:
        clean = np.asarray(open_image(path))
        for name, rungs in ladders.items():
            correlations[name].append(-climb(score([clean, *(rung(clean) for rung in rungs)])))
    result = {name: float(np.mean(values)) for name, values in correlations.items()}
    return {**result, "mean": float(np.mean(list(result.values())))}


def climb(scores: npt.NDArray[np.floating]) -> float:
    """Spearman correlation of rung and score, in -1..1; 0 where all scores are the same, as nothing was noticed."""
    return 0.0 if np.ptp(scores) == 0 else float(stats.spearmanr(np.arange(len(scores)), scores).statistic)
