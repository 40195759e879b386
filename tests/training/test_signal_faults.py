"""Faults of hand and signal: what each does to a photo, measured by SciPy and NumPy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from declip_training.data.signal_faults import camera_shake, dropouts, interference, jitter

Pixels = npt.NDArray[np.uint8]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def grey(side: int = 96) -> Pixels:
    return np.full((side, side + 20, 3), 120, np.uint8)


@pytest.mark.parametrize("seed", range(4))
def test_interference_is_a_wave_of_one_frequency(seed: int) -> None:
    waved = interference(grey(), 0.8, rng(seed)).astype(float).mean(axis=2) - 120
    power = np.abs(np.fft.rfft2(waved)) ** 2
    peak = np.unravel_index(power.argmax(), power.shape)
    around = np.roll(power, (8 - peak[0], 8 - peak[1]), (0, 1))[:17, :17]
    # the rest are the harmonics of what was clipped, and the swell; of white noise it would be a twentieth
    assert around.sum() > 0.6 * power.sum()


def test_shaking_spreads_light_and_loses_none() -> None:
    square = np.zeros((81, 81, 3), np.uint8)  # a point would be spread too thin for 8 bits
    square[30:51, 30:51] = 255
    reach = []
    for severity in (0.1, 0.5, 1.0):
        shaken = camera_shake(square, severity, rng(1)).astype(float)
        assert shaken.sum() == pytest.approx(float(square.sum()), rel=0.02)  # light is kept
        reach.append(int((shaken[..., 0] > 8).sum()))
    assert 21 * 21 < reach[0] < reach[1] < reach[2]
    assert np.array_equal(camera_shake(grey(), 1.0, rng()), grey())


def test_dropouts_lose_more_and_more_of_the_same_parts() -> None:
    photo = rng().integers(0, 256, (120, 90, 3)).astype(np.uint8)
    lost = [(dropouts(photo, s, rng(5)) != photo).any(axis=2) for s in (0.05, 0.4, 1.0)]
    assert 0.001 < lost[0].mean() < lost[1].mean() < lost[2].mean() < 0.5
    assert (lost[1] | ~lost[0]).mean() > 0.99  # but for pixels that happen to have the filling's colour
    filled = dropouts(photo, 0.4, rng(5))
    assert ndimage.label(lost[1])[1] > 1
    assert np.abs(np.diff(filled.astype(int), axis=1)).sum() < np.abs(np.diff(photo.astype(int), axis=1)).sum()


def test_jitter_invents_no_colour_and_moves_further() -> None:
    rows = np.repeat(np.arange(100, dtype=np.uint8)[:, None, None], 100, axis=1).repeat(3, axis=2)
    moved = [np.abs(jitter(rows, s, rng(2)).astype(int) - rows).mean() for s in (0.1, 0.5, 1.0)]
    assert 0 < moved[0] < moved[1] < moved[2] < 8
    photo = rng().integers(0, 256, (40, 40, 3)).astype(np.uint8)
    colours = {tuple(c) for c in photo.reshape(-1, 3)}
    assert {tuple(c) for c in jitter(photo, 0.7, rng()).reshape(-1, 3)} <= colours
