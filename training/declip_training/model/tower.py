"""A frozen CLIP from open_clip: image tower, text tower, tokenizer, and how pictures are prepared for it."""

from __future__ import annotations

import difflib
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from declip_runtime.errors import CheckpointError, ExportError, ManifestError
from declip_runtime.manifest import Preprocess

from .torchvision_ops import ensure_importable

Tokenizer = Callable[[Sequence[str]], Tensor]
RANDOM = "random"


def load_clip(tower: str, pretrained: str | Path, *, seed: int = 0) -> tuple[nn.Module, Tokenizer, Preprocess]:
    """Load a CLIP in FP32, in evaluation mode.

    ``tower`` is an open_clip model name or the path of a model configuration (JSON of open_clip's form).
    ``pretrained`` is an open_clip tag, the path of a checkpoint, or ``"random"`` (initialised from ``seed``, the
    caller's random state untouched). Where a tag was trained with QuickGELU the tower uses it.

    Raises ExportError for an unknown tower or tag, for weights that cannot be downloaded and for a preprocessing that
    engines do not describe; CheckpointError for a checkpoint that is damaged or belongs to another tower.
    """
    ensure_importable()
    import open_clip

    from . import nano_tower  # noqa: F401  # makes the tower known to timm

    name = _register(Path(tower)) if tower.endswith(".json") else _known(tower)
    try:
        tokenizer = open_clip.get_tokenizer(name)
    except (ImportError, OSError, ValueError) as error:
        raise ExportError(
            f"the tokenizer of {name} cannot be loaded: {error}. Install transformers (pip install transformers) and "
            "run once with a network connection, so that the tokenizer is downloaded."
        ) from error
    if pretrained == RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _create(name, pretrained_text=False)
    elif Path(pretrained).is_file():
        model = _from_file(name, Path(pretrained))
    else:
        model = _from_tag(name, str(pretrained))
    return model.eval(), tokenizer, preprocess_of(model, name)


def preprocess_of(model: nn.Module, name: str) -> Preprocess:
    """How open_clip's evaluation transform prepares pictures for ``model``; ExportError if an engine cannot say it."""
    import open_clip

    config = open_clip.get_model_preprocess_cfg(model)
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ExportError(f"{name} takes {width}x{height} pixels. Choose a tower with a square input.")
    try:
        return Preprocess(
            size=height,
            interpolation=config.get("interpolation") or "bicubic",
            resize_mode=config.get("resize_mode") or "shortest",
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )
    except ManifestError as error:
        raise ExportError(
            f"{name} prepares pictures with {config.get('resize_mode')!r} resizing, {config.get('interpolation')!r} "
            "interpolation. Choose a tower whose shorter side is resized (bicubic or bilinear), as CLIP's is."
        ) from error


def image_features(visual: nn.Module, images: Tensor) -> Tensor:
    """Embedding float [B, D], not normalised, of normalised images [B, 3, S, S]; towers that add tokens included."""
    out = visual(images)
    features: Tensor = out[0] if isinstance(out, tuple) else out
    return features


def _create(name: str, **options: Any) -> nn.Module:
    import open_clip

    model: nn.Module = open_clip.create_model(name, precision="fp32", **options)
    return model


def _from_tag(name: str, tag: str) -> nn.Module:
    import open_clip

    entry = open_clip.get_pretrained_cfg(name, tag)
    if not entry:
        tags = open_clip.list_pretrained_tags_by_model(name)
        listed = ", ".join(tags[:8]) + (", ..." if len(tags) > 8 else "") or "none"
        raise ExportError(
            f"{tag!r} is neither a file nor a pretrained tag of {name}. Tags: {listed}; or give a checkpoint's path."
        )
    try:
        # open_clip only warns where a tag was trained with QuickGELU and the tower's name does not say so.
        quick = bool(entry.get("quick_gelu"))
        return _create(name, pretrained=tag, force_quick_gelu=quick, require_pretrained=True)
    except (RuntimeError, OSError, ValueError) as error:
        raise ExportError(
            f"the weights {tag!r} of {name} could not be downloaded. Check the network, or download them on "
            "another machine and give their path as --pretrained PATH."
        ) from error


def _from_file(name: str, path: Path) -> nn.Module:
    from safetensors import SafetensorError

    try:
        return _create(name, pretrained=str(path), require_pretrained=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}. Give a state dict saved as .safetensors or by torch.save."
        ) from error
    except (RuntimeError, KeyError, AttributeError, TypeError, StopIteration) as error:
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"{path} does not hold the weights of {name}: {' '.join(reason[:2])[:300]} "
            "Name the tower that the checkpoint was made with."
        ) from error


def _register(path: Path) -> str:
    """Make a custom configuration known to open_clip under the file's stem."""
    import open_clip

    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be read as a model configuration: {error}. Give a JSON file.") from error
    if not isinstance(config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
        raise ExportError(f"{path} is not a model configuration. It needs embed_dim, vision_cfg and text_cfg.")
    known = open_clip.get_model_config(path.stem)
    if known is None:
        open_clip.add_model_config(path)
    elif known != config:
        raise ExportError(f"another tower is already called {path.stem}. Rename {path.name}.")
    return path.stem


def _known(tower: str) -> str:
    import open_clip

    names = open_clip.list_models()
    if tower not in names:
        close = difflib.get_close_matches(tower, names, n=3) or ["ViT-B-32", "ViT-B-16", "ViT-L-14"]
        raise ExportError(
            f"open_clip has no tower {tower!r}. Close: {', '.join(close)}; or give a .json configuration."
        )
    return tower
