"""A disentanglement report for people: Markdown and plots beside the JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from declip_runtime.errors import TrainingError
from declip_training.files import replacing, write_json, writing
from declip_training.markdown import grid

from .report import TEXTS, VIEWS

_LABELS = {"clip": "CLIP (before)", "perceptual": "perceptual", "semantic": "semantic"}
_COLOURS = {"clip": "#9aa0a6", "perceptual": "#d1495b", "semantic": "#30638e"}
_SIGNS = {"perceptual": "T_p", "semantic": "T_s"}
_READING = """\
The two embeddings are decoupled where T_p is found better from the perceptual embedding than from the semantic one, T_s
the other way round, and where distortions move the perceptual embedding more, and the semantic one less, than they move
CLIP's, each in units of the move that other content makes (ratio). Texts made from distortion labels separate by
construction and prove nothing; texts that people wrote do, of pictures that training did not see.
"""


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write ``report.json``, ``report.md``, ``retrieval.png`` and ``movement.png`` into ``folder``.

    ``report`` is what ``disentanglement`` returns, with ``notes``, lines on what it was made from.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report)
    with replacing(folder / "report.md") as partial:
        partial.write_text(_markdown(report), encoding="utf-8")
    _plots(folder, report)


def _markdown(report: Mapping[str, Any]) -> str:
    lines = ["# Disentanglement", "", *(f"- {note}" for note in report.get("notes", ())), "", _READING]
    rows = []
    for view in VIEWS:
        for text in TEXTS:
            values = report["retrieval"][view][text]
            recalls = [f"{values[f'recall@{k}']:.3f}" if values["texts"] > k else "-" for k in (1, 5, 10)]
            back = f"{values['text_to_image_recall@5']:.3f}" if values["pictures"] > 5 else "-"
            rows.append([_LABELS[view], _SIGNS[text], *recalls, back, f"{values['mean_rank']:.3f}"])
    headings = ("embedding", "text", "R@1", "R@5", "R@10", "text to image R@5", "mean rank")
    lines += ["## Retrieval", "", grid(headings, rows).rstrip()]
    texts = ", ".join(f"{_SIGNS[t]} {report['retrieval']['clip'][t]['texts']}" for t in TEXTS)
    lines += ["", f"Different texts: {texts}; by chance R@k is k of them, and where there are no more it says nothing."]
    lines += ["Mean rank is a share of them: 0 best, 0.5 chance.", ""]
    lines += ["![retrieval](retrieval.png)", "", "## Movement (1 - cosine)", ""]
    moves = report["movement"]
    rows = [[name, *(_number(moves[v][name]) for v in VIEWS)] for name in ("content", "distortion", "ratio")]
    rows += [[name, *(f"{moves[v]['each'][name]:.4f}" for v in VIEWS)] for name in moves["clip"]["each"]]
    lines.append(grid(["", *(_LABELS[v] for v in VIEWS)], rows).rstrip())
    lines += ["", f"{report['distorted']:,} different pictures were distorted."]
    return "\n".join([*lines, "", "![movement](movement.png)", ""])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _plots(folder: Path, report: Mapping[str, Any]) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise TrainingError("the report's plots need matplotlib. Run: pip install 'declip-sdk[train]'") from error

    def save(figure: Figure, name: str) -> None:
        figure.tight_layout()
        with replacing(folder / name) as partial:
            figure.savefig(partial, format="png", dpi=120)

    figure = Figure(figsize=(7, 3.6))
    for place, text in enumerate(TEXTS):
        axes = figure.add_subplot(1, 2, place + 1, ylim=(0, 1), title=f"{_SIGNS[text]} among the nearest 5")
        values = [report["retrieval"][view][text]["recall@5"] for view in VIEWS]
        bars = axes.bar([_LABELS[v] for v in VIEWS], values, color=[_COLOURS[v] for v in VIEWS])
        axes.bar_label(bars, fmt="%.2f")
        axes.axhline(min(1.0, 5 / report["retrieval"]["clip"][text]["texts"]), color="black", linewidth=0.8, ls=":")
        axes.tick_params(axis="x", labelsize=8)
    figure.supylabel("share of images (dotted: chance)")
    save(figure, "retrieval.png")

    figure = Figure(figsize=(9, 4))
    axes = figure.add_subplot(1, 1, 1, ylabel="move / move of other content", title="What a distortion moves")
    names = list(report["movement"]["clip"]["each"])
    for offset, view in enumerate(VIEWS):
        moves = report["movement"][view]
        still = moves["ratio"] is None
        heights = [0.0 if still else moves["each"][name] / moves["content"] for name in names]
        axes.bar(
            [i + 0.27 * (offset - 1) for i in range(len(names))], heights, 0.27, color=_COLOURS[view],
            label=_LABELS[view],
        )  # fmt: skip
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    axes.legend()
    save(figure, "movement.png")
