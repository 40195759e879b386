"""A small engine, written by hand so that the runtime's tests need neither torch nor onnx, and its result by numpy."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from declip_runtime.engine_file import EngineFile
from declip_runtime.engine_writer import Content, write_engine
from declip_runtime.manifest import License, Preprocess
from declip_runtime.scorer_manifest import CalibrationCurve, ScorerManifest, ScoreSpec

SIZE, WIDTH, NAMES = 16, 8, ("quality", "sharpness", "brightness")
FLOAT, UINT8, INT8, INT64, FLOAT16 = 1, 2, 3, 7, 10
Float32 = npt.NDArray[np.float32]

MANIFEST = ScorerManifest(
    name="tiny",
    preprocess=Preprocess(SIZE),
    scores=tuple(ScoreSpec(name, "quality", (("Good photo.", "Bad photo."),)) for name in NAMES),
    embedding_dim=WIDTH,
    logit_scale=100.0,
    graphs={"fp32": "graphs/fp32.onnx"},
    license=License("Apache-2.0", "text"),
)
CALIBRATED = replace(MANIFEST.scores[0], calibration=CalibrationCurve((0.1, 0.9), (0.0, 1.0), "some data"))


# --- protobuf, the writing half


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value % 128 + 128])
        value //= 128
    return out + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(8 * field) + varint(value)


def block(field: int, content: bytes | str) -> bytes:
    data = content.encode() if isinstance(content, str) else content
    return varint(8 * field + 2) + varint(len(data)) + data


def tensor(name: str, dtype: int, dims: Sequence[int], raw: bytes) -> bytes:
    return b"".join(number(1, d) for d in dims) + number(2, dtype) + block(8, name) + block(9, raw)


def external(name: str, dims: Sequence[int], offset: int, location: str = "weights.bin") -> bytes:
    length = 2 * int(np.prod(dims))
    pairs = {"location": location, "offset": str(offset), "length": str(length)}
    data = b"".join(block(13, block(1, key) + block(2, value)) for key, value in pairs.items())
    return b"".join(number(1, d) for d in dims) + number(2, FLOAT16) + block(8, name) + data + number(14, 1)


def attribute(name: str, value: int) -> bytes:
    return block(1, name) + number(3, value) + number(20, 2)


def node(op: str, inputs: str, output: str, *attributes: bytes) -> bytes:
    parts = [block(1, i) for i in inputs.split()]
    return b"".join([*parts, block(2, output), block(4, op), *(block(5, a) for a in attributes)])


def value_info(name: str, dtype: int, dims: Sequence[int | str]) -> bytes:
    shape = b"".join(block(1, number(1, d) if isinstance(d, int) else block(2, d)) for d in dims)
    return block(1, name) + block(2, block(1, number(1, dtype) + block(2, shape)))


# --- the graph


@dataclass(frozen=True)
class Weights:
    """FP16 as stored: ``embed`` [SIZE * SIZE * 3, WIDTH], ``prompts`` [WIDTH, K]."""

    embed: npt.NDArray[np.float16]
    prompts: npt.NDArray[np.float16]

    @classmethod
    def random(cls, seed: int = 0) -> Weights:
        rng = np.random.default_rng(seed)
        embed = rng.standard_normal((SIZE * SIZE * 3, WIDTH)).astype(np.float16)
        return cls(embed, (2 * rng.standard_normal((WIDTH, len(NAMES)))).astype(np.float16))

    @classmethod
    def from_bytes(cls, content: bytes) -> Weights:
        values = np.frombuffer(content, np.float16)
        size = SIZE * SIZE * 3 * WIDTH
        return cls(values[:size].reshape(-1, WIDTH), values[size:].reshape(WIDTH, -1))

    def to_bytes(self) -> bytes:
        return self.embed.tobytes() + self.prompts.tobytes()


def graph(*, semantic: bool = False, quantised: bool = False, location: str = "weights.bin", shift: int = 0) -> bytes:
    """The ONNX head. ``quantised`` puts the pixels through 6 bits, so that its scores differ from the exact ones."""
    embed_size = 2 * SIZE * SIZE * 3 * WIDTH
    initializers = [
        external("embed16", (SIZE * SIZE * 3, WIDTH), shift, location),
        external("prompts16", (WIDTH, len(NAMES)), shift + embed_size, location),
        tensor("unit", FLOAT, (), struct.pack("<f", 1 / 255)),
        tensor("last", INT64, (1,), struct.pack("<q", 1)),
        tensor("step", FLOAT, (), struct.pack("<f", 1 / 63)),
        tensor("zero", INT8, (), b"\0"),
    ]
    nodes = [
        node("Cast", "images", "pixels", attribute("to", FLOAT)),
        node("Mul", "pixels unit", "scaled"),
        node("Flatten", "scaled", "flat", attribute("axis", 1)),
        node("Cast", "embed16", "embed", attribute("to", FLOAT)),
        node("Cast", "prompts16", "prompts", attribute("to", FLOAT)),
        node("MatMul", "coarse embed" if quantised else "flat embed", "embedding"),
        node("Mul", "embedding embedding", "squares"),
        node("ReduceSum", "squares last", "sum"),
        node("Sqrt", "sum", "norm"),
        node("Div", "embedding norm", "perceptual"),
        node("MatMul", "perceptual prompts", "logits"),
        node("Sigmoid", "logits", "scores"),
    ]
    if quantised:
        nodes[3:3] = [
            node("QuantizeLinear", "flat step zero", "levels"),
            node("DequantizeLinear", "levels step zero", "coarse"),
        ]
    outputs = [value_info("scores", FLOAT, ("B", len(NAMES))), value_info("perceptual", FLOAT, ("B", WIDTH))]
    if semantic:
        nodes.append(node("Neg", "perceptual", "semantic"))
        outputs.append(value_info("semantic", FLOAT, ("B", WIDTH)))
    body = [block(1, n) for n in nodes] + [block(2, "tiny")] + [block(5, i) for i in initializers]
    body += [block(11, value_info("images", UINT8, ("B", SIZE, SIZE, 3)))] + [block(12, o) for o in outputs]
    return number(1, 8) + block(7, b"".join(body)) + block(8, number(2, 18))


def expected(images: npt.NDArray[np.uint8], weights: Weights) -> tuple[Float32, Float32]:
    """Scores and embeddings as the fp32 graph should give them, in float64."""
    flat = images.reshape(len(images), -1) / 255.0
    embedding = flat @ weights.embed.astype(np.float64)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    scores = 1.0 / (1.0 + np.exp(-embedding @ weights.prompts.astype(np.float64)))
    return scores.astype(np.float32), embedding.astype(np.float32)


def pictures(count: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def write(
    path: Path,
    *,
    seed: int = 0,
    semantic: bool = False,
    fp16: bool = False,
    int8: bool = False,
    manifest: ScorerManifest = MANIFEST,
) -> EngineFile:
    """``fp16`` adds a graph of that name, which is the fp32 one: enough to be chosen, built and hashed."""
    entries: dict[str, Content] = {"graphs/fp32.onnx": graph(semantic=semantic)}
    if fp16:
        entries["graphs/fp16.onnx"] = graph(semantic=semantic)
    if int8:
        entries["graphs/int8.onnx"] = graph(semantic=semantic, quantised=True)
    entries["weights.bin"] = Weights.random(seed).to_bytes()
    graphs = {Path(name).stem: name for name in entries if name.startswith("graphs/")}
    return write_engine(path, replace(manifest, graphs=graphs, has_semantic=semantic), entries)
