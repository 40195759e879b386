"""Prompt files, their errors, and text embeddings with learned contexts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from declip_runtime.errors import ExportError
from declip_training.model.prompts import PromptSet
from declip_training.model.text_encoding import encode_texts

TABLE_4 = {
    "brightness": "degree", "colorfulness": "degree", "contrast": "degree", "noise": "quality", "sharpness": "quality",
    "composition": "quality", "color": "quality", "depth_of_field": "quality", "light": "quality",
    "object_emphasis": "quality",
}  # fmt: skip


def read(tmp_path: Path, text: str) -> PromptSet:
    (tmp_path / "p.toml").write_text(text)
    return PromptSet.read(tmp_path / "p.toml")


def test_default_has_quality_aesthetic_and_table_4() -> None:
    specs = PromptSet.default().specs()
    assert {s.name: s.kind for s in specs} == {"quality": "quality", "aesthetic": "quality", **TABLE_4}
    assert specs[0].pairs == (("Good photo.", "Bad photo."),)
    assert all(s.validated is None and s.calibration is None for s in specs)


def test_order_scale_and_pairs(tmp_path: Path) -> None:
    prompts = read(
        tmp_path,
        'logit_scale = 50\n[scores.zebra]\nkind = "degree"\npairs = [["a", "b"], ["c", "d"]]\n'
        '[scores.ant]\nkind = "quality"\ndescription = "x"\npairs = [["e", "f"]]\n',
    )
    assert [s.name for s in prompts.specs()] == ["zebra", "ant"]
    assert prompts.logit_scale == 50.0
    assert prompts.scores[0].texts() == ("a", "b", "c", "d")
    assert PromptSet.from_dict(prompts.to_dict(), {}).sha256() == prompts.sha256()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x =", "cannot be read"),
        ("", "name no score"),
        ("[score.q]", "nothing else"),
        ('[scores.q]\nkind = "quality"', "needs pairs"),
        ('[scores.q]\nkind = "quality"\npairs = [["a"]]', "needs pairs"),
        ('[scores.q]\nkind = "quality"\npairs = []', "no antonym pair"),
        ('[scores.q]\nkind = "goodness"\npairs = [["a", "b"]]', "unknown kind 'goodness'"),
        ('[scores.names]\nkind = "quality"\npairs = [["a", "b"]]', "reserved"),
        ('[scores.Q]\nkind = "quality"\npairs = [["a", "b"]]', "lower-case"),
        ('[scores.q]\nkind = "quality"\npair = [["a", "b"]]', "may hold context, context_position, "),
        ('[scores.q]\nkind = "quality"\npairs = [["a", "b"]]\ncontext_position = "end"', "before, around, after"),
        ('logit_scale = "big"\n[scores.q]\nkind = "quality"\npairs = [["a", "b"]]', "Give a number"),
        ('logit_scale = -1\n[scores.q]\nkind = "quality"\npairs = [["a", "b"]]', "above 0"),
        ('[scores.q]\nkind = "quality"\npairs = [["a", "b"]]\ncontext = "no.safetensors:q"', "cannot be read"),
        ('[scores.q]\nkind = "quality"\npairs = [["a", "b"]]\ncontext = 3', "cannot be read"),
    ],
)
def test_errors_name_the_table(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        read(tmp_path, text)


def test_what_cannot_be_a_score_is_to_be_changed_in_the_prompts(tmp_path: Path) -> None:
    """There is no engine yet that could be exported again."""
    with pytest.raises(ExportError) as caught:
        read(tmp_path, '[scores.errors]\nkind = "quality"\npairs = [["a", "b"]]')
    assert str(caught.value) == (
        "[scores.errors] cannot be a score: score name 'errors' is reserved. Change that table of the prompts."
    )


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"none\.toml cannot be read"):
        PromptSet.read(tmp_path / "none.toml")


def test_embeddings_are_unit_length_and_in_order(tiny_clip: Any, tmp_path: Path) -> None:
    clip, tokenizer, _ = tiny_clip
    prompts = read(
        tmp_path,
        '[scores.a]\nkind = "degree"\npairs = [["one", "two"], ["three", "four"]]\n'
        '[scores.b]\nkind = "degree"\npairs = [["five", "six"]]\n',
    )
    embeddings = prompts.encode(clip, tokenizer)
    assert embeddings.pairs.shape == (3, 2, 32)
    assert embeddings.score == (0, 0, 1)
    torch.testing.assert_close(embeddings.pairs.norm(dim=2), torch.ones(3, 2))
    torch.testing.assert_close(embeddings.pairs[1, 0], encode_texts(clip, tokenizer, ["three"])[0])
    assert embeddings.averaging().tolist() == [[0.5, 0.0], [0.5, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("position", "wanted"),
    [
        ("before", ["very nice big good photo.", "very nice big sad and bad photo."]),
        ("around", ["very good photo. nice big", "very sad and bad photo. nice big"]),
        ("after", ["good photo. very nice big", "sad and bad photo. very nice big"]),
    ],
)
def test_a_context_of_real_words_equals_those_words(tiny_clip: Any, position: Any, wanted: list[str]) -> None:
    clip, tokenizer, _ = tiny_clip
    texts = ["good photo.", "sad and bad photo."]
    words = clip.token_embedding.weight[tokenizer(["very nice big"])[0, 1:4]].detach()
    with_context = encode_texts(clip, tokenizer, texts, words.expand(2, -1, -1), position)
    torch.testing.assert_close(with_context, encode_texts(clip, tokenizer, wanted))
    assert (with_context - encode_texts(clip, tokenizer, texts)).abs().max() > 1e-3


@pytest.mark.parametrize("position", ["before", "around", "after"])
def test_a_context_learns(tiny_clip: Any, position: Any) -> None:
    clip, tokenizer, _ = tiny_clip
    context = (0.02 * torch.randn(1, 4, 32)).requires_grad_()
    encode_texts(clip, tokenizer, ["good photo."], context, position)[0, 0].backward()
    assert context.grad is not None
    assert (context.grad.abs().sum(2) > 0).all()


@pytest.mark.parametrize("shape", [(3, 32), (2, 3, 32)])
def test_context_from_a_file(tiny_clip: Any, tmp_path: Path, shape: tuple[int, ...]) -> None:
    clip, tokenizer, _ = tiny_clip
    context = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    save_file({"q": context}, tmp_path / "c.safetensors")
    text = '[scores.q]\nkind = "quality"\npairs = [["a", "b"], ["c", "d"]]\n'
    prompts = read(tmp_path, text + 'context = "c.safetensors:q"\n')
    found = prompts.encode(clip, tokenizer).pairs
    per_text = context.expand(2, -1, -1) if context.ndim == 2 else context
    torch.testing.assert_close(found[1], encode_texts(clip, tokenizer, ["c", "d"], per_text))
    assert prompts.sha256() != read(tmp_path, text).sha256()
    after = read(tmp_path, text + 'context = "c.safetensors:q"\ncontext_position = "after"\n')
    torch.testing.assert_close(
        after.encode(clip, tokenizer).pairs[1], encode_texts(clip, tokenizer, ["c", "d"], per_text, "after")
    )
    assert after.sha256() != prompts.sha256()
    assert PromptSet.from_dict(after.to_dict(), {"q": context}).sha256() == after.sha256()


@pytest.mark.parametrize(("shape", "message"), [((3,), "must be"), ((3, 2, 32), "must be"), ((0, 32), "must be")])
def test_context_of_a_wrong_shape(tmp_path: Path, shape: tuple[int, ...], message: str) -> None:
    save_file({"q": torch.zeros(shape)}, tmp_path / "c.safetensors")
    text = '[scores.q]\nkind = "quality"\npairs = [["a", "b"]]\ncontext = "c.safetensors:q"\n'
    with pytest.raises(ExportError, match=message):
        read(tmp_path, text)


def test_context_of_another_text_tower(tiny_clip: Any) -> None:
    clip, tokenizer, _ = tiny_clip
    with pytest.raises(ExportError, match="the width of this text tower"):
        encode_texts(clip, tokenizer, ["a"], torch.zeros(1, 3, 64))


@pytest.mark.parametrize(("words", "context"), [(23, 0), (20, 3), (0, 0)])
def test_prompts_that_do_not_fit_are_not_cut(tiny_clip: Any, words: int, context: int) -> None:
    clip, tokenizer, _ = tiny_clip
    with pytest.raises(ExportError, match=f"has {words} tokens"):
        encode_texts(clip, tokenizer, ["good " * words], torch.zeros(1, context, 32) if context else None)
    if words:
        encode_texts(clip, tokenizer, ["good " * (words - 1)], torch.zeros(1, context, 32) if context else None)
