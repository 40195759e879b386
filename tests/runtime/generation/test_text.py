"""Prompts to tokens and embeddings, against transformers' tokenizer."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest
import tokenizers

from declip_runtime.errors import EngineCorruptError, PromptWarning
from declip_runtime.generation.text import TextEncoder, Tokenizer, time_ids

from .tiny_models import Models, tokenizer

PROMPTS = ["", "a red house", "  A Red\n\tHOUSE  ", "naïve café, 40 €", "写真 📷 dog", "<|endoftext|> a", "a " * 75]
LONG = "a red house by the sea, " * 12 + "with a blue DOOR"


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
@pytest.mark.parametrize("prompt", [*PROMPTS, LONG])
def test_tokens_are_those_of_transformers(pad: str, prompt: str) -> None:
    theirs = tokenizer(pad)
    ours = Tokenizer(theirs.backend_tokenizer.to_str().encode(), 77, theirs.pad_token_id)
    wanted = theirs(prompt, padding="max_length", max_length=77, truncation=True).input_ids
    assert ours(prompt)[0] == wanted


def test_what_the_file_says_of_padding_and_truncation_does_not_count() -> None:
    theirs = tokenizer("!")
    wanted = theirs("a red house", padding="max_length", max_length=77).input_ids
    backend = theirs.backend_tokenizer
    backend.enable_padding(length=20, pad_id=0)
    backend.enable_truncation(max_length=3)
    assert Tokenizer(backend.to_str().encode(), 77, theirs.pad_token_id)("a red house")[0] == wanted


def test_what_does_not_fit_is_told_word_for_word(sd: Models) -> None:
    encoder = TextEncoder(sd.manifest, sd.files.__getitem__)
    with pytest.warns(PromptWarning, match=r"reads 77 tokens, .*'.*with a blue DOOR'\. Shorten") as caught:
        ids = encoder.tokenize(["a dog", LONG])
    assert len(caught) == 1
    lost = re.search(r"no effect: '(.*)'\. Shorten", str(caught[0].message))
    assert lost is not None
    assert LONG.endswith(lost[1])
    kept = LONG.removesuffix(lost[1])
    theirs = tokenizer("<|endoftext|>")
    assert len(theirs(kept).input_ids) == 77
    assert ids["input_ids"].dtype == np.int64
    assert ids["input_ids"][1].tolist() == theirs(kept).input_ids


def test_a_prompt_that_just_fits_is_not_warned_of(sd: Models) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", PromptWarning)
        TextEncoder(sd.manifest, sd.files.__getitem__).tokenize(["a " * 75])


def test_both_encoders_of_xl_get_their_own_padding(sdxl: Models) -> None:
    with pytest.warns(PromptWarning) as caught:
        ids = TextEncoder(sdxl.manifest, sdxl.files.__getitem__).tokenize(["a dog", LONG])
    assert len(caught) == 1  # both lose the same
    assert list(ids) == ["input_ids", "input_ids_2"]
    assert (ids["input_ids"][0] != ids["input_ids_2"][0]).any()
    assert (ids["input_ids"][1] == ids["input_ids_2"][1]).all()


def test_equal_prompts_are_encoded_once(sd: Models) -> None:
    rows: list[int] = []

    def component(inputs: Any) -> Any:
        rows.append(len(inputs["input_ids"]))
        return sd.components["text_encoder"](inputs)

    encoder = TextEncoder(sd.manifest, sd.files.__getitem__)
    text = encoder.encode(["a dog", "a house", "a dog", "a dog"], component)
    assert rows == [2]
    assert text.pooled is None
    np.testing.assert_array_equal(text.hidden[0], text.hidden[2])
    np.testing.assert_allclose(text.hidden[1], encoder.encode(["a house"], component).hidden[0], atol=1e-5)


def test_an_empty_negative_prompt_of_xl_is_zeros(sdxl: Models, sd: Models) -> None:
    component = sdxl.components["text_encoder"]
    encoder = TextEncoder(sdxl.manifest, sdxl.files.__getitem__)
    text = encoder.encode(["", "blurry"], component, negative=True)
    assert text.pooled is not None
    assert not text.hidden[0].any()
    assert not text.pooled[0].any()
    assert text.hidden[1].any()
    assert text.pooled[1].any()
    assert encoder.encode([""], component).hidden.any()
    plain = TextEncoder(sd.manifest, sd.files.__getitem__)
    assert plain.encode([""], sd.components["text_encoder"], negative=True).hidden.any()


def test_sizes_are_told_as_height_and_width() -> None:
    assert time_ids(768, 1024, 2).tolist() == [[768, 1024, 0, 0, 768, 1024]] * 2
    assert time_ids(8, 8, 1).dtype == np.float32


def test_a_damaged_tokenizer_is_told() -> None:
    with pytest.raises(EngineCorruptError, match="Export the engine again"):
        Tokenizer(b"{}", 77, 0)


@pytest.mark.parametrize("pad", [-5, -1, 10**6, 1 << 40])
def test_padding_with_a_token_that_there_is_not_is_told(pad: int) -> None:
    content = tokenizer("!").backend_tokenizer.to_str().encode()
    with pytest.raises(EngineCorruptError, match=rf"does not know the token {pad}, which pads\. Export"):
        Tokenizer(content, 77, pad)


def test_a_tokenizer_that_fails_while_it_encodes_is_told() -> None:
    words: Any = tokenizers.Tokenizer(tokenizers.models.WordLevel({"dog": 0}, unk_token="<unk>"))
    made = Tokenizer(words.to_str().encode(), 3, 0)
    assert made("dog") == ([0, 0, 0], "")
    with pytest.raises(EngineCorruptError, match="cannot encode a prompt"):
        made("house")
