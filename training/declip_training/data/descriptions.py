"""Perceptual sentences (T_p) for photos whose quality or distortion is known.

Human captions describe what a photo shows (T_s); these describe how it looks. Every level and every distortion has
several wordings, so that the text tower learns words and not one sentence each.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

LEVELS: tuple[tuple[str, ...], ...] = (
    ("terrible", "awful", "very bad", "horrible"),
    ("poor", "bad", "low"),
    ("fair", "average", "mediocre", "acceptable"),
    ("good", "high", "fine"),
    ("excellent", "perfect", "outstanding", "very good"),
)
"""Wordings of the five ratings, worst first."""

_LEVEL_TEMPLATES = (
    "A photo of {} quality.",
    "The quality of this photo is {}.",
    "{} photo.",
    "An image with {} technical quality.",
    "This picture looks {}.",
)

ANTONYMS: tuple[tuple[str, str], ...] = (
    ("Good photo.", "Bad photo."),
    ("A photo of good quality.", "A photo of bad quality."),
    ("A sharp, clean, well exposed photo.", "A blurry, noisy, badly exposed photo."),
    ("An excellent picture.", "A terrible picture."),
    ("A high quality image.", "A low quality image."),
)
"""Pairs in which eq. 8 is trained; the first is the paper's."""

_STRENGTHS = (("slightly", "a little"), ("clearly", "visibly"), ("heavily", "extremely"))

_DISTORTION_WORDS: dict[str, tuple[str, ...]] = {
    "gaussian blur": ("blurry", "soft and unsharp"),
    "defocus": ("out of focus", "defocused"),
    "motion blur": ("shaken", "blurred by motion"),
    "sensor noise": ("noisy", "full of camera noise"),
    "display noise": ("grainy", "speckled with noise"),
    "jpeg": ("compressed", "blocky with compression artifacts"),
    "underexposure": ("underexposed", "too dark"),
    "overexposure": ("overexposed", "too bright"),
    "low contrast": ("flat and low in contrast", "hazy"),
    "low resolution": ("pixelated", "low in resolution"),
    "camera grain": ("taken at high ISO", "rough with sensor grain"),
    "colour fringes": ("fringed with false colours", "spoiled by chromatic aberration"),
    "banding": ("posterised", "broken into bands of colour"),
    "halos": ("oversharpened", "surrounded by halos"),
    "smearing": ("smeared by noise reduction", "like a watercolour"),
    "camera shake": ("shaken by an unsteady hand", "blurred by camera shake"),
    "interference": ("covered with interference patterns", "spoiled by moire"),
    "dropouts": ("damaged with missing parts", "full of lost patches"),
    "jitter": ("jagged and displaced", "as if seen through frosted glass"),
    "accident": ("faulty", "spoiled by some accident"),
}
_DISTORTION_TEMPLATES = ("A photo that is {} {}.", "The image is {} {}.", "{} {} picture.")
CLEAN_SENTENCES = ("A clean and sharp photo.", "A photo without distortions.", "The image is crisp and clear.")


def level_sentences(rng: np.random.Generator) -> list[str]:
    """Five sentences, worst rating first, in one random wording each and one common template."""
    template = str(rng.choice(_LEVEL_TEMPLATES))
    return [_sentence(template, str(rng.choice(words))) for words in LEVELS]


def distortion_sentences(
    rng: np.random.Generator, kinds: Collection[str] | None = None
) -> tuple[list[str], dict[tuple[str, int], int]]:
    """Sentences for the clean photo and every (kind, strength 0..2), and the index of each in the list.

    The clean sentence is at index 0. ``kinds`` None stands for all.
    """
    template = str(rng.choice(_DISTORTION_TEMPLATES))
    sentences = [str(rng.choice(CLEAN_SENTENCES))]
    index: dict[tuple[str, int], int] = {}
    for kind, words in _DISTORTION_WORDS.items():
        if kinds is not None and kind not in kinds:
            continue
        for strength, adverbs in enumerate(_STRENGTHS):
            index[kind, strength] = len(sentences)
            sentences.append(_sentence(template, str(rng.choice(adverbs)), str(rng.choice(words))))
    return sentences, index


def strength_of(severity: float) -> int:
    """0, 1 or 2: which third of 0..1 the severity lies in."""
    return min(2, int(severity * 3))


def _sentence(template: str, *words: str) -> str:
    text = template.format(*words)
    return text[0].upper() + text[1:]
