"""Projectors and the model around them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from declip_runtime.errors import CheckpointError, UsageError
from declip_training.model.declip import DeCLIP
from declip_training.model.projector import Activation, Projector
from declip_training.model.prompts import PromptSet
from declip_training.model.text_encoding import encode_texts


@pytest.mark.parametrize("form", ["between", "before"])
def test_starts_as_identity_and_has_the_papers_form(form: Activation) -> None:
    projector = Projector(16, activation=form)
    x = torch.randn(5, 16)
    assert torch.equal(projector(x), x)
    assert projector.latent == 1024
    assert projector.down.bias is None
    projector.randomize(torch.Generator().manual_seed(0))
    up, down = projector.up, projector.down
    hidden = F.silu(up(x)) if form == "between" else up(F.silu(x))
    torch.testing.assert_close(projector(x), x + hidden @ down.weight.T)


def test_forms_differ() -> None:
    a, b = (Projector(16, 8, f).randomize(torch.Generator().manual_seed(0)) for f in ("between", "before"))
    x = torch.randn(5, 16)
    assert (a(x) - b(x)).abs().max() > 0.01


def test_randomized_residual_is_worth_testing_with() -> None:
    projector = Projector(512).randomize(torch.Generator().manual_seed(0))
    x = torch.randn(200, 512)
    share = float((projector(x) - x).norm() / x.norm())
    assert 0.2 < share < 1.5


def test_unknown_form() -> None:
    with pytest.raises(UsageError, match="between, before"):
        Projector(8, activation="after")  # type: ignore[arg-type]


def test_without_projectors_it_is_zero_shot_clip(tiny_clip: Any) -> None:
    clip, tokenizer, _ = tiny_clip
    declip = DeCLIP.from_clip(clip, tokenizer, PromptSet.default())
    images = torch.randn(4, 3, 48, 48)
    with torch.no_grad():
        image = F.normalize(clip.encode_image(images), dim=-1)
        text = encode_texts(clip, tokenizer, ["Good photo.", "Bad photo."])
        wanted = (clip.logit_scale.exp() * image @ text.T).softmax(1)[:, 0]  # eq. 8
        out = declip(images)
    torch.testing.assert_close(out.scores[:, 0], wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(out.perceptual, image)
    torch.testing.assert_close(out.semantic, image)
    assert out.scores.shape == (4, 12)


def test_several_pairs_are_averaged_after_the_softmax(tiny_clip: Any) -> None:
    clip, tokenizer, _ = tiny_clip
    pairs = [["Good photo.", "Bad photo."], ["Sharp.", "Blurry."]]
    prompts = PromptSet.from_dict({"scores": {"q": {"kind": "quality", "pairs": pairs}}, "logit_scale": 30.0}, {})
    f = F.normalize(torch.randn(6, 32), dim=-1)
    declip = DeCLIP.from_clip(clip, tokenizer, prompts)
    each = [(30 * f @ encode_texts(clip, tokenizer, p).T).softmax(1)[:, 0] for p in pairs]
    torch.testing.assert_close(declip.scores(f)[:, 0], torch.stack(each).mean(0).detach(), rtol=0, atol=1e-6)


def test_projector_of_another_width(tiny_clip: Any) -> None:
    clip, tokenizer, _ = tiny_clip
    with pytest.raises(CheckpointError, match="width 16, the tower gives 32"):
        DeCLIP.from_clip(clip, tokenizer, PromptSet.default(), Projector(16))


def test_the_tower_stays_frozen_and_in_evaluation_mode(tiny_clip: Any) -> None:
    clip, tokenizer, _ = tiny_clip
    declip = DeCLIP.from_clip(clip, tokenizer, PromptSet.default(), Projector(32), Projector(32)).train()
    assert not declip.visual.training
    assert declip.perceptual.training
    assert {n.split(".")[0] for n, p in declip.named_parameters() if p.requires_grad} == {"perceptual", "semantic"}
