"""The same generation by our sampler and by diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from declip_runtime.generation.conditions import open_condition
from declip_runtime.generation.progress import OnStep, Progress
from declip_runtime.generation.request import OUTPUTS, make_request
from declip_runtime.generation.sampler import Sampler
from declip_runtime.generator_manifest import GeneratorManifest
from declip_runtime.preprocess import prepare

from .tiny_models import DIM, Models

# Spelled out a second time, as diffusers' documentation does it.
DIFFUSERS: dict[str | None, tuple[Any, dict[str, Any]]] = {
    None: (diffusers.PNDMScheduler, {}),
    "ddim": (diffusers.DDIMScheduler, {}),
    "ddim-trailing": (diffusers.DDIMScheduler, {"timestep_spacing": "trailing"}),
    "ddpm": (diffusers.DDPMScheduler, {}),
    "pndm": (diffusers.PNDMScheduler, {}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler-karras": (diffusers.EulerDiscreteScheduler, {"use_karras_sigmas": True}),
    "euler-trailing": (diffusers.EulerDiscreteScheduler, {"timestep_spacing": "trailing"}),
    "euler-a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "dpm++": (diffusers.DPMSolverMultistepScheduler, {}),
    "dpm++-karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "dpm++-sde": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++-sde-karras": (
        diffusers.DPMSolverMultistepScheduler,
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
    "unipc-karras": (diffusers.UniPCMultistepScheduler, {"use_karras_sigmas": True}),
    "lcm": (diffusers.LCMScheduler, {}),
    "tcd": (diffusers.TCDScheduler, {}),
}


def ours(
    models: Models, on_step: OnStep | None = None, manifest: GeneratorManifest | None = None, **arguments: Any
) -> np.ndarray[Any, Any]:
    """Pixels float32 [B, height, width, 3]."""
    manifest = manifest or models.manifest
    request = make_request(manifest, **arguments)
    opened = [open_condition(condition, manifest.preprocess) for condition in request.conditions]
    sampler = Sampler(manifest, models.components.__getitem__, models.files.__getitem__)
    sampler.prepare(request)
    return np.stack(list(sampler.run(request, opened, Progress(on_step))))


def theirs(
    models: Models,
    seeds: Sequence[int],
    conditions: Mapping[str, Sequence[Image.Image]] | None = None,
    scales: Sequence[Any] = (),
    scheduler: str | None = None,
    guidance: float = 5.0,
    **arguments: Any,
) -> np.ndarray[Any, Any]:
    conditions = conditions or {}
    pipeline = models.with_adapters(len(conditions))
    kind, changes = DIFFUSERS[scheduler]
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **changes)
    if conditions:
        pipeline.set_ip_adapter_scale(list(scales) or [1.0] * len(conditions))
        embeddings = [embedded(models, kind, images, guidance > 1) for kind, images in conditions.items()]
        arguments["ip_adapter_image_embeds"] = embeddings
    pixels = pipeline(
        num_inference_steps=4,
        guidance_scale=guidance,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        output_type="np",
        **arguments,
    ).images
    return np.asarray(pixels)


def embedded(models: Models, kind: str, images: Sequence[Image.Image], guided: bool) -> torch.Tensor:
    pixels = np.concatenate([prepare(image, models.manifest.preprocess) for image in images])
    found = torch.from_numpy(models.components["image_encoder"]({"images": pixels})[OUTPUTS[kind]])[None]
    assert found.shape == (1, len(images), DIM)
    return torch.cat([torch.zeros_like(found), found]) if guided else found


def close(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> None:
    assert found.shape == wanted.shape
    assert found.std() > 0.05  # a picture of one colour would equal another of it
    np.testing.assert_allclose(found, wanted, atol=1e-3, rtol=0)
