"""Inputs as they come in life, for the range audit and for parity: texts, noisy latents, embeddings of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from declip_export.onnx_graph import Array

from .base import Base

Feeds = Mapping[str, Array]

TEXTS = (
    "",
    "a photo of a red fox in the snow, golden hour",
    "low quality, blurry, watermark, text, deformed hands, extra fingers",
    "an oil painting of a harbour at night, thick brush strokes, the lights of ships on black water, in the manner of "
    "a nineteenth-century master, intricate, highly detailed, dramatic lighting, sharp focus, muted colours, and a "
    "small wooden boat with two people in it near the pier, seen from a hill above the town, with clouds and a moon",
)
LEVELS = (1, 261, 621, 981)
"""Timesteps of a thousand, from nearly clean to nearly noise alone."""

_BETAS = (0.00085, 0.012)  # of the noise schedule that Stable Diffusion was trained with


def text_feeds(base: Base) -> dict[str, Array]:
    """Ids int64 [len(TEXTS), 77] by input of the text encoder."""
    pipeline = base.pipeline
    names = {"input_ids": pipeline.tokenizer}
    if base.family == "sdxl":
        names["input_ids_2"] = pipeline.tokenizer_2
    return {name: _ids(tokenizer) for name, tokenizer in names.items()}


def _ids(tokenizer: Any) -> Array:
    ids: Array = np.asarray(
        tokenizer(list(TEXTS), padding="max_length", max_length=tokenizer.model_max_length, truncation=True).input_ids,
        np.int64,
    )
    return ids


def clean_latents(count: int, channels: int, height: int, width: int, rng: np.random.Generator) -> Array:
    """Float32 [count, channels, height, width] of about unit variance that vary slowly, with some detail."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    fields = np.zeros((count, channels, height, width))
    for _ in range(4):
        f, phase = rng.normal(0, 2, (2, count, channels, 1, 1)), rng.random((count, channels, 1, 1))
        fields += np.sin(2 * np.pi * (f[0] * x + f[1] * y + phase))
    latents: Array = (0.6 * fields + 0.5 * rng.normal(size=fields.shape)).astype(np.float32)
    return latents


def noisy_latents(clean: Array, level: int, rng: np.random.Generator) -> Array:
    """``clean`` latents with as much noise as at timestep ``level``."""
    betas = np.linspace(_BETAS[0] ** 0.5, _BETAS[1] ** 0.5, 1000) ** 2
    kept = float(np.cumprod(1 - betas)[level])
    noisy: Array = (kept**0.5 * clean + (1 - kept) ** 0.5 * rng.normal(size=clean.shape)).astype(np.float32)
    return noisy


def denoising_feeds(
    text: Mapping[str, Array], tokens: Array, channels: int, layers: int, size: tuple[int, int], pixels: int
) -> list[dict[str, Array]]:
    """Inputs of the UNet: a guided step at each of ``LEVELS``, half of them with one condition, half with two.

    ``text`` are outputs of the text encoder for ``TEXTS``; ``tokens`` float32 [N, T, C] those of N embeddings, the
    first of zeros; ``size`` is of the latents; ``pixels`` how many of them a latent spans.
    """
    rng = np.random.default_rng(0)
    height, width = (float(pixels * side) for side in size)
    feeds = []
    for conditions, levels in ((1, LEVELS[::2]), (2, LEVELS[1::2])):
        count = 2 * len(levels)
        picked = [0 if i % 2 == 0 else 1 + (i // 2 + conditions) % (len(TEXTS) - 1) for i in range(count)]
        pictures = rng.integers(1, len(tokens), (count, conditions))
        pictures[::2] = 0  # the half without text has no pictures either
        samples = [noisy_latents(clean_latents(2, channels, *size, rng), level, rng) for level in levels]
        feed = {
            "sample": np.concatenate(samples),
            "timestep": np.repeat(np.asarray(levels, np.float32), 2),
            "text": text["hidden"][picked],
            "image_tokens": tokens[pictures],
            "scale": rng.uniform(0.3, 1.2, (count, conditions, layers)).astype(np.float32),
        }
        if "pooled" in text:
            feed["pooled"] = text["pooled"][picked]
            feed["time_ids"] = np.tile(np.array([height, width, 0, 0, height, width], np.float32), (count, 1))
        feeds.append(feed)
    return feeds
