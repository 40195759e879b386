"""Overall quality of pictures: a score of a scorer engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from declip_runtime.engine_file import EngineFile
from declip_runtime.errors import BackendExecutionError, DeclipError, UsageError
from declip_runtime.scorer import Scorer


@dataclass(frozen=True, eq=False)
class QualityScorer:
    """An engine and the name of its score that counts as overall quality. Make one with ``of``."""

    engine: EngineFile
    score: str
    backend: str = "auto"

    @classmethod
    def of(cls, path: Path, score: str | None = None, backend: str = "auto") -> QualityScorer:
        """Open an engine; ``score`` None is the one called quality, else its first where higher is better.

        Raises EngineError for a file that is no engine, UsageError for one that scores nothing, for a score that it
        does not have, and for one where higher is not better.
        """
        engine = EngineFile.open(path)
        kinds = {spec.name: spec.kind for spec in engine.scorer.scores}
        better = [name for name, kind in kinds.items() if kind == "quality"]
        if score is not None and score not in kinds:
            raise UsageError(f"{path} has no score {score!r}. It gives: {', '.join(kinds)}.")
        if not better:
            raise UsageError(f"{path} has no score where higher is better. Choose another engine.")
        if score is not None and score not in better:
            raise UsageError(
                f"the score {score!r} of {path} is a degree: higher is more, not better. Use {', '.join(better)}."
            )
        return cls(engine, score or ("quality" if "quality" in better else better[0]), backend)

    def scores(
        self, paths: Sequence[Path], advance: Callable[[int, int], None] = lambda done, total: None
    ) -> tuple[list[float | DeclipError], dict[str, str]]:
        """The scores in 0..1 of pictures in the order given, or why one has none; and what they were made with.

        Raises what ``Scorer`` raises.
        """
        found: list[float | DeclipError] = []
        with (
            Scorer(self.engine.path, backend=self.backend, decode="exact") as scorer,
            closing(scorer.stream(paths, on_error="record")) as stream,
        ):
            for score in stream:
                found.append(_finite(score[self.score]) if score.error is None else score.error)
                advance(len(found), len(paths))
            made_with = {f"scorer's {name}": str(value) for name, value in scorer.identity.items()}
            return found, {"scorer": self.engine.manifest.name, "score": self.score, **made_with}


def _finite(value: float) -> float | DeclipError:
    if math.isfinite(value):
        return float(value)
    return BackendExecutionError(f"the scorer gave {value}, which is no score. Choose another engine or backend.")
