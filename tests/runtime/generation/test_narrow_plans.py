"""Models that were loaded take fewer sizes than their engine: what a TensorRT plan for some of them does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from PIL import Image

from declip_runtime import backends
from declip_runtime.engine_file import EngineFile
from declip_runtime.errors import UsageError
from declip_runtime.generation.adapter import DPAdapter
from declip_runtime.signature import Range

from . import tiny_adapter
from .tiny_models import Models

Picture = Callable[[int], Image.Image]
Narrow = Mapping[str, Mapping[str, Range]]


def narrow(monkeypatch: pytest.MonkeyPatch, models: Models, ranges: Narrow) -> list[dict[str, tuple[int, ...]]]:
    """Let the models run, in these sizes only. The list gets the shapes of what each call is given."""
    seen: list[dict[str, tuple[int, ...]]] = []

    class Backend(tiny_adapter.TorchBackend):
        def __init__(self, component: str) -> None:
            super().__init__(models, component, [])
            self.signature = self.signature.narrowed(ranges.get(component, {}))

        def compute(self, inputs: Any) -> Any:
            for name, size in self.signature.sizes(inputs).items():
                low, _, high = self.signature.free[name]
                assert low <= size <= high, f"{self._component} was given {name} {size}"
            seen.append({name: array.shape for name, array in inputs.items()})
            return super().compute(inputs)

    monkeypatch.setattr(backends, "choose", lambda _engine, _backend, *, component, **_: Backend(component))
    return seen


@pytest.mark.parametrize("batch", [Range(2, 2, 8), Range(1, 1, 1), Range(3, 4, 4)])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_batches_are_cut_and_filled_up_to_what_the_plan_takes(
    engine: EngineFile, sd: Models, picture: Picture, batch: Range, guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {
        "prompt": "a dog", "perceptual": picture(1), "seed": 1, "images_per_prompt": 3, "guidance": guidance
    }  # fmt: skip
    narrow(monkeypatch, sd, {})
    with DPAdapter(engine.path, backend="fake") as adapter:
        wanted = adapter.generate(**arguments)
    narrow(monkeypatch, sd, {"unet": {"batch": batch}, "vae_decoder": {"batch": batch}})
    with DPAdapter(engine.path, backend="fake") as adapter:
        found = adapter.generate(**arguments)
        assert adapter.batch_size == max(batch.optimum // 2, 1)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(one, np.int16), np.asarray(other, np.int16), atol=1)


def test_conditions_and_tokens_are_filled_up_to_what_the_plan_takes(
    engine: EngineFile, sd: Models, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = narrow(monkeypatch, sd, {"unet": {"conditions": Range(2, 2, 2), "tokens": Range(8, 8, 8)}})
    with DPAdapter(engine.path, backend="fake") as adapter:
        adapter.generate("a dog", perceptual=picture(1))
    assert {shapes["image_tokens"][1:3] for shapes in seen if "image_tokens" in shapes} == {(2, 8)}


@pytest.mark.parametrize(
    ("ranges", "arguments", "told"),
    [
        ({"unet": {"height": Range(8, 8, 8)}}, {}, "the unet takes height 8 to 8 latents of 2 pixels, this needs 16"),
        ({"vae_decoder": {"width": Range(24, 24, 32)}}, {}, "of the vae_decoder takes width 24 to 32 latents"),
        ({"unet": {"conditions": Range(1, 1, 1)}}, {"semantic": 1}, "the unet takes conditions 1 to 1, this needs 2"),
        ({"unet": {"tokens": Range(4, 4, 4)}}, {"perceptual": 2}, "the unet takes tokens 4 to 4.* those of 2 images"),
    ],
)
def test_sizes_that_the_plan_does_not_take_are_told_before_anything_runs(
    engine: EngineFile,
    sd: Models,
    picture: Picture,
    ranges: Narrow,
    arguments: dict[str, int],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = narrow(monkeypatch, sd, ranges)
    images = {kind: [picture(n) for n in range(count)] for kind, count in {"perceptual": 1, **arguments}.items()}
    with (
        DPAdapter(engine.path, backend="fake") as adapter,
        pytest.raises(UsageError, match=f"{told}.*declip build ENGINE --component"),
    ):
        adapter.generate("a dog", **images)  # type: ignore[arg-type]
    assert not seen
