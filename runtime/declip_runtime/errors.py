"""Every exception that declip-sdk raises on purpose.

    DeclipError
    ├── UsageError (also a ValueError)        an argument that cannot work, or what can be no image
    │   └── InvalidArrayError                 an ndarray of the wrong dtype, rank or channel count
    ├── EngineError                           an engine file that cannot be used
    │   ├── EngineNotFoundError               no such file (also a FileNotFoundError)
    │   ├── NotAnEngineError                  another kind of file, a bare .onnx or .plan included
    │   ├── EngineTruncatedError              the file ends too early
    │   ├── EngineCorruptError                an entry's bytes do not match its hash
    │   ├── EngineVersionError                written by a newer SDK
    │   └── ManifestError                     the description inside contradicts itself
    ├── ImageError                            one image that cannot be scored; the others can
    │   ├── ImageNotFoundError                missing, a folder, or no permission
    │   ├── ImageDecodeError                  not an image, truncated, empty
    │   └── ImageTooLargeError                over the pixel limit
    ├── BackendError                          what executes the graph
    │   ├── BackendUnavailableError           not installed, no device, unknown name
    │   ├── PrecisionError                    this engine or device cannot compute in that precision
    │   └── BackendExecutionError             the vendor library failed while compiling or running
    │       └── DeviceMemoryError             the GPU, or the memory of a CPU, has too little free
    ├── GenerationCancelled                   whoever watches a generation stopped it
    ├── ScorerStateError                      a closed scorer or adapter, or one used after fork
    ├── CacheError                            `declip cache` cannot do what was asked
    ├── ExportError                           a tower or prompt file that cannot become an engine
    │   └── CheckpointError                   projector weights that do not fit or are damaged
    └── TrainingError                         data or settings that cannot be trained on

Messages are one sentence of what is wrong and one of what to do. A vendor's exception never escapes: it is
kept as ``__cause__``. ``CacheWarning`` is issued where a cache cannot be written, ``BackendWarning`` where a backend
has to do with less than was asked for, ``PromptWarning`` where a text is not used as it was given; work goes on.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "BackendExecutionError",
    "BackendUnavailableError",
    "BackendWarning",
    "CacheError",
    "CacheWarning",
    "CheckpointError",
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
    "ScorerStateError",
    "TrainingError",
    "UsageError",
]


class DeclipError(Exception):
    """Root of all errors of this SDK."""


class UsageError(DeclipError, ValueError):
    """An argument that cannot work, or an image of a type that is none; the message names the valid ones."""


class InvalidArrayError(UsageError):
    """An array that is not uint8 [H, W, 3] or [N, H, W, 3]."""


class EngineError(DeclipError):
    """An engine file that cannot be used."""


class EngineNotFoundError(EngineError, FileNotFoundError):
    """No file at the engine's path."""


class NotAnEngineError(EngineError):
    """The file is of another kind; the message names the command that makes an engine of it."""


class EngineTruncatedError(EngineError):
    """The file ends before its content does, as after an interrupted download."""


class EngineCorruptError(EngineError):
    """The bytes of an entry do not match the hash in the manifest."""


class EngineVersionError(EngineError):
    """The manifest's schema, or the preprocessing that it asks for, is newer than this SDK."""


class ManifestError(EngineError):
    """A manifest that is incomplete or contradicts itself."""


class ImageError(DeclipError):
    """One image that cannot be scored."""


class ImageNotFoundError(ImageError):
    """The path does not lead to a readable file."""


class ImageDecodeError(ImageError):
    """The bytes are not an image that Pillow can decode completely."""


class ImageTooLargeError(ImageError):
    """More pixels than ``max_pixels`` allows."""


class BackendError(DeclipError):
    """A problem of what executes the graph."""


class BackendUnavailableError(BackendError):
    """The backend is unknown, not installed, or has no such device here."""


class PrecisionError(BackendError):
    """The engine, the backend or the device lacks the requested precision."""


class BackendExecutionError(BackendError):
    """The vendor library failed to compile or to run the graph."""


class DeviceMemoryError(BackendExecutionError):
    """The GPU has too little free memory, or the machine where a CPU is to hold the model."""


class GenerationCancelled(DeclipError):  # noqa: N818 - somebody's wish, not a mistake
    """A generation that was stopped from its ``on_step``; its pictures are not finished."""


class ScorerStateError(DeclipError):
    """The scorer or adapter was closed, or is used in a process forked after it was made."""


class CacheError(DeclipError):
    """The compiled-model cache cannot be read or cleared."""


class BackendWarning(UserWarning):
    """A backend works with less than was asked for (memory for smaller batches only); scoring goes on."""


class CacheWarning(UserWarning):
    """The cache of compiled models cannot be used (not writable, too small, an altered entry); scoring goes on."""


class PromptWarning(UserWarning):
    """A text was cut to what the text encoder reads, or has no effect; generation goes on."""


class ExportError(DeclipError):
    """A tower, prompt file or graph that cannot become an engine."""


class CheckpointError(ExportError):
    """Projector weights that are damaged or do not fit the tower."""


class TrainingError(DeclipError):
    """Data or settings that cannot be trained on."""
