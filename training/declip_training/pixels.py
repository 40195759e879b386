"""From stored pixels to what a tower takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def to_input(
    pixels: npt.NDArray[np.uint8] | Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Pixels uint8 [N, H, W, 3] to normalised float32 [N, 3, H, W] on ``device``, in channels-last memory order."""
    stored = pixels if isinstance(pixels, Tensor) else torch.from_numpy(np.array(pixels))
    images = stored.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)
    centre, spread = (torch.tensor(values, device=device).view(3, 1, 1) for values in (mean, std))
    return images.sub_(centre).div_(spread).contiguous(memory_format=torch.channels_last)
