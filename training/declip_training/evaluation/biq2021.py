"""Judging an engine: BIQ2021 Test and the distortion ladders, each run kept in a ledger.

    python -m declip_training.evaluation.biq2021 ENGINE --data DATA --ledger benchmarks/results/biq2021_test.csv

Test is looked at rarely and on the record: every evaluation appends a row, and nothing is chosen by it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from declip_runtime.errors import DeclipError
from declip_runtime.options import Precision
from declip_runtime.scorer import Scorer
from declip_training.data.biq2021 import read_splits
from declip_training.evaluation.ladders import judge
from declip_training.evaluation.ledger import ID_DIGITS, append_ledger
from declip_training.evaluation.metrics import by_subset, plcc
from declip_training.recipes.nano_data import Sources


def evaluate_engine(
    engine: Path, sources: Sources, *, score: str, precision: Precision = "auto", views: int = 1
) -> dict[str, str]:
    """One ledger row: SRCC by subset on Test without near-duplicates, their mean, pooled; ladders of unseen photos.

    ``views`` is as in Scorer; the ledger has no column for it, so its note should say it where it is not 1.
    """
    splits = read_splits(sources.biq2021)
    unique = splits.test_unique
    mos = np.array([p.mos for p in splits.test])
    subsets = np.array([p.subset for p in splits.test])
    photos = sources.judging
    with Scorer(engine, precision=precision, decode="exact", views=views) as scorer:
        predicted = scorer.score([p.path for p in splits.test])[score]

        def score_arrays(images: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
            return scorer.score(images)[score]

        ladders = judge(score_arrays, photos)
        row = {"engine": scorer.engine.manifest.name, "engine_id": scorer.engine.id[:ID_DIGITS],
               "backend": scorer.backend, "precision": scorer.precision, "score": score}  # fmt: skip
    agreement = by_subset(predicted[unique], mos[unique], list(subsets[unique]))
    pooled = by_subset(predicted, mos, list(subsets))["pooled"]
    numbers = {
        **{k: agreement[k] for k in ("ss01", "ss02", "ss03", "mean")},
        "pooled_unique": agreement["pooled"],
        "pooled": pooled,
        "plcc": plcc(predicted, mos),
        **{f"ladder_{name}": value for name, value in ladders.items()},
    }
    counts = {"n_unique": int(unique.sum()), "n": len(mos), "n_ladder_photos": len(photos)}
    return {**row, **{k: f"{v:.4f}" for k, v in numbers.items()}, **{k: str(v) for k, v in counts.items()}}


def main(argv: list[str] | None = None) -> int:
    """Evaluate one engine and append to the ledger; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m declip_training.evaluation.biq2021", description="Judge an engine."
    )
    parser.add_argument("engine", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder with clones of the public repositories")
    parser.add_argument("--ledger", type=Path, required=True, help="CSV to append to")
    parser.add_argument("--score", default="quality")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--views", type=int, default=1, help="as in declip score")
    parser.add_argument("--note", default="")
    args = parser.parse_args(argv)
    try:
        row = evaluate_engine(
            args.engine, Sources(args.data), score=args.score, precision=args.precision, views=args.views
        )
        append_ledger(args.ledger, row, args.note if args.views == 1 else f"views={args.views}; {args.note}")
    except DeclipError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write("".join(f"{name:22} {value}\n" for name, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
