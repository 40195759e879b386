"""What an engine says that generates pictures: the models of a Stable Diffusion with a DP-Adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .manifest import Manifest, Preprocess
from .signature import Signature
from .typed_fields import Typed, require

COMPONENTS = ("image_encoder", "image_tokens", "text_encoder", "unet", "vae_decoder")
"""The models of a generator."""

Family = Literal["sd", "sdxl"]


@dataclass(frozen=True)
class TextInput(Typed):
    """The tokenizer of a text encoder's input: its entry (JSON of the ``tokenizers`` library), and the id that pads."""

    entry: str
    pad_id: int


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
        require(set(self.components) == set(COMPONENTS), f"a generator has the components {', '.join(COMPONENTS)}")
        asked = set(self.components["text_encoder"].inputs)
        require(asked == set(self.text_inputs), f"the text encoder takes {sorted(asked)}, each needs its tokenizer")
        require(bool(self.layers), "the generator has no cross-attention layer")
        require(isinstance(self.scheduler.get("_class_name"), str), "the scheduler has no _class_name")
        smallest = min(self.steps, self.vae_scale, self.embedding_dim)
        require(smallest >= 1, "steps, vae_scale and embedding_dim must be 1 at least")
        step = self.vae_scale
        require(min(self.height, self.width) >= step, f"height and width must be at least {step}")
        require(not (self.height % step or self.width % step), f"height and width must be multiples of {step}")

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
