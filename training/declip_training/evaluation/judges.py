"""Judging an engine by what training does not hold.

Ladders by other code, other kinds of faults, real cameras, and how selectively its attributes follow their ladders.

    python -m declip_training.evaluation.judges ENGINE --data DATA -o benchmarks/results/judges.md

Unlike BIQ2021 Test this needs no ledger, as no opinion is looked at; but nothing is chosen by it either.
"""

from __future__ import annotations

import argparse
import datetime as dt
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import PIL

from declip_runtime.errors import DeclipError, UsageError
from declip_runtime.machine import commit
from declip_runtime.options import Precision
from declip_runtime.scorer import Scorer
from declip_runtime.scorer_manifest import ScoreKind
from declip_training.files import replacing
from declip_training.markdown import grid
from declip_training.recipes.nano_data import Sources

from .attribute_ladders import ATTRIBUTE_LADDERS
from .camera_faults import CAMERA_FAULTS
from .camera_noise import CameraNoise, Share, judge_pairs, read_polyu
from .fresh import FRESH
from .ladders import LADDERS, Pixels, judge
from .selectivity import BAR as ATTRIBUTE_BAR
from .selectivity import MINIMUM, Selectivity, measure
from .unseen import UNSEEN

LADDER_BAR = 0.97
CAMERA_BAR = 0.9

Item = TypeVar("Item")


@dataclass(frozen=True)
class Judgement:
    """Everything the page says. ``limited`` where not all photos and pairs were looked at: no verdict then counts."""

    engine: Mapping[str, str]
    score: str
    n_photos: int
    limited: bool
    ladders: Mapping[str, float]
    camera_faults: Mapping[str, float]
    unseen: Mapping[str, float]
    fresh: Mapping[str, float]
    camera: CameraNoise
    selectivity: Selectivity


def judge_engine(
    engine: Path, sources: Sources, *, score: str = "quality", precision: Precision = "auto", limit: int | None = None
) -> Judgement:
    """Judge one engine's ``score`` by ladders and camera pairs, and all attributes that it offers.

    ``limit`` takes so many photos and pairs, spread evenly, for a trial. Raises DeclipError: data that is missing, an
    engine that cannot be used, no such score.
    """
    photos, pairs = _spread(sources.judging, limit), _spread(read_polyu(sources.polyu), limit)
    with Scorer(engine, precision=precision, decode="exact") as scorer:
        if score not in scorer.names:
            raise UsageError(f"{engine} has no score {score!r}. It has {', '.join(scorer.names)}.")
        names = scorer.names

        def one(images: list[Pixels]) -> npt.NDArray[np.float32]:
            return scorer.score(images)[score]

        def every(images: list[Pixels]) -> dict[str, npt.NDArray[np.float32]]:
            scores = scorer.score(images)
            return {name: scores[name] for name in names}

        kinds: dict[str, ScoreKind] = {spec.name: spec.kind for spec in scorer.manifest.scores}
        return Judgement(
            engine={
                "engine": scorer.manifest.name,
                "engine id": scorer.engine.id,
                "backend": scorer.backend,
                "precision": scorer.precision,
                "decode": "exact",
            },
            score=score,
            n_photos=len(photos),
            limited=limit is not None,
            camera=judge_pairs(one, pairs),
            ladders=judge(one, photos),
            camera_faults=judge(one, photos, ladders=CAMERA_FAULTS),
            unseen=judge(one, photos, ladders=UNSEEN),
            fresh=judge(one, photos, ladders=FRESH),
            selectivity=measure(every, kinds, photos),
        )


def to_markdown(judgement: Judgement) -> str:
    """The page: verdicts first, then every table they rest on, and what it was made with."""
    j = judgement
    parts = ["# Judged by what training does not hold\n"]
    if j.limited:
        parts.append(f"**A trial with {j.n_photos} photos and {j.camera.all.pairs} pairs: not a verdict.**\n")
    parts += [grid(("judge", "result", "bar", "verdict"), _verdicts(j)), *_ladder_tables(j), *_camera_tables(j)]
    parts += [*_selectivity_tables(j.selectivity), "## Made with\n", grid(("", ""), _made_with(j))]
    return "\n".join(parts)


def _verdicts(j: Judgement) -> list[tuple[str, str, str, str]]:
    shares = [
        ("ladders by other code, mean", j.ladders["mean"], LADDER_BAR),
        ("faults of lens and processing by other code, mean", j.camera_faults["mean"], LADDER_BAR),
        ("ladders of kinds not trained on, mean", j.unseen["mean"], LADDER_BAR),
        ("ladders of kinds that no choice went by, mean", j.fresh["mean"], LADDER_BAR),
        ("camera noise, share ranked right", j.camera.all.right, CAMERA_BAR),
    ]
    rows = [(name, f"{value:.4f}", f"{bar:.2f}", _verdict(value >= bar)) for name, value, bar in shares]
    for a in j.selectivity.attributes:
        moves = ", ".join(f"{name} {move:+.2f}" for name, move in a.moves.items())
        rival = f"{a.rival} {a.responses[a.rival].change:+.2f}"
        result = f"{min(a.ranks.values()):.4f}; {moves}; of others {rival}"
        bar = f"{ATTRIBUTE_BAR:.2f}; further than any other"
        rows.append((f"`{a.name}` ({a.kind})", result, bar, _verdict(a.validated)))
    return [*rows, *((f"`{name}`", "the engine has no such score", "", "absent") for name in j.selectivity.absent)]


def _verdict(passed: bool) -> str:
    return "passed" if passed else "**failed**"


def _ladder_tables(j: Judgement) -> list[str]:
    rows = [
        (origin, name, f"{value:.3f}")
        for origin, ladders in (
            ("other code", j.ladders),
            ("lens and processing, other code", j.camera_faults),
            ("kind not trained on", j.unseen),
            ("kind that no choice went by", j.fresh),
        )
        for name, value in ladders.items()
    ]
    known, new, fresh = len(LADDERS) + len(CAMERA_FAULTS), len(UNSEEN), len(FRESH)
    return [
        "## Ladders\n",
        f"Mean Spearman correlation of rung and falling `{j.score}` over {j.n_photos} photos: {known} ladders of kinds "
        f"that training knows, made by other code, {new} of kinds that it does not know by name, and {fresh} more "
        "that nothing was ever chosen by.\n",
        grid(("ladders", "kind", "correlation"), rows),
    ]


def _camera_tables(j: Judgement) -> list[str]:
    camera, (low, high) = j.camera, j.camera.interval

    def row(group: str, share: Share) -> tuple[str, ...]:
        return (group, f"{share.right:.3f}", str(share.pairs), str(share.scenes))

    rows = [
        row("all", camera.all),
        *(row(name, share) for name, share in camera.by_camera.items()),
        *(row(f"ISO {iso:,}", share) for iso, share in camera.by_iso.items()),
    ]
    return [
        "## Camera noise\n",
        f"Share of PolyU's pairs in which `{j.score}` ranks the mean of many shots above the single shot; a tie is "
        f"half. All: {camera.all.right:.3f}, 95 % interval {low:.3f} to {high:.3f} (bootstrap over scenes, as crops of "
        "one scene are not independent).\n",
        grid(("group", "ranked right", "pairs", "scenes"), rows),
    ]


_MEASURES = {
    "rank": "Mean Spearman correlation of rung and score",
    "change": "Mean change up to the strongest rung, in standard deviations of the score over untouched photos",
}


def _selectivity_tables(selectivity: Selectivity) -> list[str]:
    parts = ["## Selectivity of attributes\n"]
    if selectivity.absent:
        parts.append(f"The engine does not have: {', '.join(f'`{name}`' for name in selectivity.absent)}.\n")
    if not selectivity.attributes:
        return parts
    counts = {name: response.photos for name, response in selectivity.attributes[0].responses.items()}
    parts.append(
        "How each ladder moves each score. An attribute's own ladders are bold, with the direction its kind asks for. "
        f"Photos that a ladder could change: {', '.join(f'{name} {n}' for name, n in counts.items())}.\n"
    )
    for field, title in _MEASURES.items():
        rows = []
        for a in selectivity.attributes:
            cells = []
            for name, response in a.responses.items():
                text = f"{getattr(response, field):+.2f}"
                wanted = "up" if ATTRIBUTE_LADDERS[name].direction(a.kind) > 0 else "down"
                cells.append(f"**{text}** ({wanted})" if name in a.ranks else text)
            rows.append((f"`{a.name}` ({a.kind})", *cells))
        parts += [f"{title}:\n", grid(("score", *ATTRIBUTE_LADDERS), rows)]
    parts.append(
        "Validated where each ladder of its own reaches the bar in its direction, and no other ladder moves the score "
        "as far in the same direction (in any direction, where no own ladder goes that way).\n"
    )
    return parts


def _made_with(j: Judgement) -> Iterable[tuple[str, str]]:
    return (
        *j.engine.items(),
        ("score", j.score),
        ("photos", str(j.n_photos)),
        ("pairs", f"{j.camera.all.pairs} of {j.camera.all.scenes} scenes"),
        ("date", dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")),
        ("commit", commit() or "unknown"),
        ("Pillow", PIL.__version__),
    )


def _spread(items: Sequence[Item], limit: int | None) -> list[Item]:
    """``limit`` of the items at even distances; all where there are no more."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, limit).round().astype(int)]


def _at_least_minimum(text: str) -> int:
    if not text.isdecimal() or int(text) < MINIMUM:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of photos from {MINIMUM}")
    return int(text)


def main(argv: list[str] | None = None) -> int:
    """Judge one engine, print the page and write it; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m declip_training.evaluation.judges",
        description="Judge an engine by what training does not hold.",
    )
    parser.add_argument("engine", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder with clones of the public repositories")
    parser.add_argument("--score", default="quality", help="score for ladders and camera noise")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--limit", type=_at_least_minimum, help="only so many photos and pairs, for a trial")
    parser.add_argument("-o", "--output", type=Path, required=True, help="Markdown file to write")
    args = parser.parse_args(argv)
    try:
        if not args.output.parent.is_dir():  # known before the work
            raise UsageError(f"there is no folder {args.output.parent} to write to. Make it, or give another -o.")
        if args.output.is_dir():
            raise UsageError(f"{args.output} is a folder. Name a Markdown file in it.")
        judgement = judge_engine(
            args.engine, Sources(args.data), score=args.score, precision=args.precision, limit=args.limit
        )
        page = to_markdown(judgement)
        sys.stdout.write(page)
        with replacing(args.output) as partial:
            partial.write_text(page, encoding="utf-8")
    except DeclipError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
