"""From stored pixels to what a tower takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def to_input(pixels: npt.NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels uint8 [N, H, W, 3] to normalised float32 [N, 3, H, W] in channels-last memory order."""
    images = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float().div_(255)
    images = images.sub_(torch.tensor(mean).view(3, 1, 1)).div_(torch.tensor(std).view(3, 1, 1))
    return images.contiguous(memory_format=torch.channels_last)
