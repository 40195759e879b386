"""Makes open_clip importable beside a torchvision that was built for another torch.

PyPI's torchvision is a CUDA build. Beside a CPU torch its compiled library does not load, and its import then fails
because two operators, which only that library declares, are given shape functions. open_clip and timm use nothing but
torchvision's pure-Python transforms, so declaring the two operators is enough. Where torchvision is healthy nothing
is done: a second declaration would raise.
"""

from __future__ import annotations

import importlib
import sys

import torch

_UNDECLARED = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library: torch.library.Library | None = None  # a Library takes its declarations with it when it is collected


def ensure_importable() -> None:
    """Import torchvision, repairing the one mismatch described above; any other failure is torchvision's own."""
    global _library
    if "torchvision" in sys.modules:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for name in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # what the failed import left half-made
        _library = torch.library.Library("torchvision", "DEF")
        for operator in _UNDECLARED:
            _library.define(operator + _SIGNATURE)
        importlib.import_module("torchvision")
