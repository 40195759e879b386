"""The numbers of the DeCLIP paper (arXiv 2503.02206), to stand beside measured ones.

The paper states neither which split of a data set it used nor whether a curve was fitted before PLCC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

OVERALL = "overall"


@dataclass(frozen=True)
class Published:
    """SRCC and PLCC (None where only SRCC is given) of one model, and the table they stand in."""

    table: int
    model: str
    srcc: float
    plcc: float | None = None


# name of the data set -> SRCC and PLCC of zero-shot CLIP, then of DeCLIP
_TABLE_2: Mapping[str, tuple[float, float, float, float]] = {
    "live": (0.510, 0.537, 0.725, 0.707),
    "csiq": (0.504, 0.558, 0.569, 0.621),
    "tid2013": (0.450, 0.497, 0.551, 0.594),
    "kadid": (0.387, 0.392, 0.502, 0.527),
    "livec": (0.355, 0.318, 0.624, 0.513),
    "koniq": (0.327, 0.352, 0.602, 0.593),
    "spaq": (0.439, 0.381, 0.793, 0.446),
    "agiqa": (0.308, 0.359, 0.387, 0.447),
    "ava": (0.387, 0.403, 0.395, 0.409),
    "aadb": (0.334, 0.336, 0.403, 0.401),
    "para": (0.548, 0.550, 0.627, 0.605),
    "eva": (0.465, 0.464, 0.506, 0.516),
    "baid": (0.109, 0.084, 0.171, 0.148),
    "apdd": (0.319, 0.320, 0.411, 0.388),
    "richhf": (-0.078, -0.057, -0.018, -0.036),
    "sac": (0.241, 0.252, 0.254, 0.264),
}

# name of the data set -> what the CoOp context was trained on, SRCC
_TABLE_3: Mapping[str, tuple[str, float]] = {
    "spaq": ("KonIQ-10k", 0.867),
    "agiqa": ("KonIQ-10k", 0.711),
    "kadid": ("KonIQ-10k", 0.741),
    "aadb": ("AVA", 0.583),
    "para": ("AVA", 0.669),
    "apdd": ("AVA", 0.549),
}

# name of the data set, name of the attribute's score in an engine -> as in table 2
_TABLE_4: Mapping[tuple[str, str], tuple[float, float, float, float]] = {
    ("spaq", "brightness"): (0.439, 0.437, 0.584, 0.529),
    ("spaq", "colorfulness"): (0.278, 0.251, 0.576, 0.412),
    ("spaq", "contrast"): (-0.135, -0.154, 0.311, 0.239),
    ("spaq", "noise"): (0.195, 0.112, 0.573, 0.286),
    ("spaq", "sharpness"): (0.638, 0.395, 0.794, 0.256),
    ("para", "composition"): (0.274, 0.326, 0.369, 0.431),
    ("para", "color"): (0.444, 0.471, 0.530, 0.563),
    ("para", "depth_of_field"): (0.113, 0.172, 0.374, 0.445),
    ("para", "light"): (0.488, 0.536, 0.591, 0.622),
    ("para", "object_emphasis"): (0.259, 0.281, 0.325, 0.317),
}


def published(dataset: str, target: str = OVERALL) -> tuple[Published, ...]:
    """What the paper has on ``target`` ("overall" or an attribute) of a data set; empty where it has nothing."""
    if target != OVERALL:
        return _pair(4, _TABLE_4.get((dataset, target)))
    found = _pair(2, _TABLE_2.get(dataset))
    if dataset in _TABLE_3:
        trained_on, srcc = _TABLE_3[dataset]
        found += (Published(3, f"DeCLIP + CoOp, trained on {trained_on}", srcc),)
    return found


def _pair(table: int, row: tuple[float, float, float, float] | None) -> tuple[Published, ...]:
    if row is None:
        return ()
    return Published(table, "CLIP", row[0], row[1]), Published(table, "DeCLIP", row[2], row[3])
