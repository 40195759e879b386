"""Reference images on their way to the UNet: opened, told apart by their hash, and made into image tokens."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from declip_runtime.errors import ImageNotFoundError
from declip_runtime.generator_manifest import GeneratorManifest
from declip_runtime.images import describe, open_image
from declip_runtime.manifest import Preprocess
from declip_runtime.preprocess import prepare
from declip_runtime.signature import BATCH

from .batches import Component, axis, compute
from .request import OUTPUTS, Condition, repeats, token_shape

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Reference:
    """Which image it was: SHA-256 (hex) of the encoded file, or of the pixels where no file was given.

    ``path`` is as it was given, None for an image that came without one.
    """

    path: str | None
    sha256: str
    of: Literal["file", "pixels"]


@dataclass(frozen=True, eq=False)
class Opened:
    """A condition whose images are open: ``pixels`` uint8 [n, S, S, 3] as the image encoder takes them."""

    condition: Condition
    pixels: npt.NDArray[np.uint8]
    references: tuple[Reference, ...]


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """What the UNet is told of G conditions: tokens float32 [G, tokens, C] of the conditions and of none, ``scale``
    float32 [G, layers]."""

    conditional: npt.NDArray[np.float32]
    unconditional: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]


def open_condition(condition: Condition, spec: Preprocess) -> Opened:
    """Open and prepare the images of a condition.

    Raises ImageError for an image that cannot be used, InvalidArrayError and UsageError for what can be none.
    """
    pictures, references = zip(*(open_reference(image) for image in condition.images), strict=True)
    return Opened(condition, np.concatenate([prepare(picture, spec) for picture in pictures]), references)


def open_reference(source: Any) -> tuple[Image.Image, Reference]:
    """Open one image, every pixel of it, and say which it was. Raises ImageError, InvalidArrayError, UsageError."""
    picture = open_image(source)
    if isinstance(source, str | os.PathLike):
        return picture, Reference(os.fsdecode(source), _hash_of_file(source), "file")
    if isinstance(source, bytes | bytearray | memoryview):
        return picture, Reference(None, hashlib.sha256(source).hexdigest(), "file")
    digest = hashlib.sha256(f"{picture.mode} {picture.width} x {picture.height}\n".encode())
    digest.update(picture.tobytes())
    return picture, Reference(None, digest.hexdigest(), "pixels")


def image_tokens(
    opened: Sequence[Opened], manifest: GeneratorManifest, component: Callable[[str], Component]
) -> ImageTokens:
    """Encode all conditions. ``component`` gives the engine's models by name; none is run where there is no condition.

    Conditions with different numbers of images are repeated to as many, and where the engine asks for more conditions
    than there are, some of strength 0 are added.
    """
    unet = manifest.components["unet"]
    groups = max(len(opened), axis(unet, "image_tokens", 1).minimum)
    count = repeats(manifest, [len(o.pixels) for o in opened] or [1]) or 1
    each, width = token_shape(manifest)
    conditional = np.zeros((groups, count * each, width), np.float32)
    unconditional = np.zeros_like(conditional)
    scale = np.zeros((groups, len(manifest.layers)), np.float32)
    if opened:
        tokens = _tokens(opened, manifest, component)
        unconditional[:] = np.tile(tokens[-1], (count, 1))
        start = 0
        for number, each_opened in enumerate(opened):
            images = len(each_opened.pixels)
            own = tokens[start : start + images].reshape(images * each, width)
            conditional[number] = np.tile(own, (count // images, 1))
            scale[number] = each_opened.condition.strengths
            start += images
    return ImageTokens(conditional, unconditional, scale)


def _tokens(
    opened: Sequence[Opened], manifest: GeneratorManifest, component: Callable[[str], Component]
) -> npt.NDArray[np.float32]:
    """Tokens float32 [N + 1, T, C] of the N images of all conditions in order, and last of no image (zeros)."""
    encoder, projector = manifest.components["image_encoder"], manifest.components["image_tokens"]
    pixels = np.concatenate([o.pixels for o in opened])
    embeddings = compute(component("image_encoder"), encoder, {"images": pixels}, at_most=encoder.free[BATCH].optimum)
    outputs = [OUTPUTS[o.condition.kind] for o in opened for _ in o.pixels]
    rows = [embeddings[output][row] for row, output in enumerate(outputs)]
    given = np.stack([*rows, np.zeros_like(rows[0])])
    tokens: npt.NDArray[np.float32] = compute(component("image_tokens"), projector, {"embeddings": given})["tokens"]
    return tokens


def _hash_of_file(path: str | os.PathLike[Any]) -> str:
    digest = hashlib.sha256()
    try:
        with Path(os.fsdecode(path)).open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise ImageNotFoundError(f"{describe(path)} cannot be read any more. Check the path.") from error
    return digest.hexdigest()
