"""What the models of a generator take and give, by family: the one table that manifests are compared with.

Whoever runs the models indexes their inputs and outputs by these names and axes. An engine file may say anything, so
it is compared once, where its manifest is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from .signature import BATCH, Signature, TensorSpec
from .typed_fields import require

Family = Literal["sd", "sdxl"]

Sizes = Mapping[str, int]
"""What the rest of a manifest says of sizes, by the letter of the table."""

_FREE = frozenset({"height", "width", "conditions", "tokens"})

# Axes after the batch. A number is that size, a letter one size wherever it stands in the engine, a word is free, or
# fixed in one model; "P*word" is P times that.
_IMAGE = {"images": "uint8 S S 3"}
_EMBEDDINGS = dict.fromkeys(("identity", "perceptual", "semantic"), "float32 D")
_UNET = {
    "sample": "float32 L height width",
    "timestep": "float32",
    "text": "float32 N C",
    "image_tokens": "float32 conditions tokens C",
    "scale": "float32 conditions A",
}


class _Model(NamedTuple):
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    optional: frozenset[str] = frozenset()  # outputs that may be missing


_SD: Mapping[str, _Model] = {
    "image_encoder": _Model(_IMAGE, _EMBEDDINGS, frozenset({"perceptual", "semantic"})),
    "image_tokens": _Model({"embeddings": "float32 D"}, {"tokens": "float32 T C"}),
    "text_encoder": _Model({"input_ids": "int64 N"}, {"hidden": "float32 N C"}),
    "unet": _Model(_UNET, {"noise": "float32 L height width"}),
    "vae_decoder": _Model({"latents": "float32 L height width"}, {"images": "float32 P*height P*width 3"}),
}
_XL: Mapping[str, _Model] = {
    **_SD,
    "text_encoder": _Model(
        {"input_ids": "int64 N", "input_ids_2": "int64 N"}, {"hidden": "float32 N C", "pooled": "float32 E"}
    ),
    "unet": _Model({**_UNET, "pooled": "float32 E", "time_ids": "float32 6"}, _SD["unet"].outputs),
}
_MODELS: Mapping[Family, Mapping[str, _Model]] = {"sd": _SD, "sdxl": _XL}

COMPONENTS = tuple(_SD)
"""The models of a generator."""


def require_shapes(family: Family, components: Mapping[str, Signature], sizes: Sizes) -> None:
    """Raise ManifestError unless ``components`` take and give what those of ``family`` do.

    ``sizes`` has S (side of reference images), D (values of an embedding), A (cross-attention layers) and P (pixels
    that a latent spans).
    """
    require(set(components) == set(COMPONENTS), f"a generator has the components {', '.join(COMPONENTS)}")
    known = dict(sizes)
    for name, model in _MODELS[family].items():
        signature, fixed = components[name], dict[str, int | str]()
        _require_names(name, "takes", signature.inputs, model.inputs, frozenset())
        _require_names(name, "gives", signature.outputs, model.outputs, model.optional)
        for tensors, wanted in ((signature.inputs, model.inputs), (signature.outputs, model.outputs)):
            for tensor, spec in tensors.items():
                _require_spec(f"{name}.{tensor}", spec, wanted[tensor], known, fixed)


def _require_names(
    name: str, verb: str, found: Mapping[str, TensorSpec], wanted: Mapping[str, str], optional: frozenset[str]
) -> None:
    fits = set(wanted) - optional <= set(found) <= set(wanted)
    require(fits, f"{name} {verb} {', '.join(found)}, wanted are {', '.join(wanted)}")


def _require_spec(name: str, spec: TensorSpec, row: str, known: dict[str, int], fixed: dict[str, int | str]) -> None:
    """Compare a tensor with its row of the table; letters and words that are new enter ``known`` and ``fixed``."""
    dtype, *axes = row.split()
    wanted: list[int | str] = [BATCH]
    fits = len(spec.shape) == 1 + len(axes)
    for axis, size in zip(axes, spec.shape[1:], strict=False):
        factor, _, word = axis.rpartition("*")
        if axis.isdecimal():
            wanted.append(int(axis))
        elif word not in _FREE:
            wanted.append(known.setdefault(axis, size) if isinstance(size, int) else known.get(axis, axis))
        elif not factor:
            wanted.append(fixed.setdefault(axis, size if isinstance(size, int) else axis))
        else:
            side = fixed[word]
            wanted.append(known[factor] * side if isinstance(side, int) else f"{known[factor]}*{side}")
    wanted += axes[len(wanted) - 1 :]
    fits = fits and spec.dtype == dtype and list(spec.shape) == wanted
    require(fits, f"{name} is {spec}, wanted is {dtype} [{', '.join(map(str, wanted))}]")
