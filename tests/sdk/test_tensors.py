"""Tensors of PyTorch are scored as arrays are, and one that cannot be names what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from declip_runtime.errors import InvalidArrayError
from declip_runtime.tensors import of_capsule
from declip_sdk import Scorer

PHOTO = Path(__file__).parents[1] / "vectors" / "coffee-blurred.jpg"


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.array(Image.open(PHOTO).convert("RGB"))


def test_the_same_scores_as_from_arrays(pixels: np.ndarray) -> None:
    with Scorer(precision="fp32") as scorer:
        wanted = scorer.score(pixels)[0].quality
        tensor = torch.from_numpy(pixels)
        planes = tensor.permute(2, 0, 1).contiguous()
        for one in (tensor, planes.permute(1, 2, 0), tensor[None], [tensor]):
            assert scorer.score(one)[0].quality == wanted
        assert len(scorer.score(torch.stack([tensor, tensor]))) == 2
        assert next(score.quality for score in scorer.stream([tensor, PHOTO])) == wanted


@pytest.mark.parametrize(
    ("change", "fix"),
    [
        (lambda t: t.permute(2, 0, 1), "Channels come last"),
        (lambda t: t / 255, "255"),
        (lambda t: (t / 255).requires_grad_(), "NumPy array"),
        (lambda t: t.to(torch.bfloat16), "NumPy array"),
    ],
)
def test_what_is_no_picture_names_the_fix(pixels: np.ndarray, change: object, fix: str) -> None:
    tensor = change(torch.from_numpy(pixels))  # type: ignore[operator]
    with Scorer(backend="fake") as scorer:
        with pytest.raises(InvalidArrayError, match=fix):
            scorer.score(tensor)
        mixed = scorer.score([tensor, pixels], on_error="record")
    assert [error is None for error in mixed.errors] == [False, True]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float16, torch.bfloat16, torch.bool])
def test_capsules_of_torch(dtype: torch.dtype) -> None:
    tensor = torch.zeros(4, 6, 8).to(dtype)[1:, ::2]
    found = of_capsule(torch.utils.dlpack.to_dlpack(tensor))
    assert found.address == tensor.data_ptr()
    assert found.shape == tuple(tensor.shape)
    assert found.strides == tuple(step * tensor.element_size() for step in tensor.stride())
    assert found.dtype == str(dtype).removeprefix("torch.")
