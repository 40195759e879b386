"""User code that mypy checks and nobody runs: the types that users see are part of the interface."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from declip_sdk import (
    DeclipError,
    DPAdapter,
    ImageError,
    Score,
    Scorer,
    Scores,
    Step,
    contact_sheet,
    read_record,
    repeat,
    save,
)


def one_image_of_every_kind(
    scorer: Scorer, data: bytes, file: BinaryIO, image: Image.Image, array: npt.NDArray[np.uint8]
) -> list[Scores]:
    return [
        scorer.score("a.jpg"),
        scorer.score(Path("a.jpg")),
        scorer.score(data),
        scorer.score(file),
        scorer.score(image),
        scorer.score(array),
    ]


def many_images(scorer: Scorer, folder: Path, stack: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    scorer.score(["a.jpg", "b.jpg"])
    scorer.score(["a.jpg", Path("b.jpg"), b"...", stack[0]])
    scorer.score(stack)
    scores: Scores = scorer.score(folder.glob("*.jpg"), on_error="record", embeddings=True)
    quality: npt.NDArray[np.float32] = scores["quality"]
    sharpness: npt.NDArray[np.float32] = scores.sharpness
    names: tuple[str, ...] = scores.names
    errors: tuple[DeclipError | None, ...] = scores.errors
    first: Score = scores[0]
    best: Scores = scores[:10]
    value: float = first.quality + first["quality"]
    rows = scores.to_dicts()
    frame = scores.to_pandas()
    print(sharpness, names, errors, best, value, rows, frame, len(scores), [s.index for s in scores])
    return np.concatenate([quality, scores.embeddings.mean(axis=1)])


def options(engine: Path) -> None:
    with Scorer(engine, backend="openvino", precision="fp32", views=5, decode="exact", channels="bgr") as scorer:
        scorer.warmup()
        text: str = scorer.backend + scorer.device + scorer.precision + scorer.description + scorer.engine.id
        identity: dict[str, str | int] = scorer.identity
        print(text, identity, scorer.manifest.scores[0].kind)
    Scorer(engine, precision="fp64")  # type: ignore[arg-type]
    Scorer(engine, "openvino")  # type: ignore[call-arg]
    scorer.score("a.jpg", on_error="ignore")  # type: ignore[arg-type]
    scorer.score(None)  # type: ignore[arg-type]


def streaming(scorer: Scorer, paths: Iterator[str]) -> None:
    for score in scorer.stream(paths):
        try:
            if score.error is not None:
                raise score.error
        except ImageError as error:
            print(score.image, error)
        vector: npt.NDArray[np.float32] = score.embedding
        print(score.index, vector)


def generating(engine: Path, look: Image.Image) -> None:
    def watch(step: Step) -> None:
        if step.index == 3:
            step.preview()[0].show()
        if step.remaining > 3600:
            step.cancel()

    with DPAdapter(engine, backend="openvino", threads=2) as adapter:
        pictures: list[Image.Image] = adapter.generate("a lighthouse", perceptual=look, steps=20, seed=1, on_step=watch)
        adapter.generate(["a", "b"], semantic=["dog.jpg", b"..."], semantic_scale={"up": {"block_0": [0.0, 1.0, 0.0]}})
        adapter.generate(perceptual="dusk.jpg", semantic=Path("dog.jpg"), perceptual_scale=0.7, seed=[1])
        adapter.generate(image="dog.jpg", images_per_prompt=4, guidance=5.0, width=512, height=768, scheduler="lcm")
        path: Path = save(pictures[0], "lighthouse.png")
        again = adapter.generate(**repeat(read_record(path), folder=path.parent))
        contact_sheet([pictures, again], ["first", "again"], ["seed 1"]).show()
        print(adapter.identity, adapter.manifest.layers, adapter.engine.id, adapter.batch_size)
        adapter.generate("a", pages=3)  # type: ignore[call-arg]
        adapter.generate(3)  # type: ignore[arg-type]
