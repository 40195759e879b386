"""Ladders of faults that training never makes: a score that falls on them knows faults, not only those it was shown.

Nothing is shared with ``declip_training.data.distortions``, and none of its kinds (blur, defocus, motion, shake, sensor
and display noise, grain, JPEG, under- and overexposure, contrast, resolution, colour fringes, banding, halos, smearing,
interference, dropouts, jitter) is here; pixelation differs from resolution, which is lost smoothly there. Its accidents
are drawn from so much that some of them resemble some of these. Five rungs above the untouched photo, set by eye from
just visible to severe, never by what an engine makes of them. Every function is deterministic; those that use Pillow's
codecs and filters give what this machine's version gives.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, features
from scipy import ndimage

from declip_runtime.errors import TrainingError

from .attribute_ladders import from_oklab, to_oklab
from .ladders import Pixels, Rung, centred, rungs, to_linear, to_pixels, to_srgb


def dead_pixels(pixels: Pixels, strength: float) -> Pixels:
    """A share ``strength`` of all channel values stuck at 0 or 255; those stuck at a lower share stay stuck."""
    rng = np.random.default_rng(2)
    order, value = rng.random(pixels.shape), rng.integers(0, 2, pixels.shape) * 255
    return np.where(order < strength, value, pixels).astype(np.uint8)


def webp(pixels: Pixels, strength: float) -> Pixels:
    """Through a WebP file of quality ``strength``."""
    return _through_file(pixels, "WEBP", "webp", quality=round(strength), method=4)


def jpeg2000(pixels: Pixels, strength: float) -> Pixels:
    """Through a JPEG 2000 file of the lossy wavelet, ``strength`` dB PSNR: a rate would mean less on a small photo."""
    quality = {"quality_mode": "dB", "quality_layers": [strength]}
    return _through_file(pixels, "JPEG2000", "jpg_2000", irreversible=True, **quality)


def _through_file(pixels: Pixels, form: str, feature: str, **options: Any) -> Pixels:
    if not features.check(feature):
        raise TrainingError(f"this Pillow cannot write {form}. Install the wheel from PyPI: pip install -U pillow")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    with Image.open(buffer) as stored:
        return np.asarray(stored.convert("RGB"))


def striping(pixels: Pixels, strength: float) -> Pixels:
    """Each row as a whole brighter or darker, by ``strength`` of 255 (standard deviation); each column by half that."""
    rng = np.random.default_rng(3)
    height, width = pixels.shape[:2]
    rows, columns = rng.standard_normal((height, 1, 1)), rng.standard_normal((1, width, 1))
    return to_pixels(pixels + strength * (rows + 0.5 * columns))


def ghosting(pixels: Pixels, strength: float) -> Pixels:
    """Two frames merged that do not match: a copy 12 pixels to the right and 5 down, weighted ``strength`` of 1."""
    height, width = pixels.shape[:2]
    copy = np.pad(pixels, ((5, 0), (12, 0), (0, 0)), mode="edge")[:height, :width]
    return to_pixels((1 - strength) * pixels + strength * copy)


def pixelation(pixels: Pixels, strength: float) -> Pixels:
    """Cells of ``strength`` pixels a side show the one in their middle: edges become stairs, fine patterns beat."""
    height, width = pixels.shape[:2]
    rows, columns = (((np.arange(length) // strength + 0.5) * strength).astype(int) for length in (height, width))
    cells: Pixels = pixels[np.ix_(rows.clip(max=height - 1), columns.clip(max=width - 1))]
    return cells


def lost_blocks(pixels: Pixels, strength: float) -> Pixels:
    """A share ``strength`` of the blocks of 8 x 8 pixels shows what is 24 pixels to the left: a damaged file."""
    height, width = pixels.shape[:2]
    order = np.random.default_rng(4).random((height // 8 + 1, width // 8 + 1))
    lost = np.repeat(np.repeat(order < strength, 8, axis=0), 8, axis=1)[:height, :width, None]
    return np.where(lost, np.roll(pixels, 24, axis=1), pixels)


def combing(pixels: Pixels, strength: float) -> Pixels:
    """Each second row ``strength`` pixels to the right, as two fields of moving video make it."""
    combed: Pixels = pixels.copy()
    combed[1::2] = np.pad(pixels, ((0, 0), (round(strength), 0), (0, 0)), mode="edge")[1::2, : pixels.shape[1]]
    return combed


def scratches(pixels: Pixels, strength: float) -> Pixels:
    """``strength`` bright hairs a hundred thousand pixels, thin, bent and half as long as a photo, as on old film."""
    rng = np.random.default_rng(6)
    height, width = pixels.shape[:2]
    canvas = Image.fromarray(pixels)
    pen = ImageDraw.Draw(canvas)
    for _ in range(max(1, round(strength * height * width / 1e5))):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        angle, bend = rng.uniform(0, 2 * np.pi), rng.uniform(-0.02, 0.02)
        points = [(x, y)]
        for _ in range(round(min(height, width) / 8)):
            angle += bend
            x, y = x + 4 * np.cos(angle), y + 4 * np.sin(angle)
            points.append((x, y))
        pen.line(points, fill=(235, 230, 220))
    return np.asarray(canvas)


def colour_bleeding(pixels: Pixels, sigma: float) -> Pixels:
    """Colour, not lightness, blurred by ``sigma`` pixels and as far to the right, as a worn video tape shows it."""
    lab = to_oklab(pixels)
    for axis in (1, 2):
        blurred = ndimage.gaussian_filter(lab[..., axis], sigma, mode="nearest")
        lab[..., axis] = ndimage.shift(blurred, (0, sigma), order=1, mode="nearest")
    return from_oklab(lab)


def dithering(pixels: Pixels, colours: float) -> Pixels:
    """The best ``colours`` colours for the photo, mixed dot by dot (Floyd and Steinberg), as in a GIF."""
    image = Image.fromarray(pixels).quantize(round(colours), Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    return np.asarray(Image.fromarray(pixels).quantize(palette=image).convert("RGB"))


def colour_cast(pixels: Pixels, strength: float) -> Pixels:
    """White balance off: of linear light, ``strength`` of 1 taken from blue, half of that from green."""
    return to_srgb(to_linear(pixels) * np.array([1.0, 1 - 0.5 * strength, 1 - strength]))


def avif(pixels: Pixels, strength: float) -> Pixels:
    """Through an AVIF file of quality ``strength``."""
    return _through_file(pixels, "AVIF", "avif", quality=round(strength), speed=8)


def halftone(pixels: Pixels, strength: float) -> Pixels:
    """Printed: each ink as dots of a screen at an angle of its own, four pixels apart; weighted ``strength`` of 1."""
    height, width = pixels.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    printed = np.empty(pixels.shape)
    for ink, angle in enumerate(np.radians([15.0, 75.0, 0.0])):
        across = np.cos(np.pi / 4 * (columns * np.cos(angle) + rows * np.sin(angle)) * 2)
        down = np.cos(np.pi / 4 * (rows * np.cos(angle) - columns * np.sin(angle)) * 2)
        printed[..., ink] = np.where(pixels[..., ink] / 255 > 0.5 + across * down / 2, 255, 0)
    return to_pixels((1 - strength) * pixels + strength * printed)


def drops(pixels: Pixels, strength: float) -> Pixels:
    """``strength`` drops a hundred thousand pixels on the lens: each shows what is around it small and upside down."""
    rng = np.random.default_rng(7)
    height, width = pixels.shape[:2]
    wet: Pixels = pixels.copy()
    for _ in range(max(1, round(strength * height * width / 1e5))):
        y, x, radius = int(rng.integers(height)), int(rng.integers(width)), int(rng.integers(5, 17))
        top, left = max(0, y - radius), max(0, x - radius)
        rows, columns = np.mgrid[top : min(height, y + radius), left : min(width, x + radius)]
        inside = np.hypot(rows - y, columns - x) < radius
        seen = (y - 3 * (rows - y)).clip(0, height - 1), (x - 3 * (columns - x)).clip(0, width - 1)
        wet[rows[inside], columns[inside]] = pixels[seen[0][inside], seen[1][inside]]
    return wet


def wrong_mosaic(pixels: Pixels, strength: float) -> Pixels:
    """Developed as if the sensor's colours began one row lower: zips along edges, weighted ``strength`` of 1."""
    height, width = pixels.shape[:2]
    sensor = np.pad(pixels, ((1, height % 2 + 1), (0, width % 2), (0, 0)), mode="edge")
    developed = np.empty(pixels.shape)
    for channel, (down, across) in enumerate(((0, 0), (0, 1), (1, 1))):  # red, green and blue in each square of four
        samples = sensor[down::2, across::2, channel]
        developed[..., channel] = np.repeat(np.repeat(samples, 2, axis=0), 2, axis=1)[:height, :width]
    return to_pixels((1 - strength) * pixels + strength * developed)


def vignetting(pixels: Pixels, strength: float) -> Pixels:
    """Light lost towards the corners, by ``strength`` of 1 there, with the square of the distance from the middle."""
    rows, columns = centred(pixels)
    return to_srgb(to_linear(pixels) * (1 - strength * (rows**2 + columns**2) / 2)[..., None])


def light_leak(pixels: Pixels, strength: float) -> Pixels:
    """Stray light from the right: orange, added to linear light, ``strength`` of white at the edge."""
    _, columns = centred(pixels)
    glow = strength * np.exp(3 * (columns - 1))
    return to_srgb(to_linear(pixels) + glow[..., None] * np.array([1.0, 0.45, 0.15]))


def rolling_shutter(pixels: Pixels, strength: float) -> Pixels:
    """Rows read while the camera trembles: displaced by up to ``strength`` pixels along six waves a photo."""
    height, width = pixels.shape[:2]
    waves = np.sin(12 * np.pi * np.arange(height) / height)
    where = np.clip(np.arange(width) + strength * waves[:, None], 0, width - 1)
    left = np.floor(where).astype(int)
    share = (where - left)[..., None]
    rows = np.arange(height)[:, None]
    return to_pixels((1 - share) * pixels[rows, left] + share * pixels[rows, np.minimum(left + 1, width - 1)])


def solarisation(pixels: Pixels, strength: float) -> Pixels:
    """Values above the middle turned over, as film does that saw light while developing; weighted ``strength`` of 1."""
    turned = np.where(pixels > 127, 255 - pixels, pixels)
    return to_pixels((1 - strength) * pixels + strength * turned)


UNSEEN: Mapping[str, Sequence[Rung]] = {
    "dead pixels": rungs(dead_pixels, 0.0005, 0.002, 0.006, 0.018, 0.05),
    "WebP": rungs(webp, 50, 30, 15, 6, 0),
    "JPEG 2000": rungs(jpeg2000, 36, 33, 30, 27, 24),
    "striping": rungs(striping, 2.0, 4.0, 8.0, 15.0, 28.0),
    "ghosting": rungs(ghosting, 0.08, 0.15, 0.24, 0.36, 0.5),
    "pixelation": rungs(pixelation, 1.5, 2.5, 3.5, 5.0, 8.0),
    "lost blocks": rungs(lost_blocks, 0.01, 0.04, 0.1, 0.22, 0.45),
    "combing": rungs(combing, 1, 2, 4, 7, 12),
    "scratches": rungs(scratches, 2, 5, 12, 28, 60),
    "colour bleeding": rungs(colour_bleeding, 1.5, 3, 6, 10, 16),
    "dithering": rungs(dithering, 96, 40, 18, 8, 4),
    "colour cast": rungs(colour_cast, 0.2, 0.35, 0.5, 0.65, 0.8),
    "AVIF": rungs(avif, 50, 30, 18, 9, 2),
    "halftone": rungs(halftone, 0.06, 0.2, 0.45, 0.7, 1.0),
    "drops": rungs(drops, 2, 6, 14, 30, 60),
    "wrong mosaic": rungs(wrong_mosaic, 0.12, 0.3, 0.5, 0.75, 1.0),
    "vignetting": rungs(vignetting, 0.25, 0.45, 0.65, 0.82, 0.97),
    "light leak": rungs(light_leak, 0.08, 0.2, 0.45, 0.9, 1.8),
    "rolling shutter": rungs(rolling_shutter, 1.0, 2.5, 5.0, 9.0, 16.0),
    "solarisation": rungs(solarisation, 0.1, 0.25, 0.45, 0.7, 1.0),
}
"""Five rungs of each kind, from just visible to severe. They are not free of our choices: what engines made of them was
known when training got the faults of hand and signal (the first eight) and accidents (the first twelve), when
accidents were given smaller extents, because of scratches (the first sixteen), and when the tower's last layer was
fitted by order (all)."""
