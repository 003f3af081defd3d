"""The head that stands in for a recogniser: it learns what a code can tell, and says when it cannot."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffinf.features.distil import LEAST_IMAGES, distil_identity

COMMON = 4.0  # what all vectors of the teacher share


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def taught(count: int, size: int = 6) -> tuple[Tensor, Tensor]:
    """Codes and the unit vectors of a teacher that is linear in them, most of which is the same for all."""
    codes, weight = normal(count, size, seed=0), normal(size, 16, seed=1)
    shared = COMMON * F.normalize(normal(1, 16, seed=2), dim=1)
    return codes, F.normalize(shared + 0.1 * codes @ weight, dim=1)


def test_a_linear_teacher_is_learned() -> None:
    codes, vectors = taught(200)
    head, quality = distil_identity(codes, vectors, seed=0)
    assert (quality.trained, quality.held_out) == (160, 40)
    assert quality.cosine > 0.97 and quality.auroc > 0.99
    unseen = normal(50, 6, seed=5)
    torch.testing.assert_close(head(unseen).norm(dim=1), torch.ones(50))
    target = F.normalize(unseen @ normal(6, 16, seed=1), dim=1)
    target = F.normalize(
        target - (target @ vectors.mean(0))[:, None] * F.normalize(vectors.mean(0), dim=0), dim=1
    )
    assert (head(unseen) * target).sum(1).mean() > 0.9


def test_codes_that_tell_nothing_are_known_to_tell_nothing() -> None:
    _, vectors = taught(300)
    _, quality = distil_identity(normal(300, 6, seed=9), vectors, seed=0)
    # The raw cosines of these vectors are high throughout: what is shared must not count as learned.
    assert (vectors @ vectors.T).mean() > 0.9
    assert abs(quality.cosine) < 0.2 and abs(quality.auroc - 0.5) < 0.12


def test_a_code_larger_than_the_images_are_many_does_not_break_it() -> None:
    codes, vectors = taught(60)
    wide = torch.cat([codes, normal(60, 200, seed=3)], dim=1)
    quality = distil_identity(wide, vectors, seed=0)[1]
    assert quality.auroc > 0.55


def test_the_head_has_a_gradient_in_the_code_and_none_of_its_own() -> None:
    head, _ = distil_identity(*taught(100), seed=0)
    assert not any(weight.requires_grad for weight in head.parameters())
    code = normal(3, 6, seed=4).requires_grad_(True)
    (gradient,) = torch.autograd.grad(head(code)[:, 0].sum(), code)
    assert (gradient.abs().sum(1) > 0).all()


def test_the_same_seed_gives_the_same_head() -> None:
    codes, vectors = taught(100)
    first, again, other = (distil_identity(codes, vectors, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first[0].linear.weight, again[0].linear.weight) and first[1] == again[1]
    assert not torch.equal(first[0].linear.weight, other[0].linear.weight)


def test_too_few_images_are_refused() -> None:
    codes, vectors = taught(LEAST_IMAGES - 1)
    with pytest.raises(ValueError, match=f"at least {LEAST_IMAGES} images"):
        distil_identity(codes, vectors, seed=0)
