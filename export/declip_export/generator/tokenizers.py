"""A pipeline's tokenizers as JSON of the ``tokenizers`` library, which a runtime needs no transformers for."""

from __future__ import annotations

import json
from typing import Any

from declip_runtime.errors import ExportError

from .base import Base
from .library import library, reason

_PROBES = (
    "",
    "A photo of an astronaut, riding a horse!",
    "Ein Häuschen   im Schnee — 雪の中の小屋",
    "x" * 40 + " (y:1.2)",
)


def tokenizers_of(base: Base) -> dict[str, tuple[bytes, int]]:
    """JSON and the padding's id by input of the text encoder. Cutting and padding are left to whoever uses it.

    Raises ExportError for a tokenizer that ``tokenizers`` does not reproduce.
    """
    pipeline = base.pipeline
    sources = {"input_ids": pipeline.tokenizer}
    if base.family == "sdxl":
        sources["input_ids_2"] = pipeline.tokenizer_2
    return {name: (_as_json(source), int(source.pad_token_id)) for name, source in sources.items()}


def _as_json(source: Any) -> bytes:
    fast = library("tokenizers").Tokenizer
    try:
        backend = getattr(source, "backend_tokenizer", None)
        if backend is None:  # transformers before 5 has a tokenizer of its own for CLIP
            backend = library("transformers.convert_slow_tokenizer").convert_slow_tokenizer(source)
        copy = fast.from_str(backend.to_str())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(
            f"the tokenizer of the base model cannot be exported: {reason(error)}. Give another base model."
        ) from error
    copy.no_truncation()
    copy.no_padding()
    for text in _PROBES:
        if copy.encode(text).ids != source(text, truncation=False).input_ids:
            raise ExportError(
                "the exported tokenizer does not do what the base model's does. Update transformers: pip install -U "
                "transformers tokenizers"
            )
    return json.dumps(json.loads(copy.to_str()), ensure_ascii=False, separators=(",", ":")).encode()
