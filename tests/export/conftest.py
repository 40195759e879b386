"""Small towers of every family, with random weights everywhere and random projectors of both forms."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import nn

from declip_export.engine import export_engine
from declip_export.photos import sample_images
from declip_runtime.engine_file import EngineFile
from declip_runtime.manifest import Preprocess
from declip_runtime.scorer_manifest import ScoreSpec
from declip_training.model.declip import DeCLIP
from declip_training.model.projector import Projector
from declip_training.model.prompts import PromptSet
from declip_training.model.tower import load_clip

WIDTH = 32
VIT = {"image_size": 48, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
TIMM = {"timm_pool": "avg", "timm_proj": "linear"}
FAMILIES: dict[str, dict[str, Any]] = {
    "vit": VIT,
    "vit-quickgelu": {**VIT, "quick_gelu": True},
    "vit-average": {**VIT, "pool_type": "avg"},
    "vit-average-norm-after": {**VIT, "pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
    "vit-layerscale": {**VIT, "ls_init_value": 0.3, "patch_dropout": 0.5, "act_kwargs": {"approximate": "tanh"}},
    "vit-qk-norm": {**VIT, "qk_norm": True},
    "vit-attention-pool": {**VIT, "attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2},
    "resnet-attention-pool": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32},
    "timm-vit": {**TIMM, "timm_model_name": "test_vit", "image_size": 160, "timm_pool": "token"},
    "timm-resnet": {**TIMM, "timm_model_name": "test_resnet", "image_size": 64},
    "timm-convnext": {**TIMM, "timm_model_name": "test_convnext", "image_size": 64},
    "timm-efficientnet": {**TIMM, "timm_model_name": "test_efficientnet", "image_size": 64, "timm_proj": "mlp"},
}
REPRESENTATIVE = ("vit", "vit-attention-pool", "resnet-attention-pool", "timm-convnext")
"""Families that stand for all in the first tier where every one costs seconds; the others are marked slow."""
EACH_FAMILY = [pytest.param(f, marks=() if f in REPRESENTATIVE else pytest.mark.slow) for f in FAMILIES]
REWRITTEN = {"vit", "vit-quickgelu", "vit-average", "vit-average-norm-after", "vit-layerscale"}

PROMPTS = """
logit_scale = 20.0
[scores.quality]
kind = "quality"
pairs = [["Good photo.", "Bad photo."], ["Fine photo.", "Poor photo."], ["Great.", "Awful."]]
[scores.brightness]
kind = "degree"
pairs = [["Bright photo.", "Dark photo."]]
"""


@dataclass(frozen=True)
class Small:
    """A small model and what is needed to export it."""

    declip: DeCLIP
    preprocess: Preprocess
    specs: tuple[ScoreSpec, ...]

    def images(self, count: int = 12) -> np.ndarray[Any, Any]:
        return sample_images(self.preprocess.size, count)

    def export(self, path: Path, **options: Any) -> EngineFile:
        return export_engine(self.declip, self.preprocess, self.specs, path, semantic=True, **options)


def shake(module: nn.Module, seed: int = 0, gain: float = 2.0) -> None:
    """Random biases, norms and running statistics: initial zeros and ones would hide what is left out.

    Convolutions are multiplied by ``gain``: untrained ones shrink what they see until biases drown it.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim <= 1:
                size = 0.05 if name.endswith("bias") else 0.5
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))
            elif parameter.ndim == 4:
                parameter.mul_(gain)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.3, generator=generator)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2, generator=generator)


class _Content(pickle.Pickler):
    """Pickles tensors by their values alone, so that equal modules give equal bytes."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, torch.Tensor):
            return bytes, (repr((obj.dtype, obj.shape)).encode() + obj.detach().contiguous().numpy().tobytes(),)
        return NotImplemented


@pytest.fixture(autouse=True, scope="session")
def traced_once() -> Iterator[None]:
    """torch takes seconds to trace a module, and most tests trace one of the same few: equal ones are traced once."""
    trace, known = torch.onnx.export, {}

    def export(module: nn.Module, *arguments: Any, **options: Any) -> Any:
        content = io.BytesIO()
        _Content(content).dump((module, arguments))
        key = hashlib.sha256(content.getvalue() + repr(options).encode()).digest()
        if key not in known:
            known[key] = trace(module, *arguments, **options)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", export)
        yield


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``small(family)`` builds the model of a family, once."""
    folder = tmp_path_factory.mktemp("towers")
    prompts = folder / "prompts.toml"
    prompts.write_text(PROMPTS, encoding="utf-8")

    @functools.cache
    def build(family: str) -> Small:
        vision = dict(FAMILIES[family])
        config = {
            "embed_dim": WIDTH,
            "quick_gelu": vision.pop("quick_gelu", False),
            "vision_cfg": vision,
            "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
        }
        path = folder / f"small-{family}.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        clip, tokenizer, preprocess = load_clip(str(path), "random")
        # This tower's convolutions follow each other without a norm between: twice each would leave FP16's range.
        shake(clip.visual, gain=1.5 if family == "timm-efficientnet" else 2.0)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(1)
        perceptual = Projector(WIDTH, 48, "between").randomize(generator)
        semantic = Projector(WIDTH, 48, "before").randomize(generator)
        chosen = PromptSet.read(prompts)
        declip = DeCLIP.from_clip(clip, tokenizer, chosen, perceptual, semantic).eval()
        return Small(declip, preprocess, chosen.specs())

    return build


@pytest.fixture(scope="session")
def exported(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``exported(family)`` is its engine with FP16 storage, exported once for all processes that run the tests.

    They build the same models, as these come from a seed.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exported"
    folder.mkdir(exist_ok=True)

    @functools.cache
    def export(family: str) -> EngineFile:
        path = folder / f"{family}.engine"
        with FileLock(path.with_suffix(".lock")):
            return EngineFile.open(path) if path.is_file() else small(family).export(path)

    return export
