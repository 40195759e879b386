"""The paper's user study, table 5 of arXiv 2503.02206: ten people, 100 pairs of image and text, scores of 1 to 5.

Another thing than what is measured here, so these numbers stand apart wherever they are shown.
"""

from __future__ import annotations

from collections.abc import Mapping

USER_STUDY: Mapping[str, tuple[float, float]] = {
    "IP-Adapter": (0.628, 0.536),
    "Versatile Diffusion": (0.521, 0.400),
    "ControlNet Shuffle": (0.465, 0.293),
    "BLIP-Diffusion": (0.436, 0.292),
    "InstantStyle": (0.464, 0.288),
    "DP-Adapter": (0.696, 0.641),
}
"""Condition consistency (the mean of semantic and perceptual) and overall feeling, by what generated."""

STAND_IN = (
    "These numbers are an automatic stand-in for the user study of the DeCLIP paper (table 5): models judge here, "
    "people did there, on other conditions and another scale. They are not comparable with the paper's numbers."
)
"""What has to be said wherever the numbers are shown."""
