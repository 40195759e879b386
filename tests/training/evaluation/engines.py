"""Engines that need no model: the fake backend takes only names and sizes from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from declip_runtime.engine_file import EngineFile
from declip_runtime.engine_writer import write_engine
from declip_runtime.scorer_manifest import ScoreSpec

TINY = Path(__file__).parents[2] / "data" / "tiny.engine"


def engine(path: Path, names: Sequence[str], *, name: str = "mini") -> EngineFile:
    """The tiny engine with other scores."""
    tiny = EngineFile.open(TINY)
    entries = {entry: tiny.read(entry) for entry in tiny.manifest.entries}
    specs = tuple(ScoreSpec(score, "quality", (("Good photo.", "Bad photo."),)) for score in names)
    return write_engine(path, replace(tiny.manifest, name=name, scores=specs, plans=()), entries)
