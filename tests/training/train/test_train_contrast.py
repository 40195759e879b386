"""The inner loop's loss against plain torch, SciPy and its own finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch.nn import functional as F

from declip_training import losses
from declip_training.train.contrast import image_to_text, symmetric
from declip_training.train.world import World


def inputs(rows: int, texts: int, dim: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    projected = 3 * torch.randn(rows, dim, generator=generator, dtype=dtype)
    return projected.requires_grad_(), F.normalize(torch.randn(texts, dim, generator=generator, dtype=dtype), dim=-1)


def test_it_is_equation_6_by_scipy() -> None:
    projected, texts = inputs(9, 9, 16, torch.float64)
    unit = F.normalize(projected, dim=-1).detach().numpy()
    expected = -np.diag(log_softmax(unit @ texts.numpy().T / 0.07, axis=1)).mean()
    scale = torch.tensor(1 / 0.07, dtype=torch.float64)
    assert image_to_text(projected, texts, scale).item() == pytest.approx(expected, rel=1e-12)


def test_loss_and_gradients_equal_autograds() -> None:
    projected, texts = inputs(32, 32, 24)
    other = projected.detach().clone().requires_grad_()
    scale, other_scale = (torch.tensor(14.0, requires_grad=True) for _ in range(2))
    ours = image_to_text(projected, texts, scale)
    plain = losses.image_to_text(F.normalize(other, dim=-1), texts, other_scale)
    (2 * ours).backward()
    (2 * plain).backward()
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(projected.grad, other.grad)
    torch.testing.assert_close(scale.grad, other_scale.grad)


def test_parts_of_a_batch_add_up_to_the_whole() -> None:
    projected, texts = inputs(12, 12, 8)
    scale = torch.tensor(10.0)
    whole = image_to_text(projected, texts, scale)
    parts = [image_to_text(projected[first : first + 4], texts, scale, first) for first in (0, 4, 8)]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)
    by_parts = torch.autograd.grad(torch.stack(parts).sum(), projected)
    torch.testing.assert_close(by_parts, torch.autograd.grad(whole, projected))


def test_its_gradient_is_that_of_finite_differences() -> None:
    projected, texts = inputs(5, 7, 6, torch.float64)
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p, s: image_to_text(p, texts, s, 1), (projected, scale))


def test_large_scales_neither_overflow_nor_underflow() -> None:
    projected, _ = inputs(4, 4, 8)
    wrong = -F.normalize(projected.detach(), dim=-1)
    loss = image_to_text(projected, wrong, torch.tensor(1000.0))
    loss.backward()
    assert 900 < loss.item() < 2100
    assert projected.grad is not None
    assert torch.isfinite(projected.grad).all()


def test_bfloat16_products_are_close() -> None:
    projected, texts = inputs(64, 64, 32)
    exact = torch.autograd.grad(image_to_text(projected, texts, torch.tensor(14.3)), projected)[0]
    rounded = torch.autograd.grad(image_to_text(projected, texts.bfloat16(), torch.tensor(14.3)), projected)[0]
    assert rounded.dtype == torch.float32
    assert F.cosine_similarity(exact.flatten(), rounded.flatten(), dim=0) > 0.999


def test_the_symmetric_loss_is_clips() -> None:
    projected, texts = inputs(16, 16, 8)
    other = projected.detach().clone().requires_grad_()
    logits = 14.0 * F.normalize(other, dim=-1) @ texts.T
    target = torch.arange(16)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    ours = symmetric(projected, texts, torch.tensor(14.0), World())
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(torch.autograd.grad(ours, projected), torch.autograd.grad(expected, other))
