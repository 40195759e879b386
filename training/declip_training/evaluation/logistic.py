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

PARAMETERS = 4
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
        rise = special.expit((np.asarray(scores, np.float64) - self.centre) / self.width)
        values: npt.NDArray[np.float64] = self.low + (self.high - self.low) * rise
        return values

    @property
    def falls(self) -> bool:
        """Whether a higher score means a lower opinion: the fitted PLCC then hides that scores point the wrong way."""
        return self.high < self.low


def fit_logistic(scores: Vector, opinions: Vector) -> Logistic | None:
    """Fit by least squares to finite ``scores`` and ``opinions``, both [N]; None where the fit does not converge.

    Fewer points than parameters have none either. Neither may be constant. Of several starts the one that ends nearest
    is taken. The customary one (the opinions' extremes, the scores' mean and a quarter of their standard deviation) may
    end in a step beside the scores where the whole standard deviation does not, and says little of scores of which a
    few lie far out: so their median and quartiles are tried too. All are tried rising and falling.
    """
    x, y = np.asarray(scores, np.float64), np.asarray(opinions, np.float64)
    if len(x) < PARAMETERS:
        return None
    unit = float(np.abs(x).max())  # squares of very small or large scores would vanish or overflow
    mean, spread = float((x / unit).mean()), float((x / unit).std())
    standard = (x / unit - mean) / spread
    first, middle, third = (float(q) for q in np.quantile(standard, (0.25, 0.5, 0.75)))
    places = [(0.0, 0.25), (0.0, 1.0)]
    if third > first:
        places += [(middle, (third - first) / 4), (middle, third - first)]
    ends = ((float(y.max()), float(y.min())), (float(y.min()), float(y.max())))
    found = [_least_squares(standard, y, (*end, *place)) for end in ends for place in places]
    converged = [parameters for parameters in found if parameters is not None]
    if not converged:
        return None
    high, low, centre, width = min(converged, key=lambda p: float(np.square(_curve(standard, *p) - y).sum()))
    fitted = Logistic(high, low, unit * (mean + spread * centre), unit * spread * width)
    finite = np.isfinite([fitted.high, fitted.low, fitted.centre, fitted.width]).all()
    return fitted if finite and fitted.width > 0 and fitted.high != fitted.low else None


_Parameters = tuple[float, float, float, float]


def _least_squares(x: Vector, y: Vector, start: _Parameters) -> _Parameters | None:
    """high, low, centre and width > 0 of the curve near ``start``; None where the search does not converge."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optimize.OptimizeWarning)  # of the covariance, which nobody reads
            (high, low, centre, width), _ = optimize.curve_fit(_curve, x, y, p0=start, maxfev=_MAX_EVALUATIONS)
    except RuntimeError:  # SciPy's word for a fit that does not converge
        return None
    return float(high), float(low), float(centre), _positive(float(width))


def _positive(width: float) -> float:
    return max(abs(width), 1e-12)  # of scores of unit spread: a step


def _curve(x: Vector, high: float, low: float, centre: float, width: float) -> npt.NDArray[np.float64]:
    values: npt.NDArray[np.float64] = low + (high - low) * special.expit((x - centre) / _positive(width))
    return values
