"""Antonym prompts: which scores an engine has, in which words, and their text embeddings.

A prompts file is TOML, one table a score, in the order of the engine's columns::

    logit_scale = 100.0                      # optional; the tower's own scale otherwise

    [scores.sharpness]
    kind = "quality"                         # or "degree": higher is more, not better
    description = "Sharp where it should be"
    pairs = [["Sharp photo.", "Blurry photo."], ["Crisp details.", "Smeared details."]]
    context = "coop.safetensors:sharpness"   # optional learned context, path relative to this file
    context_position = "before"              # the words (default), "around" or "after" them

A learned context (CoOp, the paper's reference [66]) is a tensor [M, W] of token vectors of the text tower, put
before, around (half on each side) or after the words of every prompt of its score; [2, M, W] has positive and
negative apart, [P, 2, M, W] every prompt of P pairs. The file's header says what each was learned on.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from declip_runtime.errors import ExportError, ManifestError
from declip_runtime.scorer_manifest import ScoreKind, ScoreSpec
from declip_training.files import replacing

from .text_encoding import ContextPosition, encode_texts, for_each_text
from .tower import Tokenizer

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LARGEST_SCALE = 1000.0
_ContextOf = Callable[[str], "tuple[Tensor, LearnedOn | None]"]
_FIELDS = {"kind", "description", "pairs", "context", "context_position"}


@dataclass(frozen=True)
class LearnedOn:
    """SHA-256 of the CLIP (both towers) and of the projectors ("": none) that a context was learned on."""

    clip_sha256: str
    projector_sha256: str


@dataclass(frozen=True)
class ScorePrompts:
    """The antonym pairs (positive, negative) of one score, with an optional learned ``context``.

    The context is float [M, W], [2, M, W] for positive and negative apart, or [P, 2, M, W] for every prompt apart;
    ``position`` is where it stands, ``learned_on`` None where its file does not tell.
    """

    spec: ScoreSpec
    context: Tensor | None = None
    position: ContextPosition = "before"
    learned_on: LearnedOn | None = None

    def texts(self) -> tuple[str, ...]:
        """Positive and negative of the first pair, of the second, and so on."""
        return tuple(text for pair in self.spec.pairs for text in pair)

    def contexts(self) -> Tensor | None:
        """Context of every text [2P, M, W], in the order of ``texts``."""
        return None if self.context is None else for_each_text(self.context, len(self.spec.pairs))


@dataclass(frozen=True)
class PromptEmbeddings:
    """Text embeddings float32 [P, 2, D], L2-normalised: P pairs, (positive, negative).

    ``score`` [P] says which score a pair belongs to.
    """

    pairs: Tensor
    score: tuple[int, ...]

    def averaging(self) -> Tensor:
        """Matrix float32 [P, K] whose product with per-pair scores [B, P] is each score's mean over its pairs."""
        matrix = torch.zeros(len(self.score), max(self.score) + 1)
        matrix[torch.arange(len(self.score)), torch.tensor(self.score)] = 1
        return matrix / matrix.sum(0)


@dataclass(frozen=True)
class PromptSet:
    """All scores of an engine; ``logit_scale`` None means the tower's own."""

    scores: tuple[ScorePrompts, ...]
    logit_scale: float | None = None

    def __post_init__(self) -> None:
        if not self.scores:
            raise ExportError("the prompts name no score. Add a table such as [scores.quality] with kind and pairs.")
        if self.logit_scale is not None and not 0 < self.logit_scale <= LARGEST_SCALE:
            raise ExportError(
                f"logit_scale is {self.logit_scale}. Choose a value above 0 and at most {LARGEST_SCALE:g}."
            )

    @classmethod
    def read(cls, path: str | Path) -> PromptSet:
        """Read a prompts file; ExportError names the table and what is wrong in it."""
        path = Path(path)
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ExportError(f"the prompts file {path} cannot be read: {error}. Give a TOML file.") from error
        return cls._from_dict(data, lambda reference: _read_context(reference, path.parent))

    @classmethod
    def default(cls) -> PromptSet:
        """Quality, aesthetic, and the ten attributes of the paper's Table 4; no data validates them on any tower."""
        text = resources.files(__package__).joinpath("prompts.toml").read_text(encoding="utf-8")
        return cls._from_dict(tomllib.loads(text), lambda reference: _read_context(reference, Path()))

    def specs(self) -> tuple[ScoreSpec, ...]:
        """What the manifest says of the scores."""
        return tuple(s.spec for s in self.scores)

    @torch.no_grad()
    def encode(self, clip: nn.Module, tokenizer: Tokenizer) -> PromptEmbeddings:
        """Embed every prompt with the text tower of ``clip``."""
        rows = [encode_texts(clip, tokenizer, s.texts(), s.contexts(), s.position) for s in self.scores]
        score = tuple(k for k, s in enumerate(self.scores) for _ in s.spec.pairs)
        return PromptEmbeddings(torch.cat(rows).view(len(score), 2, -1), score)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; contexts as ``"name"`` of their score, to be stored beside it (see checkpoint.py)."""
        scores = {
            s.spec.name: {
                "kind": s.spec.kind,
                "description": s.spec.description,
                "pairs": [list(p) for p in s.spec.pairs],
                **({} if s.context is None else {"context": s.spec.name}),
                **({} if s.position == "before" else {"context_position": s.position}),
            }
            for s in self.scores
        }
        return {"scores": scores} if self.logit_scale is None else {"logit_scale": self.logit_scale, "scores": scores}

    @classmethod
    def from_dict(cls, data: dict[str, Any], contexts: dict[str, Tensor]) -> PromptSet:
        """Inverse of ``to_dict``."""
        return cls._from_dict(data, lambda name: (contexts[name], None))

    def require_learned_on(self, clip_sha256: Callable[[], str], projector_sha256: str) -> None:
        """Raise ExportError naming the score whose context was learned on another CLIP, or with other projectors."""
        learned = [(s.spec.name, s.learned_on) for s in self.scores if s.learned_on is not None]
        here = clip_sha256() if learned else ""
        for name, on in learned:
            if on != LearnedOn(here, projector_sha256):
                other = "another tower" if on.clip_sha256 != here else "other projectors"
                raise ExportError(
                    f"the context of the score {name!r} was learned on {other}. Export with what it was learned on "
                    "(the run's report.json tells), or learn it again with declip coop."
                )

    def write(self, path: Path, contexts: str) -> None:
        """Write a prompts file to ``path`` and the learned contexts to the file named ``contexts`` beside it.

        Existing files are replaced, each whole or not at all, the contexts first, under names of their own: prompts
        that are still those of before find none of them, instead of the wrong ones. Raises TrainingError where they
        cannot be written.
        """
        from safetensors.torch import save_file

        learned, origins, keys = {}, {}, {}
        for score in self.scores:
            if score.context is not None:
                context = score.context.detach().float().contiguous()
                key = f"{score.spec.name}-{hashlib.sha256(context.numpy().tobytes()).hexdigest()[:8]}"
                keys[score.spec.name], learned[key] = key, context
                if score.learned_on is not None:
                    origins[key] = json.dumps(asdict(score.learned_on))
        lines = [] if self.logit_scale is None else [f"logit_scale = {self.logit_scale!r}\n"]
        for name, table in self.to_dict()["scores"].items():
            if "context" in table:
                table["context"] = f"{contexts}:{keys[name]}"
            lines.append(f"[scores.{name}]")
            lines += [f"{key} = {_toml(value)}" for key, value in table.items()]
            lines.append("")
        if learned:
            with replacing(path.with_name(contexts)) as partial:
                save_file(learned, partial, origins)
        with replacing(path) as partial:
            partial.write_text("\n".join(lines), encoding="utf-8")

    def sha256(self) -> str:
        """Hash over words, scale and contexts."""
        digest = hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode())
        for s in self.scores:
            if s.context is not None:
                digest.update(s.context.detach().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @classmethod
    def _from_dict(cls, data: dict[str, Any], context_of: _ContextOf) -> PromptSet:
        tables, scale = data.get("scores", {}), data.get("logit_scale")
        if not isinstance(tables, dict) or set(data) - {"scores", "logit_scale"}:
            raise ExportError("a prompts file holds logit_scale and [scores.NAME] tables, nothing else.")
        if scale is not None and (isinstance(scale, bool) or not isinstance(scale, int | float)):
            raise ExportError(f"logit_scale is {scale!r}. Give a number.")
        scores = tuple(_score(name, table, context_of) for name, table in tables.items())
        return cls(scores, None if scale is None else float(scale))


def _score(name: str, table: Any, context_of: _ContextOf) -> ScorePrompts:
    if not isinstance(table, dict) or set(table) - _FIELDS:
        raise ExportError(f"[scores.{name}] may hold {', '.join(sorted(_FIELDS))} only.")
    pairs = table.get("pairs")
    if not isinstance(pairs, list) or not all(
        isinstance(p, list) and len(p) == 2 and all(isinstance(t, str) for t in p) for p in pairs
    ):
        raise ExportError(f'[scores.{name}] needs pairs = [["positive", "negative"], ...].')
    try:
        spec = ScoreSpec(
            name=name,
            kind=cast(ScoreKind, table.get("kind")),
            pairs=tuple((p, n) for p, n in pairs),
            description=str(table.get("description", "")),
        )
    except ManifestError as error:
        reason = (
            str(error).removeprefix("the engine's manifest is not valid: ").removesuffix(". Export the engine again.")
        )
        raise ExportError(f"[scores.{name}] cannot be a score: {reason}. Change that table of the prompts.") from error
    position = table.get("context_position", "before")
    if position not in get_args(ContextPosition):
        known = ", ".join(get_args(ContextPosition))
        raise ExportError(f"[scores.{name}] has the context_position {position!r}. Use one of {known}.")
    context, learned_on = context_of(table["context"]) if "context" in table else (None, None)
    return ScorePrompts(spec, context, position, learned_on)


def _toml(value: Any) -> str:
    """A string or nested list of strings in TOML, whose escapes are JSON's apart from DEL, which must be escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _read_context(reference: str, folder: Path) -> tuple[Tensor, LearnedOn | None]:
    """Read ``FILE:TENSOR`` relative to ``folder``, and what its header says of it."""
    from safetensors import SafetensorError, safe_open

    name, _, key = str(reference).rpartition(":")
    try:
        with safe_open(folder / name, framework="pt") as file:
            tensor: Tensor = file.get_tensor(key).float()
            origin = (file.metadata() or {}).get(key)
            learned_on = None if origin is None else LearnedOn(**json.loads(origin))
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise ExportError(
            f'the learned context {reference!r} cannot be read: {error}. Write context = "FILE.safetensors:TENSOR".'
        ) from error
    if tensor.ndim not in (2, 3, 4) or (tensor.ndim > 2 and tensor.shape[-3] != 2) or tensor.shape[-2] < 1:
        raise ExportError(
            f"the learned context {reference!r} is {list(tensor.shape)}. It must be [M, W], [2, M, W] or [P, 2, M, W]."
        )
    return tensor, learned_on
