"""From diffusers' folders, an adapter and a checkpoint to a picture, by the command line, against diffusers itself."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export.generator import tiny
from export.generator.conftest import _projectors

from declip_export.generator.adapter import attach, load_adapter
from declip_export.generator.base import load_base
from declip_export.generator.embedder import load_embedder
from declip_export.generator.library import library, quiet
from declip_runtime.images import open_image
from declip_runtime.preprocess import prepare
from declip_sdk import DPAdapter, read_record
from declip_sdk.cli import run

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
LOOK, CONTENT = PHOTOS / "cat.jpg", PHOTOS / "coffee.jpg"
TOWER = {
    "embed_dim": tiny.EMBEDDING,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(params=["sd", pytest.param("sdxl", marks=pytest.mark.slow)])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_picture_is_what_diffusers_makes_of_the_same(family: str, tmp_path: Path, capfd: Any) -> None:
    pipeline = tiny.pipeline(tmp_path / "source", sdxl=family == "sdxl")
    with quiet():
        pipeline.save_pretrained(tmp_path / "base")
    adapter = tiny.save_adapter(tiny.adapter_state(pipeline.unet), tmp_path / "adapter.safetensors")
    (tmp_path / "tower.json").write_text(json.dumps(TOWER), encoding="utf-8")
    checkpoint = _projectors(tmp_path / "tower.json", tmp_path / "declip.safetensors")
    made = ["--base", str(tmp_path / "base"), "--adapter", str(adapter), "--checkpoint", str(checkpoint)]
    engine = tmp_path / "dp.engine"
    assert run(["export-generator", *made, "--no-fp16", "--no-parity", "-o", str(engine)]) == 0
    assert "dp.engine" in capfd.readouterr().out

    steered = ["--perceptual", str(LOOK), "--perceptual-scale", "0.7", "--semantic", str(CONTENT)]
    steered += ["--semantic-scale", '{"down": 0.4, "up": {"block_1": [0.9, 0.2, 0.5]}}' if family == "sd" else "0.4"]
    drawn = ["--steps", "5", "--guidance", "4", "--seed", "3", "--scheduler", "ddim", "--precision", "fp32"]
    texts = ["-p", "a red house", "--negative", "blurry"]
    output = tmp_path / "house.png"
    assert run(["generate", str(engine), *texts, *steered, *drawn, "-o", str(output)]) == 0, capfd.readouterr().err
    assert "seed 3" in capfd.readouterr().out

    wanted = theirs(tmp_path / "base", adapter, checkpoint, family, read_record(output)["height"])
    assert wanted.std() > 0.05, "a flat picture would prove nothing"
    with DPAdapter(engine, precision="fp32") as ours:
        again = ours.generate("a red house", seed=3, steps=5, guidance=4.0, scheduler="ddim")[0]
    found = np.asarray(open_image(output), np.float32) / 255
    assert np.abs(found - wanted).max() < 0.5 / 255 + 1e-3
    assert np.abs(np.asarray(again, np.float32) / 255 - wanted).max() > 0.02, "the images must have acted"

    example = runpy.run_path(str(PHOTOS.parent / "look_and_content.py"))
    example["main"](str(engine), str(LOOK), "a red house", str(tmp_path / "pictures"))
    pictures = [Path(line) for line in capfd.readouterr().out.splitlines()]
    assert [path.name for path in pictures] == ["look-0.3.png", "look-0.6.png", "look-0.9.png"]
    assert len({path.read_bytes() for path in pictures}) == 3
    assert {read_record(path)["seed"] for path in pictures} == {1}


def theirs(base: Path, adapter: Path, checkpoint: Path, family: str, side: int) -> Any:
    """The same picture by diffusers' own pipeline in FP32, with the weights as the engine stores them."""
    loaded = load_base(base, dtype="float16")
    attach(load_adapter(adapter, loaded), loaded, 2)
    pipeline = loaded.pipeline.to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    embedder = load_embedder(None, None, checkpoint)
    encoder = embedder.encoder.float()
    with torch.no_grad():
        look, content = (
            encoder(torch.from_numpy(prepare(open_image(path), embedder.preprocess))) for path in (LOOK, CONTENT)
        )
    embeddings = [torch.stack([torch.zeros_like(e), e]) for e in (look[1], content[2])]
    by_block = {"down": 0.4, "up": {"block_1": [0.9, 0.2, 0.5]}}
    pipeline.set_ip_adapter_scale([0.7, by_block if family == "sd" else 0.4])
    pipeline.scheduler = library("diffusers").DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    picture = pipeline(
        "a red house",
        negative_prompt="blurry",
        ip_adapter_image_embeds=embeddings,
        num_inference_steps=5,
        guidance_scale=4.0,
        generator=torch.Generator("cpu").manual_seed(3),
        height=side,
        width=side,
        output_type="np",
    )
    return picture.images[0]
