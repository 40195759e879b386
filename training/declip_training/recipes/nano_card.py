"""The model card of the bundled engine, with the numbers of the run that made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from declip_runtime.scorer_manifest import ScoreSpec
from declip_training.evaluation.judges import Judgement

LADDERS = ("blur", "noise", "jpeg", "underexposure", "overexposure", "mean")


def model_card(
    validation: Mapping[str, Mapping[str, float]],
    judged: Mapping[str, str],
    judgement: Judgement,
    specs: Sequence[ScoreSpec],
) -> str:
    """Markdown. ``validation`` is agreement by head, ``judged`` a row of the ledger, ``specs`` the engine's scores."""
    scores = [f"- `{s.name}` ({s.kind}): {s.description.rstrip('.')}." for s in specs]
    heads = [f"- {name}: {result['mean']:.3f}" for name, result in validation.items()]
    ladders = [f"{name} {float(judged[f'ladder_{name}']):.3f}" for name in LADDERS]
    faults = [f"{name} {value:.3f}" for name, value in judgement.camera_faults.items()]
    unseen = [f"{name} {value:.3f}" for name, value in judgement.unseen.items()]
    fresh = [f"{name} {value:.3f}" for name, value in judgement.fresh.items()]
    camera = judgement.camera.all
    numbers: dict[str, Any] = {k: judged[k] for k in ("ss01", "ss02", "ss03", "mean", "pooled")}
    counts = {k: f"{int(judged[k]):,}" for k in ("n", "n_unique", "n_ladder_photos")}
    template = resources.files(__package__).joinpath("nano_card.md").read_text(encoding="utf-8")
    return template.format(
        scores="\n".join(scores),
        validation="\n".join(heads),
        ladders=", ".join(ladders),
        faults=", ".join(faults),
        unseen=", ".join(unseen),
        fresh=", ".join(fresh),
        pairs=camera.pairs,
        camera=f"{camera.right:.2f}",
        **numbers,
        **counts,
    )
