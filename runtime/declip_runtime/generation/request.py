"""What was asked for, checked against what the engine can do before anything is loaded."""

from __future__ import annotations

import math
import operator
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from declip_runtime.errors import UsageError
from declip_runtime.generator_manifest import GeneratorManifest
from declip_runtime.images import Source, sources
from declip_runtime.signature import BATCH, Range

from .batches import axis
from .plain_numbers import bounded, require_count, shown
from .scales import Scale, plain, strengths
from .schedulers import require_known

Kind = Literal["perceptual", "semantic", "image"]
References: TypeAlias = Source | Iterable[Source] | None
"""The reference images of one condition: none, one, or several that act together."""

OUTPUTS: Mapping[Kind, str] = {"perceptual": "perceptual", "semantic": "semantic", "image": "identity"}
"""The kinds of conditions, in the order in which they act, and the image encoder's output for each."""

# What a UNet halves three times and doubles again: only multiples of this come out as they went in.
_LATENT_STEP = 8
_LAST_SEED = (1 << 63) - 1
_DRAWN_SEEDS = 1 << 32
MOST_PICTURES = 10_000
"""Of one call: more would take days, and mostly are a mistyped number."""
_MOST_STEPS = 10_000
_MOST_PIXELS = 1 << 20


@dataclass(frozen=True, eq=False)
class Condition:
    """Reference images that act together: what of them acts, and how strongly.

    ``scale`` is JSON-ready, ``strengths`` the same resolved for every layer, float32 [layers].
    """

    kind: Kind
    images: tuple[Any, ...]
    scale: Any
    strengths: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Request:
    """A generation whose arguments are valid; one entry a picture in ``prompts``, ``negatives`` and ``seeds``.

    ``guidance`` above 1 takes a second pass with the negative text. ``scheduler`` is a name of ``schedulers.NAMES``;
    None is the engine's own.
    """

    prompts: tuple[str, ...]
    negatives: tuple[str, ...]
    seeds: tuple[int, ...]
    conditions: tuple[Condition, ...]
    steps: int
    guidance: float
    width: int
    height: int
    scheduler: str | None

    @property
    def guided(self) -> bool:
        """Whether each step computes the unconditional half too."""
        return self.guidance > 1.0


def make_request(
    manifest: GeneratorManifest,
    *,
    prompt: str | Sequence[str] = "",
    negative_prompt: str | Sequence[str] = "",
    perceptual: References = None,
    semantic: References = None,
    image: References = None,
    perceptual_scale: Scale = 1.0,
    semantic_scale: Scale = 1.0,
    image_scale: Scale = 1.0,
    steps: int | None = None,
    guidance: float | None = None,
    width: int | None = None,
    height: int | None = None,
    seed: int | Sequence[int] | None = None,
    images_per_prompt: int = 1,
    scheduler: str | None = None,
) -> Request:
    """Check the arguments of ``DPAdapter.generate`` and fill in the engine's defaults. Opens no image.

    Raises UsageError for an argument that cannot work with this engine.
    """
    prompts = _texts("prompt", prompt, None)
    require_count("images_per_prompt", images_per_prompt, max(MOST_PICTURES // len(prompts), 1))
    negatives = _texts("negative_prompt", negative_prompt, len(prompts))
    steps = manifest.steps if steps is None else steps
    require_count("steps", steps, _MOST_STEPS)
    require_known(scheduler)
    given = {
        "perceptual": (perceptual, perceptual_scale),
        "semantic": (semantic, semantic_scale),
        "image": (image, image_scale),
    }
    conditions = tuple(_condition(manifest, kind, *given[kind]) for kind in OUTPUTS if given[kind][0] is not None)
    _require_room(manifest, conditions)
    return Request(
        prompts=tuple(text for text in prompts for _ in range(images_per_prompt)),
        negatives=tuple(text for text in negatives for _ in range(images_per_prompt)),
        seeds=_seeds(seed, len(prompts) * images_per_prompt),
        conditions=conditions,
        steps=steps,
        guidance=_guidance(manifest.guidance if guidance is None else guidance),
        width=_pixels(manifest, "width", manifest.width if width is None else width),
        height=_pixels(manifest, "height", manifest.height if height is None else height),
        scheduler=scheduler,
    )


def repeats(manifest: GeneratorManifest, counts: Sequence[int]) -> int | None:
    """To how many images each condition is repeated, so that conditions of ``counts`` images fit into one array.

    Repeating all tokens of an attention equally changes nothing. None where the engine does not take so many.
    """
    tokens, each = axis(manifest.components["unet"], "image_tokens", 2), token_shape(manifest)[0]
    common = math.lcm(*counts)
    fewest = -(-tokens.minimum // each)
    needed = common * max(-(-fewest // common), 1)
    return needed if needed * each <= tokens.maximum else None


def token_shape(manifest: GeneratorManifest) -> tuple[int, int]:
    """How many image tokens an embedding becomes, and how wide they are."""
    _, count, width = manifest.components["image_tokens"].outputs["tokens"].sized({BATCH: 1})
    return count, width


def _condition(manifest: GeneratorManifest, kind: Kind, images: References, scale: Scale) -> Condition:
    encoder = manifest.components["image_encoder"]
    if OUTPUTS[kind] not in encoder.outputs:
        raise UsageError(
            f"this engine has no {OUTPUTS[kind]} embedding, only {', '.join(encoder.outputs)}."
            f" Leave {kind} out, or export the engine with the checkpoint that has it."
        )
    every = tuple(sources(images))  # type: ignore[arg-type]
    if not every:
        raise UsageError(f"{kind} holds no image. Give at least one, or leave it out.")
    resolved = strengths(scale, manifest.layers, f"{kind}_scale")
    return Condition(kind, every, plain(scale), resolved)


def _require_room(manifest: GeneratorManifest, conditions: Sequence[Condition]) -> None:
    most = axis(manifest.components["unet"], "image_tokens", 1).maximum
    if len(conditions) > most:
        raise UsageError(
            f"this engine takes {most} of the conditions {', '.join(OUTPUTS)} at once, {len(conditions)} were given."
            " Leave one out, or export the engine for more."
        )
    counts = [len(condition.images) for condition in conditions]
    if counts and repeats(manifest, counts) is None:
        tokens = axis(manifest.components["unet"], "image_tokens", 2)
        room = tokens.maximum // token_shape(manifest)[0]
        given = ", ".join(f"{c.kind}: {len(c.images)}" for c in conditions)
        raise UsageError(
            f"this engine takes up to {room} reference images a condition, and as many as the least common multiple"
            f" where two conditions differ ({given}). Give fewer, or equally many for each."
        )


def _texts(argument: str, given: str | Sequence[str], count: int | None) -> tuple[str, ...]:
    texts = (given,) * (count or 1) if isinstance(given, str) else _listed(argument, given)
    for text in texts:
        if not isinstance(text, str):
            raise UsageError(f"{argument} holds {type(text).__name__}. Give text, or a list of texts.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"{argument} {text!r} holds half a character. Type it again.") from error
    if not texts:
        raise UsageError(f"{argument} is an empty list. Give at least one text; '' is one too.")
    if count is not None and len(texts) != count:
        raise UsageError(f"{count} prompts and {len(texts)} negative prompts were given. Give one, or one for each.")
    return texts


def _listed(argument: str, given: Any) -> tuple[Any, ...]:
    if not isinstance(given, Sequence) or isinstance(given, bytes | bytearray | memoryview):
        raise UsageError(f"{argument} is {type(given).__name__}. Give text, or a list of texts.")
    return tuple(given)


def _seeds(seed: int | Sequence[int] | None, pictures: int) -> tuple[int, ...]:
    if seed is None:
        seed = secrets.randbelow(_DRAWN_SEEDS)
    several = seed.ndim > 0 if isinstance(seed, np.ndarray) else isinstance(seed, Sequence)
    if several and not isinstance(seed, str | bytes):
        given: Sequence[Any] = seed  # type: ignore[assignment]
        if len(given) != pictures:
            raise UsageError(f"{len(given)} seeds were given for {pictures} pictures. Give one, or one for each.")
        return tuple(_seed(value) for value in given)
    first = _seed(seed)
    _seed(first + pictures - 1)
    return tuple(range(first, first + pictures))


def _seed(value: Any) -> int:
    try:
        seed = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        seed = -1
    if not 0 <= seed <= _LAST_SEED:
        raise UsageError(f"seed={shown(value)} cannot work. Give a whole number of 0 to {_LAST_SEED}, or leave it out.")
    return seed


def _guidance(value: Any) -> float:
    guidance = bounded(value, 0.0)
    if guidance is None:
        raise UsageError(f"guidance={shown(value)} cannot work. Give 1 for none, mostly 3 to 10, and at least 0.")
    return guidance


def _pixels(manifest: GeneratorManifest, argument: Literal["width", "height"], value: int) -> int:
    """A side in pixels that the UNet and the decoder take. Raises UsageError naming the nearest ones that they do."""
    require_count(argument, value, _MOST_PIXELS)
    low, high = _sides(manifest, argument)
    if low == high:
        if value != low:
            raise UsageError(
                f"{argument}={value} was asked for, and this engine is made for {argument}={low} only."
                f" Leave {argument} out, or export an engine for other sizes."
            )
        return value
    step = _LATENT_STEP * manifest.vae_scale
    low, high = -(-low // step) * step, high // step * step
    if value % step or not low <= value <= high:
        below = min(max(value // step * step, low), high)
        nearest = sorted({below, min(max(-(-value // step) * step, low), high)})
        raise UsageError(
            f"{argument}={value} cannot work: this engine takes multiples of {step} from {low} to {high}."
            f" Use {' or '.join(map(str, nearest))}."
        )
    return value


def _sides(manifest: GeneratorManifest, argument: Literal["width", "height"]) -> tuple[int, int]:
    """The smallest and the largest side in pixels that both the UNet and the decoder take."""
    number = {"height": 2, "width": 3}[argument]
    ranges: list[Range] = [
        axis(manifest.components["unet"], "sample", number),
        axis(manifest.components["vae_decoder"], "latents", number),
    ]
    scale = manifest.vae_scale
    return max(r.minimum for r in ranges) * scale, min(r.maximum for r in ranges) * scale
