"""CoOp: what is learned, from what it starts, and what stays frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import stats
from torch.nn import functional as F

from declip_runtime.errors import ExportError, TrainingError
from declip_training.coop import CoopConfig, Loss, learn_context, opinion_loss, pair_scores, require_room
from declip_training.model.prompts import PromptSet
from declip_training.model.text_encoding import encode_texts

SCALE = 30.0
PAIRS = [("good photo.", "bad photo."), ("nice.", "ugly.")]


@pytest.fixture(scope="module")
def rated() -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised embeddings [200, 32] and opinions 0..1 that follow a direction among them."""
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(200, 32, generator=generator), dim=-1)
    hidden = x @ torch.randn(32, generator=generator)
    return x, torch.sigmoid(2 * hidden / hidden.std())


def agreement(rated: tuple[torch.Tensor, torch.Tensor], pairs: torch.Tensor) -> float:
    x, mos = rated
    return float(stats.spearmanr(pair_scores(x, pairs, SCALE).numpy(), mos.numpy()).statistic)


def learn(tiny_clip: Any, rated: tuple[torch.Tensor, torch.Tensor], config: CoopConfig, **options: Any) -> torch.Tensor:
    clip, tokenizer, _ = tiny_clip
    loss: Loss = opinion_loss(*rated, SCALE, batch=64, **options)
    return learn_context(clip, tokenizer, PAIRS, config, loss, lambda p: agreement(rated, p), lambda line: None)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (CoopConfig(tokens=3, steps=60, lr=2e-2, check_every=20), (2, 3, 32)),
        (CoopConfig(tokens=2, position="after", steps=60, lr=2e-2), (2, 2, 32)),
        (CoopConfig(words="a photo of", position="around", steps=60, lr=2e-2), (2, 3, 32)),
        (CoopConfig(tokens=3, context="prompt", steps=60, lr=2e-2, check_every=20), (2, 2, 3, 32)),
    ],
)
def test_opinions_are_learned_and_the_towers_stay(
    tiny_clip: Any, rated: tuple[torch.Tensor, torch.Tensor], config: CoopConfig, shape: tuple[int, ...]
) -> None:
    clip, tokenizer, _ = tiny_clip
    frozen = {k: v.clone() for k, v in clip.state_dict().items()}
    context = learn(tiny_clip, rated, config)
    assert context.shape == shape
    texts = [t for pair in PAIRS for t in pair]
    with torch.no_grad():
        plain = encode_texts(clip, tokenizer, texts).view(2, 2, -1)
        each = context.flatten(0, 1) if context.ndim == 4 else context.repeat(2, 1, 1)
        learned = encode_texts(clip, tokenizer, texts, each, config.position).view(2, 2, -1)
    assert agreement(rated, learned) > agreement(rated, plain) + 0.2
    assert all(torch.equal(v, frozen[k]) for k, v in clip.state_dict().items())


def test_a_shared_context_starts_from_its_words(tiny_clip: Any, rated: tuple[torch.Tensor, torch.Tensor]) -> None:
    clip, tokenizer, _ = tiny_clip
    config = CoopConfig(words="a photo of", context="shared", steps=1, lr=1e-9)
    context = learn(tiny_clip, rated, config)
    words = clip.token_embedding.weight[tokenizer(["a photo of"])[0, 1:4]]
    assert context.shape == (3, 32)
    torch.testing.assert_close(context, words, atol=1e-6, rtol=0)


def test_the_same_seed_gives_the_same_context(tiny_clip: Any, rated: tuple[torch.Tensor, torch.Tensor]) -> None:
    config = CoopConfig(tokens=2, steps=5)
    one, two = learn(tiny_clip, rated, config), learn(tiny_clip, rated, config)
    assert torch.equal(one, two)
    assert not torch.equal(one, learn(tiny_clip, rated, CoopConfig(tokens=2, steps=5, seed=14)))


def test_the_loss_is_mse_and_pearson(rated: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, mos = rated
    pairs = F.normalize(torch.randn(2, 2, 32, generator=torch.Generator().manual_seed(3)), dim=-1)
    logits = SCALE * torch.einsum("nd,pkd->pnk", x, pairs)
    score = logits.softmax(-1)[..., 0].mean(0).numpy()
    wanted = np.mean((score - mos.numpy()) ** 2) + 0.5 * (1 - stats.pearsonr(score, mos.numpy()).statistic)
    assert opinion_loss(x, mos, SCALE, batch=10**6, plcc=0.5)(pairs, 1).item() == pytest.approx(wanted, abs=1e-5)


def test_wrong_settings(tiny_clip: Any, rated: tuple[torch.Tensor, torch.Tensor]) -> None:
    with pytest.raises(TrainingError, match="at least one token"):
        CoopConfig(tokens=0)
    with pytest.raises(TrainingError, match="Lower the learning rate"):
        learn(tiny_clip, (rated[0], rated[1] * float("nan")), CoopConfig(tokens=2, steps=3))
    with pytest.raises(ExportError, match="Use 1 to 1 with this tower"):
        learn(tiny_clip, rated, CoopConfig(tokens=21, steps=3))
    with pytest.raises(ExportError, match=r"context of 100 vectors leaves no room for words\. Use at most 21"):
        learn(tiny_clip, rated, CoopConfig(tokens=100, steps=3))
    with pytest.raises(TrainingError, match="the seed is -1"):
        CoopConfig(seed=-1)
    with pytest.raises(TrainingError, match="no words to start from"):
        CoopConfig(words="  ")


def test_a_text_tower_of_another_make_is_refused(tiny_clip: Any) -> None:
    class Foreign(torch.nn.Module):
        """As open_clip wraps a Hugging Face text tower: without a token embedding of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.text = torch.nn.Linear(2, 2)

    with pytest.raises(ExportError, match="open_clip's own text tower"):
        require_room(Foreign(), tiny_clip[1], PAIRS, CoopConfig())


@pytest.mark.parametrize("kind", ["side", "prompt"])
def test_a_prompts_file_takes_what_was_learned(
    tiny_clip: Any, rated: tuple[torch.Tensor, torch.Tensor], tmp_path: Path, kind: Any
) -> None:
    clip, tokenizer, _ = tiny_clip
    context = learn(tiny_clip, rated, CoopConfig(tokens=3, context=kind, position="after", steps=5))
    save_file({"quality": context}, tmp_path / "coop.safetensors")
    (tmp_path / "p.toml").write_text(
        '[scores.quality]\nkind = "quality"\npairs = [["good photo.", "bad photo."], ["nice.", "ugly."]]\n'
        'context = "coop.safetensors:quality"\ncontext_position = "after"\n'
    )
    found = PromptSet.read(tmp_path / "p.toml").encode(clip, tokenizer).pairs
    texts = [t for pair in PAIRS for t in pair]
    each = context.flatten(0, 1) if kind == "prompt" else context.repeat(2, 1, 1)
    wanted = encode_texts(clip, tokenizer, texts, each, "after").view(2, 2, -1)
    torch.testing.assert_close(found, wanted)
    if kind == "prompt":
        save_file({"quality": context[:1]}, tmp_path / "coop.safetensors")
        with pytest.raises(ExportError, match="for 1 pairs of prompts, here are 2"):
            PromptSet.read(tmp_path / "p.toml").encode(clip, tokenizer)
