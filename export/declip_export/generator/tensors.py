"""Tensors in files that others wrote, of safetensors' form or pickled."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from declip_runtime.errors import ExportError

from .library import reason

# What torch's restricted unpickler raises for bytes that are no pickle, beside its own error.
_DAMAGED = (pickle.UnpicklingError, EOFError, OSError, RuntimeError, ValueError, LookupError, TypeError, struct.error)


def tensor_names(path: Path) -> list[str]:
    """Names of the tensors in a checkpoint, whose values are not read. Raises ExportError for a damaged file."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        content = read_pickled(path)
        tensors = content.get("state_dict", content) if isinstance(content, Mapping) else {}
        return [str(name) for name in tensors]
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file of safetensors' form. Raises ExportError for a damaged one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def read_pickled(path: Path) -> Any:
    """What ``torch.save`` wrote, tensors and plain containers only: nothing in the file is executed.

    Raises ExportError for a damaged file and for one that holds anything else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: BaseException) -> ExportError:
    return ExportError(f"{path} cannot be read: {reason(error)}. Copy or download it again.")
