"""Fusing a LoRA into a base model: few-step distillations (LCM, Hyper-SD) and styles cost nothing at run time."""

from __future__ import annotations

from pathlib import Path

from declip_runtime.errors import ExportError

from .base import Base
from .hub import local_file
from .library import library, quiet, reason

_NAME = "declip"
_FIX = "Give a LoRA that was made for this base model"


def fuse_lora(base: Base, source: str | Path, strength: float = 1.0) -> Base:
    """Add ``strength`` times the LoRA at ``source`` (PATH, FOLDER:FILE or ID:FILE) to the weights of ``base``.

    Before an adapter is loaded. Raises ExportError where there is none, for a file that is none, and for one of another
    base model.
    """
    library("peft")
    path = local_file(str(source), _FIX)
    pipeline = base.pipeline
    with quiet():
        try:
            pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=_NAME)
            changed = sorted(part for part, names in pipeline.get_list_adapters().items() if _NAME in names)
            if changed:
                pipeline.fuse_lora(components=changed, lora_scale=strength, safe_fusing=True, adapter_names=[_NAME])
                pipeline.unload_lora_weights()
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, IndexError) as error:
            raise ExportError(f"{source} cannot be fused into {base.source}: {reason(error)}. {_FIX}.") from error
    if not changed:
        raise ExportError(f"{source} changes nothing in {base.source}. {_FIX}.")
    return base.with_lora({"source": str(source), "strength": strength, "changed": changed})
