"""Prompts on their way to the UNet: cut into tokens, and encoded."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from declip_runtime.errors import EngineCorruptError, PromptWarning
from declip_runtime.generator_manifest import GeneratorManifest
from declip_runtime.signature import BATCH

from .batches import Component, compute
from .extra import unavailable

_IDS = 1 << 32
"""As many the library can name."""


@dataclass(frozen=True, eq=False)
class Text:
    """Encoded prompts: ``hidden`` float32 [B, 77, C], and of Stable Diffusion XL ``pooled`` float32 [B, P]."""

    hidden: npt.NDArray[np.float32]
    pooled: npt.NDArray[np.float32] | None


class Tokenizer:
    """One tokenizer of an engine.

    Args:
        content: JSON of the ``tokenizers`` library.
        length: how many tokens the encoder reads.
        pad_id: what a shorter prompt is filled up with.

    Raises BackendUnavailableError where that library is missing, EngineCorruptError where it cannot read the JSON, or
    does not know ``pad_id``.
    """

    def __init__(self, content: bytes, length: int, pad_id: int) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise unavailable("tokenizers", error) from error
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises nothing narrower
            raise EngineCorruptError(
                f"a tokenizer of the engine cannot be read ({error}). Export the engine again, or update tokenizers."
            ) from error
        if not 0 <= pad_id < _IDS or self._tokenizer.id_to_token(pad_id) is None:
            raise EngineCorruptError(
                f"a tokenizer of the engine does not know the token {pad_id}, which pads. Export the engine again."
            )
        # What the file says of these was for another use. Both are done here.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._length, self._pad_id = length, pad_id

    def __call__(self, prompt: str) -> tuple[list[int], str]:
        """Exactly ``length`` token ids, and the end of the prompt that did not fit ('' where all did).

        The first and last token mark beginning and end, so a prompt that is too long keeps its last token too. Raises
        EngineCorruptError where the library fails.
        """
        try:
            encoding = self._tokenizer.encode(prompt)
        except Exception as error:  # the library raises nothing narrower
            raise EngineCorruptError(
                f"a tokenizer of the engine cannot encode a prompt ({error}). Use other words, or export it again."
            ) from error
        ids: list[int] = encoding.ids
        if len(ids) <= self._length:
            return ids + [self._pad_id] * (self._length - len(ids)), ""
        cut = self._length - 1
        return ids[:cut] + ids[-1:], prompt[encoding.offsets[cut][0] :].strip()


class TextEncoder:
    """Tokenizers and text encoder of an engine.

    Args:
        manifest: the engine's.
        read: gives an entry of the engine.

    Raises what ``Tokenizer`` raises.
    """

    def __init__(self, manifest: GeneratorManifest, read: Callable[[str], bytes]) -> None:
        self._manifest = manifest
        self._signature = manifest.components["text_encoder"]
        self._tokenizers: Mapping[str, Tokenizer] = {
            name: Tokenizer(read(text.entry), self._signature.inputs[name].sized({BATCH: 1})[1], text.pad_id)
            for name, text in manifest.text_inputs.items()
        }

    def require_readable(self, prompts: Iterable[str]) -> None:
        """Raise EngineCorruptError now where a tokenizer fails on one of the prompts; nothing is warned of yet."""
        for prompt in prompts:
            for tokenizer in self._tokenizers.values():
                tokenizer(prompt)

    def tokenize(self, prompts: Sequence[str]) -> dict[str, npt.NDArray[np.int64]]:
        """The encoder's inputs, int64 [B, 77] each. Issues PromptWarning for every prompt that is too long."""
        found: dict[str, list[list[int]]] = {name: [] for name in self._tokenizers}
        for prompt in prompts:
            lost = ""
            for name, tokenizer in self._tokenizers.items():
                ids, rest = tokenizer(prompt)
                found[name].append(ids)
                lost = max(lost, rest, key=len)
            if lost:
                warnings.warn(
                    f"the text encoder reads {len(ids)} tokens, so the end of a prompt has no effect: {lost!r}."
                    " Shorten the prompt, or put what matters first.",
                    PromptWarning,
                    stacklevel=2,
                )
        return {name: np.array(rows, np.int64) for name, rows in found.items()}

    def encode(self, prompts: Sequence[str], component: Component, *, negative: bool = False) -> Text:
        """Encode one text a row; equal texts go through the encoder once.

        ``negative`` texts that are empty are zeros where the manifest says so.
        """
        distinct = list(dict.fromkeys(prompts))
        rows = [distinct.index(prompt) for prompt in prompts]
        most = self._signature.free[BATCH].optimum
        outputs = compute(component, self._signature, self.tokenize(distinct), at_most=most)
        hidden, pooled = outputs["hidden"][rows], outputs["pooled"][rows] if "pooled" in outputs else None
        if negative and self._manifest.zero_negative:
            empty = [row for row, prompt in enumerate(prompts) if not prompt]
            hidden[empty] = 0.0
            if pooled is not None:
                pooled[empty] = 0.0
        return Text(hidden, pooled)


def time_ids(height: int, width: int, rows: int) -> npt.NDArray[np.float32]:
    """What Stable Diffusion XL is told of sizes in pixels, float32 [rows, 6]: the original, no crop, and the target."""
    return np.tile(np.array([[height, width, 0, 0, height, width]], np.float32), (rows, 1))
