"""The one way to diffusers, transformers and peft: an optional extra, and libraries that talk while they load."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from declip_runtime.errors import ExportError
from declip_training.model.torchvision_ops import ensure_importable

_EXTRA = "Making generators needs diffusers, transformers and peft. Run: pip install 'declip-sdk[generate]'"


def library(name: str) -> Any:
    """The module ``name`` of diffusers, transformers, tokenizers or peft. ExportError where it is not installed."""
    try:
        ensure_importable()  # diffusers and transformers ask for torchvision
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(f"{name} cannot be imported: {error}. {_EXTRA}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, advice and announcements of the libraries meanwhile: what matters is said by our errors."""
    noisy = [library("diffusers.utils.logging"), library("transformers.utils.logging")]
    levels = [module.get_verbosity() for module in noisy]
    bars = [module.is_progress_bar_enabled() for module in noisy]
    for module in noisy:
        module.set_verbosity(module.CRITICAL)
        module.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for module, level, bar in zip(noisy, levels, bars, strict=True):
            module.set_verbosity(level)
            if bar:
                module.enable_progress_bar()


def reason(error: BaseException) -> str:
    """The first line of an error that says something, at most 300 characters, without the full stop at its end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0][:300] if lines else type(error).__name__).rstrip(".")
