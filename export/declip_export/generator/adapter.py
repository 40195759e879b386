"""Loading an IP-Adapter: the projection that makes image tokens, and the keys and values that read them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from declip_runtime.errors import ExportError

from .base import Base
from .hub import local_file
from .library import quiet, reason
from .tensors import read_pickled, read_safetensors

TOKENS = 4
"""Image tokens of a standard adapter; diffusers knows no other number."""

_EXAMPLE = "Give one of the adapters ip-adapter_sd15 (for SD 1.5) or ip-adapter_sdxl_vit-h (SDXL) of h94/IP-Adapter"
_PARTS = ("image_proj", "ip_adapter")
_LAYER = re.compile(r"\d+\.to_[kv]_ip\.weight")
_FITTING = {
    512: "ViT-B-32",
    768: "ViT-L-14",
    1024: "ViT-H-14, as laion2b_s32b_b79k",
    1280: "ViT-bigG-14, as laion2b_s39b_b160k",
}
# The first tensor that only this kind of projection has, in the order in which diffusers tells them apart.
_OTHER_KINDS = (
    ("proj.3.weight", "a Full Face adapter, which takes the tower's patches"),
    ("perceiver_resampler.proj_in.weight", "a FaceID Plus adapter, which takes a face recogniser's embedding"),
    ("proj.0.weight", "a FaceID adapter, which takes a face recogniser's embedding"),
    ("latents", "an IP-Adapter Plus, which takes the tower's patches and not its embedding"),
)


@dataclass(frozen=True)
class Adapter:
    """A standard IP-Adapter: ``width`` of the image embeddings it takes, ``text_width`` of the tokens it makes."""

    state: Mapping[str, Mapping[str, Tensor]]
    width: int
    text_width: int
    source: str

    def require_width(self, width: int, tower: str) -> None:
        """ExportError unless ``tower`` gives embeddings of the width that this adapter takes."""
        if width == self.width:
            return
        fitting = _FITTING.get(self.width)
        towers = f"Use the tower that it was trained with ({fitting})" if fitting else "Use the tower that fits"
        raise ExportError(
            f"the adapter takes image embeddings of width {self.width}, {tower} gives {width}. {towers}, or an adapter "
            f"for embeddings of width {width}."
        )


def load_adapter(source: str | Path, base: Base) -> Adapter:
    """Load the adapter at ``source`` into the UNet of ``base``, through diffusers.

    ``source`` is a .safetensors or .bin file, or FOLDER:FILE or ID:FILE of a folder or a repository on the hub.

    Raises ExportError where there is none, for another kind of adapter or file, and for one of another base model.
    """
    path = local_file(str(source), _EXAMPLE)
    state = _read(path)
    projection, layers = state["image_proj"], state["ip_adapter"]
    if "proj.weight" not in projection or "norm.weight" not in projection:
        found = next((what for name, what in _OTHER_KINDS if name in projection), "an adapter of no known kind")
        raise ExportError(f"{path.name} is {found}. Only standard ones are supported. {_EXAMPLE}.")
    text_width, rows, width = int(projection["norm.weight"].shape[0]), *map(int, projection["proj.weight"].shape)
    if rows != TOKENS * text_width:
        raise ExportError(f"{path.name} makes {rows / text_width:g} image tokens, supported are {TOKENS}. {_EXAMPLE}.")
    _require_fit(path.name, layers, text_width, base)
    adapter = Adapter(state, width, text_width, str(source))
    attach(adapter, base, 1)
    return adapter


def attach(adapter: Adapter, base: Base, conditions: int) -> None:
    """Put the adapter ``conditions`` times into the UNet, so that diffusers takes as many lists of embeddings."""
    unet = base.pipeline.unet
    with quiet():
        try:
            unet._load_ip_adapter_weights([{part: dict(adapter.state[part]) for part in _PARTS}] * conditions)
        except (KeyError, RuntimeError, ValueError) as error:
            raise ExportError(
                f"diffusers cannot load {adapter.source} into this UNet: {reason(error)}. {_EXAMPLE}."
            ) from error


def _require_fit(name: str, layers: Mapping[str, Tensor], text_width: int, base: Base) -> None:
    unet = base.pipeline.unet
    if text_width != base.text_width:
        raise ExportError(
            f"{name} makes image tokens of width {text_width}, this base model's UNet takes {base.text_width}: it is "
            f"for another base model. {_EXAMPLE}."
        )
    wanted: dict[str, tuple[int, ...]] = {}
    for i, attention in enumerate(unet.attn_processors):
        if not attention.endswith("attn1.processor"):
            rows = unet.get_submodule(attention.removesuffix(".processor")).to_k.weight.shape[0]
            wanted |= {f"{i}.to_{part}_ip.weight": (rows, text_width) for part in "kv"}
    found = {key: tuple(tensor.shape) for key, tensor in layers.items() if _LAYER.fullmatch(key)}
    if found != wanted:
        differing = next(key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key))
        raise ExportError(
            f"{name} is an adapter for another UNet: {differing} is {_shape(found.get(differing))}, this base model "
            f"needs {_shape(wanted.get(differing))}. {_EXAMPLE}."
        )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))


def _read(path: Path) -> dict[str, dict[str, Tensor]]:
    state: Any
    if path.suffix == ".safetensors":
        flat = read_safetensors(path)
        state = {
            part: {k.removeprefix(f"{part}."): t for k, t in flat.items() if k.startswith(f"{part}.")}
            for part in _PARTS
        }
    else:
        state = read_pickled(path)
    if not isinstance(state, Mapping) or not all(isinstance(state.get(p), Mapping) and state[p] for p in _PARTS):
        raise ExportError(f"{path.name} is no IP-Adapter: it lacks image_proj or ip_adapter. {_EXAMPLE}.")
    return {part: dict(state[part]) for part in _PARTS}
