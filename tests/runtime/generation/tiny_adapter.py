"""An engine file of tiny models: adapters on the fake backend, or with the models themselves in a backend's place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from declip_runtime import backends
from declip_runtime.engine_file import EngineFile
from declip_runtime.engine_writer import write_engine
from runtime import tiny_engine

from .tiny_models import Models

WEIGHTS = {"image_encoder": 2, "image_tokens": 1, "text_encoder": 3, "unet": 10, "vae_decoder": 4}
"""How many weights each component has, in thousands."""


def write(path: Path, models: Models) -> EngineFile:
    """The graphs have weights and compute nothing, which is enough for the fake backend and to be counted."""
    entries: dict[str, Any] = {"weights.bin": bytes(2 * 1000 * sum(WEIGHTS.values())), **models.files}
    offset = 0
    for component, thousands in WEIGHTS.items():
        tensor = tiny_engine.external(f"{component}.weight", (1000, thousands), offset)
        body = tiny_engine.block(2, component) + tiny_engine.block(5, tensor)
        entries[f"graphs/{component}-fp32.onnx"] = tiny_engine.number(1, 8) + tiny_engine.block(7, body)
        offset += 2 * 1000 * thousands
    return write_engine(path, models.manifest, entries)


class TorchBackend:
    """Runs a component of ``models`` where the fake backend would have given noise."""

    description = "torch"

    def __init__(self, models: Models, component: str, opened: list[str]) -> None:
        self._models, self._component = models, component
        self.signature = models.manifest.components[component]
        opened.append(component)

    def compute(self, inputs: Any) -> Any:
        return self._models.components[self._component](inputs)

    def close(self) -> None:
        pass


def with_torch(monkeypatch: pytest.MonkeyPatch, models: Models) -> list[str]:
    """Let every backend that is chosen run ``models``. The list returned gets the components as they are loaded."""
    opened: list[str] = []

    def choose(_engine: EngineFile, _backend: str, *, component: str, **_: Any) -> TorchBackend:
        return TorchBackend(models, component, opened)

    monkeypatch.setattr(backends, "choose", choose)
    return opened
