"""Scores against opinions, one picture a data set, one panel an engine."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np

from declip_runtime.errors import TrainingError

from .results import Result

_PANEL = 4.0  # inches


def require_matplotlib() -> None:
    """Raise TrainingError now, before hours of scoring, where no picture could be drawn."""
    if find_spec("matplotlib") is None:
        raise TrainingError("Plots need matplotlib. Run: pip install 'declip-sdk[train]'")


def scatter(results: Sequence[Result]) -> bytes:
    """A PNG of results on one data set and opinion: a point a photo, the logistic curve, SRCC and n above."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_PANEL * len(results), _PANEL), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(results), squeeze=False, sharey=True)[0]
    for panel, result in zip(panels, results, strict=True):
        a = result.agreement
        panel.scatter(result.predicted, result.opinions, s=6, alpha=min(1.0, 5 / math.sqrt(a.n)), linewidths=0)
        if a.fit is not None:
            x = np.linspace(result.predicted.min(), result.predicted.max(), 200)
            panel.plot(x, a.fit(x), color="black", linewidth=1)
        panel.set_title(f"{_plain(result.engine)}\nSRCC {a.srcc:.3f}, n = {a.n:,}", fontsize="medium")
        panel.set_xlabel(_plain(result.score))
    dataset = results[0].collection.dataset
    panels[0].set_ylabel(_plain(f"{dataset.title}: {results[0].target}"))
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # boxes are drawn for what its font lacks
        # no date and version inside: the same numbers give the same file
        figure.savefig(picture, format="png", dpi=120, metadata={"Software": None})
    return picture.getvalue()


def _plain(text: str) -> str:
    """Matplotlib reads what stands between dollar signs as mathematics, and takes no bytes that are no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")
