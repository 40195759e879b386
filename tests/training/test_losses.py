"""Losses against SciPy, hand-written formulas and their own gradients."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats
from scipy.special import log_softmax, softmax

from declip_training.losses import antonym_logit, image_to_text, indifference, ladder_loss, plcc_loss, soft_levels

GENERATOR = torch.Generator().manual_seed(0)


def unit(*shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=GENERATOR), dim=-1)


def test_image_to_text_is_equation_6_with_extra_negatives() -> None:
    images, texts, scale = unit(5, 8), unit(9, 8), 1 / 0.07
    logits = scale * images.numpy() @ texts.numpy().T
    expected = -np.mean(log_softmax(logits, axis=1)[np.arange(5), np.arange(5)])
    assert abs(float(image_to_text(images, texts, scale)) - expected) < 1e-5


def test_indifference_is_the_divergence_from_uniform() -> None:
    images, texts = unit(5, 8), unit(9, 8)
    expected = np.mean([stats.entropy(np.full(9, 1 / 9), softmax(12.0 * i @ texts.numpy().T)) for i in images.numpy()])
    assert abs(float(indifference(images, texts, 12.0)) - expected) < 1e-5
    assert abs(float(indifference(images, unit(1, 8).expand(9, 8), 12.0))) < 1e-5


def test_antonym_logit_is_equation_8() -> None:
    images, pair = unit(6, 8), unit(2, 8)
    expected = softmax(10 * images.numpy() @ pair.numpy().T, axis=1)[:, 0]
    assert np.allclose(torch.sigmoid(antonym_logit(images, pair, 10.0)).numpy(), expected, atol=1e-6)


def test_plcc_loss_agrees_with_scipy_and_is_scale_free() -> None:
    a, b = torch.randn(40, generator=GENERATOR), torch.randn(40, generator=GENERATOR)
    expected = 1 - stats.pearsonr(a.numpy(), b.numpy()).statistic
    assert abs(float(plcc_loss(a, b)) - expected) < 1e-5
    assert abs(float(plcc_loss(7 * a + 3, b)) - expected) < 1e-5


def test_plcc_loss_of_a_constant_has_finite_gradients() -> None:
    constant = torch.zeros(5, requires_grad=True)
    plcc_loss(constant, torch.arange(5.0)).backward()
    assert constant.grad is not None
    assert torch.isfinite(constant.grad).all()


def test_soft_levels_are_probabilities_whose_mean_is_the_opinion() -> None:
    mos = torch.tensor([0.0, 0.1, 0.5, 0.77, 1.0, 1.3])
    levels = soft_levels(mos)
    assert torch.allclose(levels.sum(1), torch.ones(6))
    assert (levels > 0).sum(1).max() <= 2
    assert torch.allclose(levels @ torch.linspace(0, 1, 5), mos.clamp(0, 1), atol=1e-6)


def test_ladder_loss_is_zero_only_when_every_step_falls_enough() -> None:
    severities = torch.tensor([[0.0, 0.2, 0.6, 1.0]])
    falling = -2.0 * severities
    assert float(ladder_loss(falling, severities, margin=2.0)) < 1e-6
    assert float(ladder_loss(-falling, severities, margin=2.0)) > 1.0
    one_flat = falling.clone()
    one_flat[0, 3] = one_flat[0, 2]
    assert float(ladder_loss(one_flat, severities, margin=2.0)) > 0.1
