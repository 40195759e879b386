"""A linear regression on the frozen tower: the yardstick beside prompts, never what is shipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from .features import FeatureBatch
from .objective import split_images


def fit_linear_head(bank: Sequence[FeatureBatch], ridge: float = 10.0) -> Callable[[Tensor], npt.NDArray[np.float64]]:
    """Ridge regression of MOS on the rated photos' features; returns features [N, D] -> predicted MOS float64 [N]."""
    x = np.concatenate([split_images(b.features, b.labels)[0].numpy() for b in bank]).astype(np.float64)
    y = np.concatenate([b.labels.mos for b in bank]).astype(np.float64)
    mean, spread = x.mean(0), x.std(0) + 1e-6
    z = (x - mean) / spread
    weights = np.linalg.solve(z.T @ z + ridge * np.eye(z.shape[1]), z.T @ (y - y.mean()))

    def predict(features: Tensor) -> npt.NDArray[np.float64]:
        result: npt.NDArray[np.float64] = (features.double().numpy() - mean) / spread @ weights + y.mean()
        return result

    return predict
