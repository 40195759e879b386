"""Texts through a CLIP's text tower, with or without learned vectors among their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from declip_runtime.errors import ExportError

from .tower import Tokenizer

ContextPosition = Literal["before", "around", "after"]


def encode_texts(
    clip: nn.Module,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    contexts: Tensor | None = None,
    position: ContextPosition = "before",
) -> Tensor:
    """Text embeddings float32 [N, D], L2-normalised, differentiable with respect to ``contexts`` [N, M, W].

    A context stands between the start token and the end token, ``position`` the words ("around": the first half of
    it before them, the rest after). It is put in where the token embedding is looked up, so the text tower runs as it
    is. Raises ExportError for a prompt that does not fit the tower's context length.
    """
    tokens = tokenizer(list(texts))
    width = 0 if contexts is None else contexts.shape[1]
    _require_fit(tokenizer, texts, tokens, width)
    device = next(clip.parameters()).device
    if contexts is None:
        return F.normalize(clip.encode_text(tokens.to(device)).float(), dim=-1)  # type: ignore[operator]
    embedded = token_embedding(clip).shape[1]
    if contexts.shape[0] != len(texts) or contexts.shape[2] != embedded:
        raise ExportError(
            f"a learned context has the shape {list(contexts.shape[1:])}. It must be [M, W] with W = {embedded}, the "
            "width of this text tower."
        )
    tokens, places = _with_room(tokenizer, texts, tokens, width, position)
    rows = torch.arange(len(texts), device=device)[:, None].expand_as(places)

    def insert(_module: nn.Module, _inputs: Any, looked_up: Tensor) -> Tensor:
        return looked_up.index_put((rows, places.to(device)), contexts.to(looked_up))

    hook = _lookup(clip).register_forward_hook(insert)
    try:
        return F.normalize(clip.encode_text(tokens.to(device)).float(), dim=-1)  # type: ignore[operator]
    finally:
        hook.remove()


def for_each_text(context: Tensor, pairs: int) -> Tensor:
    """A context for every text of ``pairs`` pairs [2P, M, W], of one [M, W], [2, M, W] or [P, 2, M, W].

    Raises ExportError for a context of another number of pairs.
    """
    if context.ndim == 4 and len(context) != pairs:
        raise ExportError(f"a learned context is for {len(context)} pairs of prompts, here are {pairs}. Learn it anew.")
    return context.expand(pairs, 2, *context.shape[-2:]).flatten(0, 1)


def token_embedding(clip: nn.Module) -> Tensor:
    """The token embedding of a CLIP's text tower, [vocabulary, W]. Raises ExportError for a tower that shows none."""
    return cast(Tensor, _lookup(clip).weight)


def _lookup(clip: nn.Module) -> nn.Module:
    found = getattr(getattr(clip, "text", clip), "token_embedding", None)
    if not isinstance(found, nn.Module):  # a Hugging Face text tower has its own names
        raise ExportError("learned contexts need open_clip's own text tower. Use words only with this one.")
    return found


def _with_room(
    tokenizer: Tokenizer, texts: Sequence[str], tokens: Tensor, width: int, position: ContextPosition
) -> tuple[Tensor, Tensor]:
    """Tokens [N, L] with placeholders for ``width`` context vectors, and where those stand, int64 [N, width]."""
    ahead = {"before": width, "around": width // 2, "after": 0}[position]
    made, places = [], []
    for text, row in zip(texts, tokens, strict=True):
        words = len(tokenizer.encode(text))  # type: ignore[attr-defined]
        start, body, rest = row[:1], row[1 : 1 + words], row[1 + words : len(row) - width]
        placeholder = body[:1].expand(width)
        made.append(torch.cat([start, placeholder[:ahead], body, placeholder[ahead:], rest]))
        places.append([*range(1, 1 + ahead), *range(1 + ahead + words, 1 + words + width)])
    return torch.stack(made), torch.tensor(places)


def _require_fit(tokenizer: Tokenizer, texts: Sequence[str], tokens: Tensor, width: int) -> None:
    encode = getattr(tokenizer, "encode", None)
    if encode is None:  # a Hugging Face tokenizer: its start and end tokens are its own business
        if width:
            raise ExportError("learned contexts need open_clip's own tokenizer. Use words only with this text tower.")
        return
    room = tokens.shape[1] - 2 - width
    if room < 1:
        raise ExportError(
            f"a learned context of {width} vectors leaves no room for words. Use at most {tokens.shape[1] - 3} with "
            "this text tower."
        )
    for text in texts:
        if not 0 < len(encode(text)) <= room:
            raise ExportError(f"the prompt {text!r} has {len(encode(text))} tokens. Use 1 to {room} with this tower.")
