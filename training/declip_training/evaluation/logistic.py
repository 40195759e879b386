"""The four-parameter logistic curve of the Video Quality Experts Group, from scores to opinions.

Scores and opinions live on scales of their own; the literature maps one to the other before PLCC and RMSE
(VQEG Phase II, 2003; Sheikh et al., IEEE TIP 2006).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

Vector = npt.NDArray[np.floating]

_MAX_EVALUATIONS = 20_000


@dataclass(frozen=True)
class Logistic:
    """``low + (high - low) / (1 + exp(-(x - centre) / width))``, ``width`` > 0; it falls where ``high`` < ``low``."""

    high: float
    low: float
    centre: float
    width: float

    def __call__(self, scores: Vector) -> npt.NDArray[np.float64]:
        """Opinions float64 [N] that the curve expects for ``scores`` [N]."""
        values: npt.NDArray[np.float64] = _curve(
            np.asarray(scores, np.float64), self.high, self.low, self.centre, self.width
        )
        return values

    @property
    def falls(self) -> bool:
        """Whether a higher score means a lower opinion: the fitted PLCC then hides that scores point the wrong way."""
        return self.high < self.low


def fit_logistic(scores: Vector, opinions: Vector) -> Logistic | None:
    """Fit by least squares to finite ``scores`` and ``opinions``, both [N]; None where the fit does not converge.

    Neither may be constant. The start is the customary one (the opinions' extremes, the scores' mean and a quarter of
    their standard deviation), turned round where the raw correlation is negative.
    """
    x, y = np.asarray(scores, np.float64), np.asarray(opinions, np.float64)
    if len(x) < 4:  # fewer points than parameters
        return None
    mean, spread = float(x.mean()), float(x.std())
    standard = (x - mean) / spread
    ends = (y.max(), y.min()) if float(standard @ (y - y.mean())) >= 0 else (y.min(), y.max())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optimize.OptimizeWarning)  # of the covariance, which nobody reads
            (high, low, centre, width), _ = optimize.curve_fit(
                _curve, standard, y, p0=(*ends, 0.0, 0.25), maxfev=_MAX_EVALUATIONS
            )
    except RuntimeError:  # SciPy's word for a fit that does not converge
        return None
    fitted = Logistic(float(high), float(low), mean + spread * float(centre), spread * abs(float(width)))
    finite = np.isfinite([fitted.high, fitted.low, fitted.centre, fitted.width]).all()
    return fitted if finite and fitted.width > 0 and fitted.high != fitted.low else None


def _curve(x: Vector, high: float, low: float, centre: float, width: float) -> npt.NDArray[np.float64]:
    values: npt.NDArray[np.float64] = low + (high - low) * special.expit((x - centre) / max(abs(width), 1e-12))
    return values
