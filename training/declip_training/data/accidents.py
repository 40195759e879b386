"""Faults that have no name, as graded distortions for training: something at random happens to some part of a photo.

A network that has seen twenty named faults knows these twenty. So one more kind draws the fault itself: what happens
(parts are moved, waved, recoloured, made coarse, filtered, overlaid or replaced), where (everywhere, along strokes, in
spots, lines, cells or on one side), and whether it grows in strength or in extent.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

Pixels = npt.NDArray[np.uint8]
Values = npt.NDArray[np.floating]


def accident(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    """A worse copy of uint8 [H, W, 3], severity 0..1; one state of ``rng`` gives one accident at all severities."""
    values: Values = pixels.astype(np.float32)
    for _ in range(1 + (rng.random() < 0.3)):
        happens, where = rng.spawn(2)
        change, place = _CHANGES[int(rng.integers(len(_CHANGES)))], _PLACES[int(rng.integers(len(_PLACES)))]
        if rng.random() < 0.5:
            strength, share = 0.1 + 0.9 * severity, rng.uniform(0.15, 2.0)  # above 1: everywhere
        else:
            least, most = np.exp(rng.uniform(np.log(0.002), np.log(0.02))), rng.uniform(0.1, 0.66)
            strength, share = rng.uniform(0.5, 1.0), float(least * (most / least) ** severity)
        changed = change(values, strength, happens)
        if share < 1:
            mask = place(values.shape[:2], share, where)
            changed = values + mask[..., None] * (changed - values)
        values = np.clip(changed, 0, 255)
    worse: Pixels = np.rint(values).astype(np.uint8)
    return worse


def _channels(rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """All three, or one or two of them."""
    if rng.random() < 0.6:
        return np.ones(3, bool)
    some: npt.NDArray[np.bool_] = rng.permutation([True, False, rng.random() < 0.3])
    return some


def _moved(values: Values, strength: float, rng: np.random.Generator) -> Values:
    """Shifted, as a whole or some of its colours; blended with what was there, or not."""
    angle, reach = rng.uniform(0, 2 * np.pi), float(np.exp(rng.uniform(np.log(5.0), np.log(40.0))))
    down, right = round(reach * strength * np.sin(angle)), 1 + round(reach * strength * abs(np.cos(angle)))
    which, kept = _channels(rng), np.float32(rng.choice([0.0, 0.3, 0.5]))
    copy = values.copy()
    copy[..., which] = np.roll(values, (down, right), axis=(0, 1))[..., which]
    blended: Values = kept * values + (1 - kept) * copy
    return blended


def _waved(values: Values, strength: float, rng: np.random.Generator) -> Values:
    """Every row, or every column, displaced by its own amount: by waves, at random, or by turns."""
    turned = rng.random() < 0.3
    picture = values.transpose(1, 0, 2) if turned else values
    rows, columns = picture.shape[:2]
    kind, period = rng.integers(3), float(np.exp(rng.uniform(np.log(2.0), np.log(80.0))))
    shape = (
        np.sin(2 * np.pi * np.arange(rows) / period),
        ndimage.gaussian_filter1d(rng.standard_normal(rows), period / 8),
        np.where(np.arange(rows) // max(1, period // 8) % 2, 1.0, 0.0),
    )[kind]
    reach = max(1.0, strength * rng.uniform(3.0, 20.0))
    offsets = np.rint(reach * shape / (np.abs(shape).max() + 1e-6)).astype(int)
    waved: Values = picture[
        np.arange(rows)[:, None], np.clip(np.arange(columns)[None] + offsets[:, None], 0, columns - 1)
    ]
    return waved.transpose(1, 0, 2) if turned else waved


def _recoloured(values: Values, strength: float, rng: np.random.Generator) -> Values:
    """Channels amplified, curved or mixed with each other."""
    kind = rng.integers(3)
    if kind == 0:
        return values * (1 + strength * rng.uniform(-0.9, 0.5, 3)).astype(np.float32)
    if kind == 1:
        curve = np.exp(strength * rng.uniform(-1.2, 1.2, 3)).astype(np.float32)
        return 255 * (values / 255) ** curve
    mixing = np.eye(3) + strength * rng.normal(0, 0.45, (3, 3))
    return values @ mixing.astype(np.float32)


def _coarse(values: Values, strength: float, rng: np.random.Generator) -> Values:
    """Few levels of each colour, with or without a pattern of dots that hides the steps."""
    step = np.float32(6.0 * 30.0**strength)
    cell = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]], np.float32) / 16 - 0.5
    dots: Values
    kind = rng.integers(3)
    if kind == 0:
        dots = np.zeros((1, 1), np.float32)
    elif kind == 1:
        dots = np.tile(cell, (values.shape[0] // 4 + 1, values.shape[1] // 4 + 1))[: values.shape[0], : values.shape[1]]
    else:
        dots = rng.random(values.shape[:2], dtype=np.float32) - np.float32(0.5)
    stepped: Values = step * np.rint(values / step + dots[..., None])
    return stepped


def _filtered(values: Values, strength: float, rng: np.random.Generator) -> Values:
    """A filter of random taps along rows, columns or both: smears, echoes, edges; of all or of colour alone."""
    length = int(rng.choice([3, 5, 7, 9, 15, 25]))
    taps = rng.standard_normal(length) * (rng.random(length) < 0.6)
    if rng.random() < 0.6:
        taps = np.abs(taps) + 1e-3
    taps /= max(0.3, abs(taps.sum())) if rng.random() < 0.7 else np.abs(taps).sum() + 1e-3
    direct = np.eye(1, length, length // 2)[0]
    colour_only = rng.random() < 0.4
    grey = values.mean(axis=2, keepdims=True)
    found = values - grey if colour_only else values
    for axis in ((0,), (1,), (0, 1))[int(rng.integers(3))]:
        weights = (direct + strength * (taps - direct)).astype(np.float32)
        found = ndimage.convolve1d(found, weights, axis=axis, mode="nearest")
    return grey + found if colour_only else found


def _overlaid(values: Values, strength: float, rng: np.random.Generator) -> Values:
    """A random pattern added: fine or coarse, along rows or columns or neither, grey or coloured."""
    height, width = values.shape[:2]
    layers = int(rng.choice([1, 3]))
    widths = (float(rng.choice([0.0, 0.7, 2.0, 60.0])), float(rng.choice([0.0, 0.7, 2.0, 60.0])), 0.0)
    pattern = rng.standard_normal((height, width, layers), dtype=np.float32)
    pattern = ndimage.gaussian_filter(pattern, widths)
    tint = rng.uniform(-1, 1, 3).astype(np.float32) if rng.random() < 0.3 else np.ones(3, np.float32)
    overlaid: Values = values + np.float32(3.0 + 60.0 * strength**1.5) * tint * pattern / (
        pattern.std() + np.float32(1e-6)
    )
    return overlaid


def _replaced(values: Values, strength: float, rng: np.random.Generator) -> Values:
    """Covered by a colour or by another part of the photo."""
    covers = (
        np.zeros(3), np.full(3, 255.0), rng.uniform(0, 255, 3), values.mean(axis=(0, 1)),
        np.roll(values, rng.integers(20, 200, 2), axis=(0, 1)),
    )  # fmt: skip
    cover = np.asarray(covers[int(rng.integers(len(covers)))], np.float32)
    replaced: Values = values + np.float32(strength) * (cover - values)
    return replaced


_CHANGES: tuple[Callable[[Values, float, np.random.Generator], Values], ...] = (
    _moved, _waved, _recoloured, _recoloured, _coarse, _filtered, _overlaid, _replaced, _replaced,
)  # fmt: skip
"""Twice what is drawn twice as often: where colours go and what covers a photo is the most various."""


def _strokes(shape: tuple[int, int], share: float, rng: np.random.Generator) -> Values:
    """Bent lines, thin or thick."""
    height, width = shape
    mask = Image.new("L", (width, height))
    pen = ImageDraw.Draw(mask)
    thick, long = int(rng.choice([1, 1, 2, 3, 6])), rng.uniform(0.1, 1.0) * min(shape)
    bend = rng.choice([0.0, 0.05, 0.4])
    for _ in range(min(2000, max(1, round(share * height * width / (thick * long))))):
        x, y, angle = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, 2 * np.pi)
        turns = angle + np.cumsum(rng.normal(0, 1, 12) * bend)
        xs, ys = x + np.cumsum(np.cos(turns)) * long / 12, y + np.cumsum(np.sin(turns)) * long / 12
        pen.line([(x, y), *zip(xs.tolist(), ys.tolist(), strict=True)], fill=255, width=thick)
    return np.asarray(mask, np.float32) / 255


def _spots(shape: tuple[int, int], share: float, rng: np.random.Generator) -> Values:
    """Blots of one size, down to single pixels."""
    size = float(rng.choice([0.0, 0.8, 2.0, 6.0, 20.0]))
    field = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), size)
    spots: Values = (field > np.quantile(field[::2, ::2], 1 - share)).astype(np.float32)
    return spots


def _lines(shape: tuple[int, int], share: float, rng: np.random.Generator) -> Values:
    """Rows or columns, in bundles."""
    thick, axis = int(rng.choice([1, 1, 2, 4, 12])), int(rng.integers(2))
    chosen = np.repeat(rng.random(shape[axis] // thick + 1) < share, thick)[: shape[axis]].astype(np.float32)
    return np.broadcast_to(chosen[:, None] if axis == 0 else chosen[None], shape)


def _cells(shape: tuple[int, int], share: float, rng: np.random.Generator) -> Values:
    """Rectangles of a grid."""
    high, wide = (int(n) for n in np.exp(rng.uniform(np.log(4.0), np.log(64.0), 2)))
    chosen = rng.random((shape[0] // high + 1, shape[1] // wide + 1)) < share
    grid = np.repeat(np.repeat(chosen, high, axis=0), wide, axis=1)[: shape[0], : shape[1]]
    return grid.astype(np.float32)


def _side(shape: tuple[int, int], share: float, rng: np.random.Generator) -> Values:
    """From one side or from the middle outwards, with a soft border."""
    rows, columns = np.linspace(-1, 1, shape[0])[:, None], np.linspace(-1, 1, shape[1])[None]
    angle, soft = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.6)
    field = np.hypot(rows, columns) if rng.random() < 0.5 else rows * np.sin(angle) + columns * np.cos(angle)
    border = np.quantile(field, 1 - share)
    side: Values = np.clip((field - border) / soft + 0.5, 0, 1).astype(np.float32)
    return side


_PLACES: tuple[Callable[[tuple[int, int], float, np.random.Generator], Values], ...] = (
    _strokes, _strokes, _spots, _lines, _cells, _side,
)  # fmt: skip
