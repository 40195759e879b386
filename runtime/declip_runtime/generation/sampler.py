"""From a request to pixels: text and images are encoded, noise becomes latents step by step, latents are decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from declip_runtime.errors import BackendExecutionError, UsageError
from declip_runtime.generator_manifest import GeneratorManifest
from declip_runtime.signature import BATCH, Range, Signature

from .batches import Component, axis, compute
from .conditions import ImageTokens, Opened, image_tokens
from .progress import Progress
from .request import Request, repeats
from .schedulers import Latents, Schedule, require_possible
from .text import Text, TextEncoder, time_ids

Pixels = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Encoded:
    """What the UNet is told of all pictures of a request; ``negative`` where there is guidance."""

    text: Text
    negative: Text | None
    images: ImageTokens


class Sampler:
    """Generates with the models of one engine.

    Args:
        manifest: the engine's.
        component: gives the engine's models by name, and loads them when first asked.
        read: gives an entry of the engine.
        signature: gives what the models that are loaded take, which may be fewer sizes than the engine says: a TensorRT
            plan may be built for some of them. None is the engine's word.
    """

    def __init__(
        self,
        manifest: GeneratorManifest,
        component: Callable[[str], Component],
        read: Callable[[str], bytes],
        signature: Callable[[str], Signature] | None = None,
    ) -> None:
        self._manifest = manifest
        self._component = component
        self._read = read
        self._signature = signature or manifest.components.__getitem__
        self._encoder: TextEncoder | None = None

    def prepare(self, request: Request) -> None:
        """Raise whatever the request will fail of, as far as that shows before a model is loaded.

        Raises BackendUnavailableError, UsageError, EngineCorruptError.
        """
        require_possible(self._manifest.scheduler, request.scheduler, request.steps)
        self._text_encoder().require_readable({*request.prompts, *request.negatives})

    def at_once(self, guided: bool) -> int:
        """How many pictures go through the UNet at once: what the engine is tuned for."""
        return max(self._signature("unet").free[BATCH].optimum // (2 if guided else 1), 1)

    def run(self, request: Request, opened: Sequence[Opened], progress: Progress) -> Iterator[Pixels]:
        """Yield each picture of the request in order, float32 [height, width, 3] in 0..1.

        ``opened`` are the conditions of the request. Raises UsageError where the models that are loaded do not take its
        sizes, GenerationCancelled, and what the models raise.
        """
        taken = {name: self._signature(name) for name in self._manifest.components}
        manifest = replace(self._manifest, components=taken)
        _require_taken(manifest, request, [len(o.pixels) for o in opened])
        count = len(request.prompts)
        together = self.at_once(request.guided)
        groups = [tuple(range(start, min(start + together, count))) for start in range(0, count, together)]
        progress.steps = len(groups) * len(self._schedule(request, []).timesteps)
        encoded = self._encode(request, opened, manifest)
        for pictures in groups:
            latents = self._denoise(request, encoded, pictures, progress)
            yield from self._decode(latents)

    def _encode(self, request: Request, opened: Sequence[Opened], manifest: GeneratorManifest) -> _Encoded:
        encoder, component = self._text_encoder(), self._component("text_encoder")
        text = encoder.encode(request.prompts, component)
        negative = encoder.encode(request.negatives, component, negative=True) if request.guided else None
        return _Encoded(text, negative, image_tokens(opened, manifest, self._component))

    def _denoise(self, request: Request, encoded: _Encoded, pictures: tuple[int, ...], progress: Progress) -> Latents:
        unet, signature, scale = self._component("unet"), self._signature("unet"), self._manifest.vae_scale
        channels = signature.inputs["sample"].sized(dict.fromkeys(signature.free, 1))[1]
        schedule = self._schedule(request, [request.seeds[picture] for picture in pictures])
        latents = schedule.noise(channels, request.height // scale, request.width // scale)
        told = self._told(request, encoded, pictures)
        for index, timestep in enumerate(schedule.timesteps):
            with progress.step():
                sample = schedule.scaled(latents, index)
                sample = np.concatenate([sample, sample]) if request.guided else sample
                times = np.full(len(sample), timestep, np.float32)
                noise = compute(unet, signature, {"sample": sample, "timestep": times, **told})["noise"]
                _require_finite(noise, "the UNet")
                latents, expected = schedule.step(_guided(noise, request), index, latents)
            progress.report(pictures, partial(self._preview, expected))
        return latents

    def _told(self, request: Request, encoded: _Encoded, pictures: Sequence[int]) -> dict[str, npt.NDArray[Any]]:
        """The UNet's inputs that stay the same from step to step: the unconditional half first, as in diffusers."""
        rows, images = list(pictures), encoded.images
        halves = [(encoded.text, images.conditional)]
        if encoded.negative is not None:
            halves.insert(0, (encoded.negative, images.unconditional))
        count = len(rows)
        told = {
            "text": np.concatenate([text.hidden[rows] for text, _ in halves]),
            "image_tokens": np.concatenate([np.repeat(tokens[None], count, axis=0) for _, tokens in halves]),
            "scale": np.repeat(images.scale[None], count * len(halves), axis=0),
        }
        if encoded.text.pooled is not None:
            told["pooled"] = np.concatenate([text.pooled[rows] for text, _ in halves if text.pooled is not None])
            told["time_ids"] = time_ids(request.height, request.width, count * len(halves))
        return told

    def _decode(self, latents: Latents) -> Pixels:
        """Pixels float32 [B, height, width, 3] in 0..1 of latents [B, L, h, w]."""
        signature = self._signature("vae_decoder")
        decoder, most = self._component("vae_decoder"), signature.free[BATCH].optimum
        pixels: Pixels = compute(decoder, signature, {"latents": latents}, at_most=most)["images"]
        _require_finite(pixels, "the decoder")
        return pixels

    def _preview(self, latents: Latents) -> list[Image.Image]:
        return [to_image(pixels) for pixels in self._decode(latents)]

    def _schedule(self, request: Request, seeds: Sequence[int]) -> Schedule:
        return Schedule(self._manifest.scheduler, request.scheduler, request.steps, seeds)

    def _text_encoder(self) -> TextEncoder:
        if self._encoder is None:
            self._encoder = TextEncoder(self._manifest, self._read)
        return self._encoder


def to_image(pixels: Pixels) -> Image.Image:
    """A picture from float32 [height, width, 3] in 0..1."""
    return Image.fromarray((pixels * 255.0).round().astype(np.uint8))


def _guided(noise: Latents, request: Request) -> Latents:
    if not request.guided:
        return noise
    unconditional, conditional = np.split(noise, 2)
    guided: Latents = unconditional + np.float32(request.guidance) * (conditional - unconditional)
    return guided


def _require_taken(manifest: GeneratorManifest, request: Request, images: Sequence[int]) -> None:
    """Raise UsageError where a model does not take the sizes of a request with so many ``images`` a condition.

    What the engine takes was asked before. ``manifest`` says what the models that are loaded do.
    """
    unet, decoder = manifest.components["unet"], manifest.components["vae_decoder"]
    for number, side in ((2, "height"), (3, "width")):
        asked = getattr(request, side) // manifest.vae_scale
        for name, sizes in (("unet", axis(unet, "sample", number)), ("vae_decoder", axis(decoder, "latents", number))):
            if not sizes.minimum <= asked <= sizes.maximum:
                raise _not_taken(name, side, sizes, asked, f" latents of {manifest.vae_scale} pixels")
    conditions, tokens = axis(unet, "image_tokens", 1), axis(unet, "image_tokens", 2)
    if len(images) > conditions.maximum:
        raise _not_taken("unet", "conditions", conditions, len(images))
    if repeats(manifest, images or [1]) is None:
        raise _not_taken("unet", "tokens", tokens, f"those of {', '.join(map(str, images)) or 'no'} images")


def _not_taken(component: str, dimension: str, sizes: Range, asked: object, unit: str = "") -> UsageError:
    return UsageError(
        f"the plan of the {component} takes {dimension} {sizes.minimum} to {sizes.maximum}{unit}, this needs {asked}."
        " Ask for what it takes, or build a plan for more: declip build ENGINE"
        f" --component {component} --range {dimension}=SMALLEST,USUAL,LARGEST"
    )


def _require_finite(array: npt.NDArray[np.float32], what: str) -> None:
    if not np.isfinite(array).all():
        raise BackendExecutionError(
            f"{what} gave values that are no numbers, as where a precision overflows. Use precision='fp32'."
        )
