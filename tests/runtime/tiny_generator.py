"""A small generator engine whose models are a few additions, written by hand, and their results by numpy."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from declip_runtime.engine_file import EngineFile
from declip_runtime.engine_writer import Content, write_engine
from declip_runtime.generator_manifest import GeneratorManifest, TextInput
from declip_runtime.manifest import Preprocess
from declip_runtime.signature import Range, Signature, TensorSpec

from .tiny_engine import FLOAT, INT64, SIZE, UINT8, attribute, block, node, number, tensor, value_info

DIM, TOKENS, CHANNELS, TEXT, LAYERS = SIZE * SIZE * 3, 2, 4, 77, ("down.attn2", "up.attn2", "mid.attn2")
WIDTH = DIM // TOKENS
BATCH_ONLY = {"batch": Range(1, 2, 8)}
LATENT = {"height": Range(2, 4, 8), "width": Range(2, 4, 8)}
_TYPES = {"uint8": UINT8, "int64": INT64, "float32": FLOAT}


def spec(dtype: Any, *shape: int | str) -> TensorSpec:
    return TensorSpec(dtype, ("batch", *shape))


SIGNATURES = {
    "image_encoder": Signature(
        {"images": spec("uint8", SIZE, SIZE, 3)},
        {name: spec("float32", DIM) for name in ("identity", "perceptual", "semantic")},
        BATCH_ONLY,
    ),
    "image_tokens": Signature(
        {"embeddings": spec("float32", DIM)}, {"tokens": spec("float32", TOKENS, WIDTH)}, BATCH_ONLY
    ),
    "text_encoder": Signature({"input_ids": spec("int64", TEXT)}, {"hidden": spec("float32", TEXT, WIDTH)}, BATCH_ONLY),
    "unet": Signature(
        {
            "sample": spec("float32", CHANNELS, "height", "width"),
            "timestep": spec("float32"),
            "text": spec("float32", TEXT, WIDTH),
            "image_tokens": spec("float32", "conditions", "tokens", WIDTH),
            "scale": spec("float32", "conditions", len(LAYERS)),
        },
        {"noise": spec("float32", CHANNELS, "height", "width")},
        {**BATCH_ONLY, **LATENT, "conditions": Range(1, 1, 2), "tokens": Range(TOKENS, TOKENS, 4 * TOKENS)},
    ),
    "vae_decoder": Signature(
        {"latents": spec("float32", CHANNELS, "height", "width")},
        {"images": spec("float32", "8*height", "8*width", 3)},
        {**BATCH_ONLY, **LATENT},
    ),
}

MANIFEST = GeneratorManifest(
    name="tiny-generator",
    graphs={f"{name}-fp32": f"graphs/{name}-fp32.onnx" for name in SIGNATURES},
    family="sd",
    components=SIGNATURES,
    preprocess=Preprocess(SIZE),
    embedding_dim=DIM,
    layers=LAYERS,
    text_inputs={"input_ids": TextInput("tokenizers/input_ids.json", 0)},
    scheduler={"_class_name": "DDIMScheduler"},
    height=32,
    width=32,
)
_RAMP = np.linspace(0.0, 2.0, WIDTH, dtype=np.float32)


def compute(component: str, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.float32]]:
    """What the graphs of ``component`` compute."""
    if component == "image_encoder":
        flat = inputs["images"].reshape(len(inputs["images"]), -1).astype(np.float32)
        return {"identity": flat, "perceptual": flat * np.float32(2), "semantic": -flat}
    if component == "image_tokens":
        return {"tokens": inputs["embeddings"].reshape(-1, TOKENS, WIDTH) * np.float32(2)}
    if component == "text_encoder":
        return {"hidden": inputs["input_ids"].astype(np.float32)[:, :, None] * _RAMP}
    if component == "unet":
        means = inputs["text"].mean(axis=(1, 2)) + inputs["image_tokens"].mean(axis=(1, 2, 3))
        added = inputs["timestep"] + inputs["scale"].sum(axis=(1, 2)) + means
        return {"noise": inputs["sample"] + added[:, None, None, None]}
    pixels = inputs["latents"][:, :3].transpose(0, 2, 3, 1)
    return {"images": pixels.repeat(8, axis=1).repeat(8, axis=2)}


def _nodes(component: str) -> list[bytes]:
    if component == "image_encoder":
        return [
            node("Cast", "images", "pixels", attribute("to", FLOAT)),
            node("Flatten", "pixels", "flat", attribute("axis", 1)),
            node("Identity", "flat", "identity"),
            node("Mul", "flat two", "perceptual"),
            node("Neg", "flat", "semantic"),
        ]
    if component == "image_tokens":
        return [node("Reshape", "embeddings shape", "split"), node("Mul", "split two", "tokens")]
    if component == "text_encoder":
        return [
            node("Cast", "input_ids", "ids", attribute("to", FLOAT)),
            node("Unsqueeze", "ids last", "column"),
            node("Mul", "column ramp", "hidden"),
        ]
    if component == "unet":
        return [
            node("ReduceSum", "scale inner", "summed", attribute("keepdims", 0)),
            node("ReduceMean", "text inner", "words", attribute("keepdims", 0)),
            node("ReduceMean", "image_tokens axes", "looks", attribute("keepdims", 0)),
            node("Add", "timestep summed", "first"),
            node("Add", "first words", "second"),
            node("Add", "second looks", "added"),
            node("Unsqueeze", "added axes", "wide"),
            node("Add", "sample wide", "noise"),
        ]
    return [
        node("Gather", "latents colours", "three", attribute("axis", 1)),
        node("Resize", "three nothing factors", "large"),
        block(1, "large") + block(2, "images") + block(4, "Transpose") + block(5, _PERMUTATION),
    ]


_PERMUTATION = block(1, "perm") + b"".join(number(8, axis) for axis in (0, 2, 3, 1)) + number(20, 7)


def graph(component: str) -> bytes:
    """The ONNX head of a component, which needs no weights."""
    signature = SIGNATURES[component]
    constants = {
        "two": tensor("two", FLOAT, (), struct.pack("<f", 2.0)),
        "ramp": tensor("ramp", FLOAT, (WIDTH,), _RAMP.tobytes()),
        "last": tensor("last", INT64, (1,), struct.pack("<q", 2)),
        "colours": tensor("colours", INT64, (3,), struct.pack("<3q", 0, 1, 2)),
        "shape": tensor("shape", INT64, (3,), struct.pack("<3q", -1, TOKENS, WIDTH)),
        "inner": tensor("inner", INT64, (2,), struct.pack("<2q", 1, 2)),
        "axes": tensor("axes", INT64, (3,), struct.pack("<3q", 1, 2, 3)),
        "nothing": tensor("nothing", FLOAT, (0,), b""),
        "factors": tensor("factors", FLOAT, (4,), struct.pack("<4f", 1, 1, 8, 8)),
    }
    nodes = _nodes(component)
    used = [content for name, content in constants.items() if any(block(1, name) in n for n in nodes)]
    body = [block(1, n) for n in nodes] + [block(2, component)] + [block(5, c) for c in used]
    for field, specs in ((11, signature.inputs), (12, signature.outputs)):
        body += [block(field, value_info(n, _TYPES[s.dtype], [str(d) if isinstance(d, str) else d for d in s.shape]))
                 for n, s in specs.items()]  # fmt: skip
    return number(1, 8) + block(7, b"".join(body)) + block(8, number(2, 18))


def inputs(component: str, seed: int = 0, **sizes: int) -> dict[str, npt.NDArray[Any]]:
    """Random inputs of these free sizes; 2 where none is given."""
    signature, random = SIGNATURES[component], np.random.default_rng(seed)
    found = {name: sizes.get(name, 2) for name in signature.free}
    made: dict[str, npt.NDArray[Any]] = {}
    for name, wanted in signature.inputs.items():
        shape = wanted.sized(found)
        floats = random.standard_normal(shape).astype(np.float32)
        made[name] = floats if wanted.dtype == "float32" else random.integers(0, 256, shape).astype(wanted.dtype)
    return made


def write(path: Path, *, fp16: bool = False, manifest: GeneratorManifest = MANIFEST) -> EngineFile:
    """``fp16`` adds a second graph of each component, which is the first: enough to be chosen, built and hashed."""
    entries: dict[str, Content] = {"weights.bin": b"\0" * 64, "tokenizers/input_ids.json": b"{}"}
    graphs: dict[str, str] = {}
    for component in SIGNATURES:
        for kind in ("fp32", "fp16")[: 1 + fp16]:
            graphs[f"{component}-{kind}"] = f"graphs/{component}-{kind}.onnx"
            entries[f"graphs/{component}-{kind}.onnx"] = graph(component)
    return write_engine(path, replace(manifest, graphs=graphs), entries)
