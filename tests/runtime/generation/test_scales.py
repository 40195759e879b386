"""Strength by layer, compared with what diffusers' set_ip_adapter_scale sets."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from declip_runtime.errors import UsageError
from declip_runtime.generation.scales import plain, strengths

from .tiny_models import Models

SCALES: list[Any] = [
    0.0,
    1,
    0.25,
    {"down": {"block_1": [0.0, 1.0]}},
    {"up": {"block_0": [0.0, 1.0, 0.0]}},
    {"down": {"block_1": [0.0, 1.0]}, "up": {"block_0": [0.0, 1.0, 0.0]}},
    {"down": 0.5},
    {"mid": 0.7},
    {"mid": [0.7], "up": 2},
    {"up": [0.1, 0.2, 0.3]},
    {"up": {"block_0": 0.3, "block_1": [0.4]}, "down": {"block_0": [0.1, 0.9]}},
    {"down": 1, "mid": 1, "up": 1},
    {},
]


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_scale_means_what_it_means_to_diffusers(
    family: str, scale: Any, request: pytest.FixtureRequest, loaded: dict[str, Any]
) -> None:
    models: Models = request.getfixturevalue(family)
    pipeline = loaded[family]
    pipeline.set_ip_adapter_scale(scale)
    layers = models.manifest.layers
    wanted = [pipeline.unet.attn_processors[f"{layer}.processor"].scale[0] for layer in layers]
    np.testing.assert_array_equal(strengths(scale, layers, "x"), np.array(wanted, np.float32))
    assert strengths(plain(scale), layers, "x").tolist() == strengths(scale, layers, "x").tolist()
    json.dumps(plain(scale), allow_nan=False)


@pytest.fixture(scope="module")
def loaded(sd: Models, sdxl: Models) -> dict[str, Any]:
    return {"sd": sd.with_adapters(1), "sdxl": sdxl.with_adapters(1)}


@pytest.mark.parametrize(
    ("scale", "told"),
    [
        ("strong", r"perceptual_scale is 'strong'\. Give a number"),
        (None, r"perceptual_scale is None"),
        (True, r"perceptual_scale is True"),
        (math.nan, r"perceptual_scale is nan"),
        ([0.5, 0.5], r"perceptual_scale is \[0\.5, 0\.5\]"),
        ({"middle": 1}, r"names 'middle'.* Use down\.block_0, down\.block_1, mid, up\.block_0, up\.block_1\."),
        ({"down": {"block_2": 1}}, r"names 'block_2' of 'down'.* Use down\.block_0, down\.block_1, mid"),
        ({"mid": {"block_0": 1}}, r"names 'block_0' of 'mid'"),
        ({"down": {"block_0": [1, 2, 3]}}, r"down\.block_0 has 3 values for 2 attention layers"),
        ({"up": []}, r"up\.block_0 has 0 values for 3"),
        ({"up": {"block_0": "x"}}, r"up\.block_0 is 'x'"),
        ({"up": {"block_0": [[1.0], 0, 0]}}, r"up\.block_0 is \[1\.0\]"),
        ({1: 1}, r"names 1,"),
    ],
    ids=str,
)
def test_what_is_no_scale_is_told(sd: Models, scale: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        strengths(scale, sd.manifest.layers, "perceptual_scale")


def test_layers_without_a_place_in_a_block_take_numbers_only() -> None:
    layers = ["somewhere.attn2", "mid_block.attentions.0.transformer_blocks.0.attn2"]
    assert strengths(0.5, layers, "x").tolist() == [0.5, 0.5]
    assert strengths({"mid": 1}, layers, "x").tolist() == [0.0, 1.0]
