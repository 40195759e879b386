"""A generator without a model, a judge of a few thousand weights, and conditions to generate by."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from PIL import Image
from safetensors.numpy import load_file

from declip_runtime.engine_file import EngineFile
from declip_runtime.engine_writer import Content, write_engine
from declip_runtime.generator_manifest import GeneratorManifest, TextInput
from declip_runtime.manifest import Preprocess
from declip_runtime.scorer_manifest import ScoreKind, ScoreSpec
from declip_runtime.signature import Range, Signature, TensorSpec
from declip_training.model.checkpoint import ProjectorCheckpoint, save_projectors, tower_sha256
from declip_training.model.projector import Projector
from declip_training.model.tower import load_clip

from .command import TINY

SIDE, DIM, TOKENS, TEXT, HIDDEN, LATENT, LAYERS = 16, 12, 4, 77, 8, 4, ("down_blocks.0.attentions.0.attn2",)
WIDTH = 32
CONDITIONS: tuple[dict[str, str], ...] = (
    {"name": "night", "perceptual_image": "a.png", "semantic_text": "a red house"},
    {"name": "fog", "perceptual_image": "b.png", "semantic_text": "a dog by the sea"},
    {"name": "dusk", "perceptual_image": "sub/c.png", "semantic_text": "two lamps"},
    {"name": "dog", "semantic_image": "a.png", "perceptual_text": "dark and blurry"},
    {"name": "sea", "semantic_image": "b.png", "perceptual_text": "bright colours"},
    {"name": "lamp", "semantic_image": "sub/c.png", "perceptual_text": "much contrast"},
    {"name": "both", "perceptual_image": "a.png", "semantic_image": "b.png"},
)


@dataclass(frozen=True)
class World:
    """Paths of everything that the command needs; ``conditions`` is a JSON Lines file beside its images."""

    folder: Path
    engine: Path
    tower: Path
    checkpoint: Path
    conditions: Path

    def arguments(self, *more: str | Path) -> list[str]:
        """The command's, without an output."""
        judge = ["--checkpoint", self.checkpoint, "--tower", self.tower, "--pretrained", "random"]
        fakes = ["--backend", "fake", "--scorer-backend", "fake", "--scorer", TINY, "--judge-device", "cpu"]
        return [str(a) for a in ("evaluate-generation", self.engine, self.conditions, *judge, *fakes, *more)]


def build(folder: Path) -> World:
    """Everything, in ``folder``."""
    (folder / "sub").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "b.png", "sub/c.png")):
        save_picture(folder / name, seed)
    tower = _tower(folder)
    engine, checkpoint = folder / "tiny-generator.engine", folder / "declip.safetensors"
    write_generator(engine)
    write_checkpoint(checkpoint, tower)
    return World(folder, engine, tower, checkpoint, write_conditions(folder / "conditions.jsonl", CONDITIONS))


def save_picture(path: Path, seed: int) -> Path:
    """A smooth random picture."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(small).resize((80, 60), Image.Resampling.BICUBIC).save(path)
    return path


def write_conditions(path: Path, rows: Any) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def write_checkpoint(path: Path, tower: Path, *, seed: int = 0, nan: bool = False) -> ProjectorCheckpoint:
    """Random projectors on the random tower; with ``nan`` one of their weights is none."""
    clip, _ = _clip(tower)
    generator = torch.Generator().manual_seed(seed)
    perceptual = Projector(WIDTH, 48).randomize(generator, 2.0)
    semantic = Projector(WIDTH, 48).randomize(generator, 2.0)
    if nan:
        with torch.no_grad():
            perceptual.down.weight[0, 0] = float("nan")
    checkpoint = ProjectorCheckpoint(tower.stem, "random", tower_sha256(clip.visual), perceptual, semantic)
    return replace(checkpoint, sha256=save_projectors(path, checkpoint))


def embed(world: World, path: Path, space: str) -> Any:
    """What the judge makes of an image, by open_clip's own transform and tower, and the projector by numpy."""
    clip, _ = _clip(world.tower)
    import open_clip  # after load_clip, which makes a torchvision importable that does not fit torch

    transform = open_clip.image_transform(48, is_train=False)
    with Image.open(path) as image, torch.no_grad():
        x = clip.encode_image(transform(image.convert("RGB"))[None]).numpy()[0].astype(np.float64)
    tensors = load_file(world.checkpoint)
    up = tensors[f"{space}.up.weight"] @ x + tensors[f"{space}.up.bias"]
    y = x + tensors[f"{space}.down.weight"] @ (up / (1 + np.exp(-up)))
    return y / np.linalg.norm(y)


def embed_words(world: World, text: str) -> Any:
    """What the judge makes of a text."""
    clip, tokenizer = _clip(world.tower)
    with torch.no_grad():
        x = clip.encode_text(tokenizer([text])).numpy()[0].astype(np.float64)
    return x / np.linalg.norm(x)


def write_scorer(path: Path, kinds: dict[str, ScoreKind]) -> EngineFile:
    """The tiny scorer engine with other scores."""
    tiny = EngineFile.open(TINY)
    entries = {entry: tiny.read(entry) for entry in tiny.manifest.entries}
    specs = tuple(ScoreSpec(name, kind, (("Good photo.", "Bad photo."),)) for name, kind in kinds.items())
    return write_engine(path, replace(tiny.scorer, scores=specs, plans=()), entries)


def write_generator(path: Path, **changes: Any) -> EngineFile:
    """A generator engine for the fake backend, which looks at no graph."""
    signatures = _signatures(changes.pop("conditions", Range(1, 1, 3)))
    graphs = {f"{name}-fp32": f"graphs/{name}-fp32.onnx" for name in signatures}
    options: dict[str, Any] = {
        "name": "tiny-generator",
        "graphs": graphs,
        "family": "sd",
        "components": signatures,
        "preprocess": Preprocess(SIDE),
        "embedding_dim": DIM,
        "layers": LAYERS,
        "text_inputs": {"input_ids": TextInput("tokenizers/input_ids.json", 0)},
        "scheduler": {"_class_name": "DDIMScheduler", "clip_sample": False, "num_train_timesteps": 100},
        "height": 64,
        "width": 64,
        "steps": 2,
        "guidance": 5.0,
    }
    entries: dict[str, Content] = {"weights.bin": b"\0" * 64, "tokenizers/input_ids.json": _tokenizer()}
    entries |= dict.fromkeys(graphs.values(), b"no graph")
    return write_engine(path, GeneratorManifest(**{**options, **changes}), entries)


@functools.cache
def _clip(tower: Path) -> tuple[Any, Any]:
    return load_clip(str(tower), "random")[:2]


def _signatures(conditions: Range) -> dict[str, Signature]:
    def spec(dtype: Any, *shape: int | str) -> TensorSpec:
        return TensorSpec(dtype, ("batch", *shape))

    batch, side = {"batch": Range(1, 2, 8)}, {"height": Range(8, 8, 16), "width": Range(8, 8, 16)}
    embeddings = {name: spec("float32", DIM) for name in ("identity", "perceptual", "semantic")}
    latents = spec("float32", LATENT, "height", "width")
    unet = {
        "sample": latents,
        "timestep": spec("float32"),
        "text": spec("float32", TEXT, HIDDEN),
        "image_tokens": spec("float32", "conditions", "tokens", HIDDEN),
        "scale": spec("float32", "conditions", len(LAYERS)),
    }
    tokens = Range(TOKENS, TOKENS, 4 * TOKENS)
    return {
        "image_encoder": Signature({"images": spec("uint8", SIDE, SIDE, 3)}, embeddings, batch),
        "image_tokens": Signature(
            {"embeddings": spec("float32", DIM)}, {"tokens": spec("float32", TOKENS, HIDDEN)}, batch
        ),
        "text_encoder": Signature({"input_ids": spec("int64", TEXT)}, {"hidden": spec("float32", TEXT, HIDDEN)}, batch),
        "unet": Signature(unet, {"noise": latents}, {**batch, **side, "conditions": conditions, "tokens": tokens}),
        "vae_decoder": Signature(
            {"latents": latents}, {"images": spec("float32", "8*height", "8*width", 3)}, {**batch, **side}
        ),
    }


def _tokenizer() -> bytes:
    texts = [text for row in CONDITIONS for column, text in row.items() if column.endswith("text")]
    words = sorted({word for text in texts for word in text.split()})
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<start>", "<end>", "<unknown>", *words])}
    tokenizer: Any = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return str(tokenizer.to_str()).encode()


def _tower(folder: Path) -> Path:
    config = {
        "embed_dim": WIDTH,
        "vision_cfg": {"image_size": 48, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    path = folder / "tiny-judge.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path
