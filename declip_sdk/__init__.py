"""The front door of declip-sdk: score photos with a DeCLIP engine, and steer generation with one.

    from declip_sdk import Scorer
    scores = Scorer().score(["a.jpg", "b.jpg"])
    scores.quality            # float32 [2]

    from declip_sdk import DPAdapter, save
    pictures = DPAdapter("dp.engine").generate("a lighthouse", perceptual="dusk.jpg", seed=1)
    save(pictures[0], "lighthouse.png")

Importing this module is cheap: NumPy, Pillow and the backend are imported when the first ``Scorer`` is named.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from declip_runtime.errors import (
    BackendError,
    BackendExecutionError,
    BackendUnavailableError,
    BackendWarning,
    CacheError,
    CacheWarning,
    CheckpointError,
    DeclipError,
    DeviceMemoryError,
    EngineCorruptError,
    EngineError,
    EngineNotFoundError,
    EngineTruncatedError,
    EngineVersionError,
    ExportError,
    GenerationCancelled,
    ImageDecodeError,
    ImageError,
    ImageNotFoundError,
    ImageTooLargeError,
    InvalidArrayError,
    ManifestError,
    NotAnEngineError,
    PrecisionError,
    PromptWarning,
    ScorerStateError,
    TrainingError,
    UsageError,
)
from declip_runtime.version import __version__

if TYPE_CHECKING:
    from declip_runtime.generation.adapter import DPAdapter
    from declip_runtime.generation.progress import Step
    from declip_runtime.generation.record import read_record, repeat, save
    from declip_runtime.generation.sheet import contact_sheet
    from declip_runtime.scorer import Scorer
    from declip_runtime.scores import Score, Scores

__all__ = [
    "BackendError",
    "BackendExecutionError",
    "BackendUnavailableError",
    "BackendWarning",
    "CacheError",
    "CacheWarning",
    "CheckpointError",
    "DPAdapter",
    "DeclipError",
    "DeviceMemoryError",
    "EngineCorruptError",
    "EngineError",
    "EngineNotFoundError",
    "EngineTruncatedError",
    "EngineVersionError",
    "ExportError",
    "GenerationCancelled",
    "ImageDecodeError",
    "ImageError",
    "ImageNotFoundError",
    "ImageTooLargeError",
    "InvalidArrayError",
    "ManifestError",
    "NotAnEngineError",
    "PrecisionError",
    "PromptWarning",
    "Score",
    "Scorer",
    "ScorerStateError",
    "Scores",
    "Step",
    "TrainingError",
    "UsageError",
    "__version__",
    "contact_sheet",
    "read_record",
    "repeat",
    "save",
]

_LAZY = {
    "Scorer": "declip_runtime.scorer",
    "Scores": "declip_runtime.scores",
    "Score": "declip_runtime.scores",
    "DPAdapter": "declip_runtime.generation.adapter",
    "Step": "declip_runtime.generation.progress",
    "save": "declip_runtime.generation.record",
    "read_record": "declip_runtime.generation.record",
    "repeat": "declip_runtime.generation.record",
    "contact_sheet": "declip_runtime.generation.sheet",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
