"""The public interface, written out: whoever changes it changes this file too, and knows that programs depend on it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

import declip_sdk
from declip_sdk import DPAdapter, Score, Scorer, Scores, Step, contact_sheet, read_record, repeat, save

NAMES = """
    BackendError BackendExecutionError BackendUnavailableError BackendWarning CacheError CacheWarning CheckpointError
    DPAdapter DeclipError DeviceMemoryError EngineCorruptError EngineError EngineNotFoundError EngineTruncatedError
    EngineVersionError ExportError GenerationCancelled ImageDecodeError ImageError ImageNotFoundError ImageTooLargeError
    InvalidArrayError ManifestError NotAnEngineError PrecisionError PromptWarning Score Scorer ScorerStateError Scores
    Step TrainingError UsageError __version__ contact_sheet read_record repeat save
"""

ATTRIBUTES = {
    Scorer: """
        backend batch_size close description device engine identity manifest names precision score stream warmup
    """,
    Scores: "embeddings errors images names to_dicts to_pandas",
    Score: "embedding error image index names to_dict values",
    DPAdapter: "backend batch_size close device engine generate identity manifest precision",
    Step: "cancel index pictures preview rate remaining seconds steps",
}

SIGNATURES: dict[Callable[..., Any], str] = {
    Scorer.__init__: """(
        self,
        engine: 'str | os.PathLike[str] | None' = None,
        *,
        backend: 'str' = 'auto',
        device: 'str | None' = None,
        precision: 'Precision' = 'auto',
        batch_size: 'int | None' = None,
        threads: 'int | None' = None,
        decode: 'Decode' = 'fast',
        views: 'int' = 1,
        channels: 'Channels' = 'rgb',
        max_pixels: 'int' = 250000000,
        cache_dir: 'str | os.PathLike[str] | None' = None,
        verify: 'bool' = False
    ) -> 'None'""",
    Scorer.score: """(
        self,
        images: 'Images',
        *,
        on_error: 'OnError' = 'raise',
        embeddings: 'bool' = False
    ) -> 'Scores'""",
    Scorer.stream: """(
        self,
        images: 'Images',
        *,
        on_error: 'OnError' = 'record',
        embeddings: 'bool' = False
    ) -> 'Generator[Score, None, None]'""",
    Scorer.warmup: "(self) -> 'None'",
    Scorer.close: "(self) -> 'None'",
    Scores.to_dicts: "(self) -> 'list[dict[str, Any]]'",
    Scores.to_pandas: "(self) -> 'pandas.DataFrame'",
    Score.to_dict: "(self) -> 'dict[str, Any]'",
    DPAdapter.__init__: """(
        self,
        engine: 'str | os.PathLike[str]',
        *,
        backend: 'str' = 'auto',
        device: 'str | None' = None,
        precision: 'Precision' = 'auto',
        threads: 'int | None' = None,
        cache_dir: 'str | os.PathLike[str] | None' = None,
        verify: 'bool' = False
    ) -> 'None'""",
    DPAdapter.generate: """(
        self,
        prompt: 'str | Sequence[str]' = '',
        *,
        negative_prompt: 'str | Sequence[str]' = '',
        perceptual: 'References' = None,
        semantic: 'References' = None,
        image: 'References' = None,
        perceptual_scale: 'Scale' = 1.0,
        semantic_scale: 'Scale' = 1.0,
        image_scale: 'Scale' = 1.0,
        steps: 'int | None' = None,
        guidance: 'float | None' = None,
        width: 'int | None' = None,
        height: 'int | None' = None,
        seed: 'int | Sequence[int] | None' = None,
        images_per_prompt: 'int' = 1,
        scheduler: 'str | None' = None,
        on_step: 'OnStep | None' = None
    ) -> 'list[Image.Image]'""",
    DPAdapter.close: "(self) -> 'None'",
    Step.cancel: "(self) -> 'None'",
    Step.preview: "(self) -> 'list[Image.Image]'",
    save: "(image: 'Image.Image', path: 'str | os.PathLike[str]') -> 'Path'",
    read_record: "(source: 'str | os.PathLike[str] | Image.Image') -> 'Record'",
    repeat: """(
        record: 'Mapping[str, Any]',
        *,
        folder: 'str | os.PathLike[str] | None' = None,
        perceptual: 'References' = None,
        semantic: 'References' = None,
        image: 'References' = None
    ) -> 'dict[str, Any]'""",
    contact_sheet: """(
        pictures: 'Sequence[Sequence[Image.Image | None]]',
        rows: 'Sequence[str]',
        columns: 'Sequence[str]',
        *,
        title: 'str' = '',
        cell: 'int' = 256,
        font: 'str | None' = None
    ) -> 'Image.Image'""",
}


def test_the_public_names_are_these() -> None:
    assert sorted(declip_sdk.__all__) == NAMES.split()
    assert all(getattr(declip_sdk, name) is not None for name in NAMES.split())
    assert set(NAMES.split()) <= set(dir(declip_sdk))
    star: dict[str, object] = {}
    exec("from declip_sdk import *", star)
    assert set(NAMES.split()) <= set(star)


@pytest.mark.parametrize("cls", list(ATTRIBUTES))
def test_the_public_attributes_are_these(cls: type[Any]) -> None:
    found = set(dir(cls)) | ({f.name for f in fields(cls)} if is_dataclass(cls) else set())
    assert sorted(name for name in found if not name.startswith("_")) == ATTRIBUTES[cls].split()


@pytest.mark.parametrize("function", list(SIGNATURES), ids=lambda function: function.__qualname__)
def test_the_signatures_are_these(function: Callable[..., Any]) -> None:
    wanted = "".join(line.strip() + " " * line.endswith(",") for line in SIGNATURES[function].splitlines())
    assert str(inspect.signature(function)) == wanted
