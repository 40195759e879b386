"""What an engine says that scores photos, and what it says of each of its scores."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .manifest import Manifest, Preprocess
from .signature import BATCH, Range, Signature, TensorSpec
from .typed_fields import Typed, require

# A score is read as an attribute and as a column, so it cannot be called what Score and Scores call their own.
RESERVED_NAMES = frozenset(
    {"names", "errors", "embeddings", "image", "images", "index", "values", "error", "embedding"}
    | {"to_dict", "to_dicts", "to_pandas", "scored_with"}
)
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")

ScoreKind = Literal["quality", "degree"]

SCORING_BATCH = Range(1, 64, 64)
"""Batch sizes of a scorer's plans, unless other ones are asked for: streams of photos run at the largest."""


@dataclass(frozen=True)
class Validation(Typed):
    """What a score was compared with, and how well it agreed (``srcc`` in -1..1, ``n`` images).

    ``dataset`` is one of people's opinions, or says that it holds none: ladders of known strength, for attributes.
    """

    dataset: str
    srcc: float
    n: int
    note: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(-1.0 <= self.srcc <= 1.0 and self.n > 0, f"validation on {self.dataset!r} is out of range")


@dataclass(frozen=True)
class CalibrationCurve(Typed):
    """Monotone, piecewise linear map from the raw score to the 0..1 that users see; constant beyond its ends.

    ``x`` strictly increasing raw scores, ``y`` non-decreasing values in 0..1, ``dataset`` what it was fitted on.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    dataset: str

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.x) == len(self.y) >= 2, "a calibration curve needs at least two points")
        require(all(a < b for a, b in zip(self.x, self.x[1:], strict=False)), "calibration x must increase")
        require(all(a <= b for a, b in zip(self.y, self.y[1:], strict=False)), "calibration y must not decrease")
        require(all(0.0 <= v <= 1.0 for v in self.y), "calibration y must lie in 0..1")


@dataclass(frozen=True)
class ScoreSpec(Typed):
    """One named score: the mean over its antonym pairs of eq. 8, ``kind`` says what more of it means.

    ``validated`` is None where nobody compared the score with anything; ``calibration`` None leaves it raw.
    """

    name: str
    kind: ScoreKind
    pairs: tuple[tuple[str, str], ...]
    description: str = ""
    validated: Validation | None = None
    calibration: CalibrationCurve | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(_NAME.match(self.name)), f"score name {self.name!r} is not a lower-case identifier")
        require(self.name not in RESERVED_NAMES, f"score name {self.name!r} is reserved")
        require(len(self.pairs) >= 1, f"score {self.name!r} has no antonym pair")
        require(all(all(pair) for pair in self.pairs), f"score {self.name!r} has an incomplete pair")


@dataclass(frozen=True, kw_only=True)
class ScorerManifest(Manifest):
    """What an engine says that scores photos.

    Its graphs (``fp32``, ``fp16``, ``int8``, ``int8-fp16``, ``fp8``) each take ``images`` uint8 [B, H, W, 3] and give
    ``scores`` float32 [B, K] raw, in the order of ``scores``, and ``perceptual`` float32 [B, embedding_dim],
    L2-normalised (and ``semantic`` likewise where ``has_semantic``).
    """

    preprocess: Preprocess
    scores: tuple[ScoreSpec, ...]
    embedding_dim: int
    logit_scale: float
    kind: Literal["scorer"] = "scorer"
    has_semantic: bool = False

    def _check(self) -> None:
        names = [s.name for s in self.scores]
        require(len(names) >= 1, "the engine has no score")
        require(len(set(names)) == len(names), "two scores share a name")
        require(self.embedding_dim >= 1, "embedding_dim must be positive")
        require(self.logit_scale > 0, "logit_scale must be positive")

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """One model without a name."""
        size = self.preprocess.size
        embedding = TensorSpec("float32", (BATCH, self.embedding_dim))
        outputs = {"scores": TensorSpec("float32", (BATCH, len(self.scores))), "perceptual": embedding}
        if self.has_semantic:
            outputs["semantic"] = embedding
        return {"": Signature({"images": TensorSpec("uint8", (BATCH, size, size, 3))}, outputs, {BATCH: SCORING_BATCH})}

    @property
    def main(self) -> str:
        """The only one."""
        return ""

    @property
    def files(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def decides(self) -> dict[str, Any]:
        """Preprocessing, scale, and of each score name, kind and calibration."""
        return {
            "preprocess": asdict(self.preprocess),
            "logit_scale": self.logit_scale,
            "scores": [
                {"name": s.name, "kind": s.kind, "calibration": asdict(s.calibration) if s.calibration else None}
                for s in self.scores
            ],
        }

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the scores in the order of the graph's columns."""
        return tuple(s.name for s in self.scores)
