"""What an engine says that generates pictures: the models of a Stable Diffusion with a DP-Adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .generator_shapes import COMPONENTS, Family, require_shapes
from .manifest import Manifest, Preprocess
from .signature import LARGEST, Signature
from .typed_fields import Typed, require

__all__ = ["COMPONENTS", "TOKENIZERS", "Family", "GeneratorManifest", "TextInput"]

TOKENIZERS = "tokenizers/"
"""Where in an engine the tokenizers lie."""

_LARGEST_ID = (1 << 31) - 1
_MOST_PIXELS = 1 << 28


@dataclass(frozen=True)
class TextInput(Typed):
    """The tokenizer of a text encoder's input, and the id that pads.

    ``entry`` is JSON of the ``tokenizers`` library, and its name begins with ``TOKENIZERS``.
    """

    entry: str
    pad_id: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.entry.startswith(TOKENIZERS), f"a tokenizer's entry is {self.entry!r}, not in {TOKENIZERS}")
        require(0 <= self.pad_id <= _LARGEST_ID, f"pad_id is {self.pad_id}, allowed are 0..{_LARGEST_ID}")


@dataclass(frozen=True, kw_only=True)
class GeneratorManifest(Manifest):
    """What an engine says that generates pictures (``family`` Stable Diffusion 1.x and 2.x, or XL).

    Every component has graphs ``{component}-fp32``, and ``-fp16`` for GPUs:

    - ``image_encoder``: ``images`` uint8 [B, S, S, 3] prepared as ``preprocess`` says -> ``identity`` (the tower's
      embedding), ``perceptual`` and ``semantic`` (through the projectors) float32 [B, embedding_dim], not normalised;
    - ``image_tokens``: ``embeddings`` float32 [B, embedding_dim] -> ``tokens`` float32 [B, T, C];
    - ``text_encoder``: ``input_ids`` int64 [B, 77] (XL ``input_ids_2`` too) -> ``hidden`` float32 [B, 77, C] (XL
      ``pooled`` float32 [B, P] too);
    - ``unet``: ``sample`` float32 [B, L, height, width], ``timestep`` float32 [B], ``text`` float32 [B, 77, C],
      ``image_tokens`` float32 [B, conditions, tokens, C], ``scale`` float32 [B, conditions, len(layers)] (XL ``pooled``
      and ``time_ids`` float32 [B, 6] too) -> ``noise`` like ``sample``;
    - ``vae_decoder``: ``latents`` float32 [B, L, height, width] -> ``images`` float32 [B, 8*height, 8*width, 3], 0..1.

    ``layers`` are the UNet's cross-attention layers by diffusers' names, in the order of ``scale``. ``scheduler`` is a
    diffusers configuration. ``height`` and ``width`` in pixels, ``steps`` and ``guidance`` are defaults. ``vae_scale``
    is how many pixels a latent spans, ``zero_negative`` that an empty negative text is all zeros (XL).
    """

    family: Family
    components: Mapping[str, Signature]
    preprocess: Preprocess
    embedding_dim: int
    layers: tuple[str, ...]
    text_inputs: Mapping[str, TextInput]
    scheduler: Mapping[str, Any]
    height: int
    width: int
    kind: Literal["unet"] = "unet"
    steps: int = 30
    guidance: float = 7.5
    vae_scale: int = 8
    zero_negative: bool = False

    def _check(self) -> None:
        numbers = (self.steps, self.vae_scale, self.embedding_dim)
        require(min(numbers) >= 1, "steps, vae_scale and embedding_dim must be 1 at least")
        require(max(numbers) <= LARGEST, f"steps, vae_scale and embedding_dim must be {LARGEST} at most")
        require(bool(self.layers), "the generator has no cross-attention layer")
        sizes = {"S": self.preprocess.size, "D": self.embedding_dim, "A": len(self.layers), "P": self.vae_scale}
        require_shapes(self.family, self.components, sizes)
        asked = set(self.components["text_encoder"].inputs)
        require(asked == set(self.text_inputs), f"the text encoder takes {sorted(asked)}, each needs its tokenizer")
        require(isinstance(self.scheduler.get("_class_name"), str), "the scheduler has no _class_name")
        require(self.guidance >= 0, f"guidance is {self.guidance}, wanted is 0 at least")
        step = self.vae_scale
        require(min(self.height, self.width) >= step, f"height and width must be at least {step}")
        require(not (self.height % step or self.width % step), f"height and width must be multiples of {step}")
        require(self.height * self.width <= _MOST_PIXELS, f"height and width must be {_MOST_PIXELS} pixels at most")

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """The components'."""
        return self.components

    @property
    def main(self) -> str:
        """The UNet, which runs once a step."""
        return "unet"

    @property
    def files(self) -> tuple[str, ...]:
        """The tokenizers."""
        return tuple(dict.fromkeys(text.entry for text in self.text_inputs.values()))

    @property
    def decides(self) -> dict[str, Any]:
        """Everything but the sizes, steps and guidance that a call may choose."""
        return {
            "kind": self.kind,
            "family": self.family,
            "preprocess": asdict(self.preprocess),
            "layers": self.layers,
            "text_inputs": {name: asdict(text) for name, text in self.text_inputs.items()},
            "scheduler": dict(self.scheduler),
            "vae_scale": self.vae_scale,
            "zero_negative": self.zero_negative,
        }
