from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diffinf.classify.losses import (
    aldr_kl,
    aldr_temperature,
    early_learning_penalty,
    generalised_cross_entropy,
    moving_targets,
    smoothed,
    squared_earth_mover,
    symmetric_cross_entropy,
)

Loss = Callable[[Tensor, Tensor, float], Tensor]


def sample(n: int = 9, classes: int = 5, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, classes, (n,), generator=generator)


def own(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.softmax(1).gather(1, labels[:, None])[:, 0]


def test_generalised_cross_entropy_and_its_limits() -> None:
    logits, labels = sample()
    p = own(logits, labels)
    torch.testing.assert_close(generalised_cross_entropy(logits, labels, 0.7), (1 - p**0.7) / 0.7)
    nearly = generalised_cross_entropy(logits, labels, 1e-7)
    torch.testing.assert_close(
        nearly, F.cross_entropy(logits, labels, reduction="none"), rtol=1e-5, atol=1e-5
    )
    absolute = (logits.softmax(1) - F.one_hot(labels, 5)).abs().sum(1)
    torch.testing.assert_close(generalised_cross_entropy(logits, labels, 1.0), absolute / 2)


def test_symmetric_cross_entropy_is_the_sum_of_its_parts() -> None:
    logits, labels = sample()
    forward = F.cross_entropy(logits, labels, reduction="none")
    log_of_label = torch.where(F.one_hot(labels, 5) == 1, 0.0, -4.0)
    reverse = -(logits.softmax(1) * log_of_label).sum(1)
    for beta in (0.0, 1.0, 2.5):
        torch.testing.assert_close(
            symmetric_cross_entropy(logits, labels, beta), 0.1 * forward + beta * reverse
        )


def test_moving_targets_average_predictions() -> None:
    first, second = sample()[0], sample(spread=1.0)[0]
    targets = moving_targets(torch.zeros(9, 5, dtype=torch.float64), first.requires_grad_(), 0.7)
    targets = moving_targets(targets, second, 0.7)
    expected = 0.7 * 0.3 * first.detach().softmax(1) + 0.3 * second.softmax(1)
    torch.testing.assert_close(targets, expected, rtol=0, atol=1e-3)  # probabilities are bounded by 1e-4
    torch.testing.assert_close(targets.sum(1), torch.full((9,), 1 - 0.7**2, dtype=torch.float64))
    assert not targets.requires_grad


def test_the_early_learning_penalty_rewards_agreement() -> None:
    logits, labels = sample(spread=1.0)
    targets = F.one_hot(labels, 5).double() * 0.9
    torch.testing.assert_close(
        early_learning_penalty(logits, targets), torch.log(1 - 0.9 * own(logits, labels))
    )
    agreeing = early_learning_penalty(8.0 * F.one_hot(labels, 5).double(), targets)
    assert (agreeing < early_learning_penalty(logits, targets)).all()
    # A prediction that is quite sure still has a finite penalty and gradient.
    sure = (100.0 * F.one_hot(labels, 5).double()).requires_grad_()
    early_learning_penalty(sure, targets / 0.9).sum().backward()  # type: ignore[no-untyped-call]
    assert sure.grad is not None and torch.isfinite(sure.grad).all()


@pytest.mark.parametrize("lambda0", [0.3, 1.0, 10.0])
def test_the_temperature_of_aldr_kl_is_a_fixed_point(lambda0: float) -> None:
    logits, labels = sample(n=40)
    v = logits - logits.gather(1, labels[:, None])
    temperature = aldr_temperature(v, lambda0)
    p = (v / temperature[:, None]).softmax(1)
    divergence = (p * (p * 5).log()).sum(1)
    expected = lambda0 * (1 - divergence / (2 * math.log(5)))
    torch.testing.assert_close(temperature, expected, rtol=1e-4, atol=1e-6)
    assert (temperature <= lambda0).all() and (temperature >= lambda0 / 2).all()


def test_aldr_kl_is_its_worst_case_over_label_distributions() -> None:
    """The soft maximum is max over p of <p, v> - λ KL(p || 1/K); here p is known and everything is spelled out."""
    logits, labels = sample(n=40)
    f = logits / logits.abs().mean(1, keepdim=True)
    v = f - f.gather(1, labels[:, None]) + 0.1 * (1 - F.one_hot(labels, 5))
    temperature = aldr_temperature(v, 2.0)
    p = (v / temperature[:, None]).softmax(1)
    divergence = (p * (p * 5).log()).sum(1)
    penalty = 2 * math.log(5) / (2 * 2.0) * (temperature - 2.0) ** 2
    expected = (p * v).sum(1) - temperature * divergence - penalty
    torch.testing.assert_close(aldr_kl(logits, labels, 2.0), expected)
    torch.testing.assert_close(aldr_kl(3 * logits, labels, 2.0), expected)  # the logits' scale does not count
    assert torch.isfinite(aldr_kl(torch.zeros(2, 5), torch.tensor([0, 1]), 2.0)).all()


@pytest.mark.parametrize(
    ("loss", "knob"),
    [(generalised_cross_entropy, 0.7), (symmetric_cross_entropy, 1.0), (aldr_kl, 1.0)],
)
def test_gradients_agree_with_differences(loss: Loss, knob: float) -> None:
    """In particular the temperature of ALDR-KL needs none of its own, since it maximises the loss."""
    logits, labels = sample(spread=1.0)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, labels, knob), (logits,), atol=1e-4)


@pytest.mark.parametrize(
    ("loss", "knob"),
    [(generalised_cross_entropy, 0.7), (symmetric_cross_entropy, 1.0), (aldr_kl, 10.0)],
)
def test_a_label_that_cannot_be_weighs_less_than_in_cross_entropy(loss: Loss, knob: float) -> None:
    """The gradient of a hopeless sample, relative to that of an undecided one."""

    def pull(loss: Callable[[Tensor, Tensor], Tensor], logits: list[float]) -> float:
        z = torch.tensor([logits], dtype=torch.float64, requires_grad=True)
        loss(z, torch.tensor([0])).sum().backward()  # type: ignore[no-untyped-call]
        assert z.grad is not None
        return float(z.grad.norm())

    def ratio(loss: Callable[[Tensor, Tensor], Tensor]) -> float:
        return pull(loss, [-6.0, 6.0, 0.5]) / pull(loss, [0.6, 0.5, 0.4])

    plain = ratio(lambda z, y: F.cross_entropy(z, y, reduction="none"))
    assert ratio(lambda z, y: loss(z, y, knob)) < 0.75 * plain


def test_the_earth_movers_distance_counts_how_far_off_a_reading_is() -> None:
    sure = 50.0 * torch.eye(4, dtype=torch.float64)
    third = torch.full((4,), 2)
    # Moving all the mass one class costs 1, two classes 2: the cumulative shares differ in as many places.
    torch.testing.assert_close(squared_earth_mover(sure, third), torch.tensor([2.0, 1.0, 0.0, 1.0]).double())
    logits, labels = sample()
    shares = F.one_hot(labels, 5)
    torch.testing.assert_close(squared_earth_mover(logits, labels), squared_earth_mover(logits, shares))
    by_hand = (logits.softmax(1).cumsum(1) - shares.cumsum(1)).square().sum(1)
    torch.testing.assert_close(squared_earth_mover(logits, labels), by_hand)


def test_the_earth_movers_distance_is_least_at_the_true_shares() -> None:
    truth = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    logits = truth.log()[None].requires_grad_()
    expected = sum(truth[k] * squared_earth_mover(logits, torch.tensor([k]))[0] for k in range(3))
    (gradient,) = torch.autograd.grad(torch.as_tensor(expected), logits)
    torch.testing.assert_close(gradient, torch.zeros(1, 3, dtype=torch.float64), atol=1e-12, rtol=0)


def test_smoothing_divides_a_share_among_all_classes() -> None:
    logits, labels = sample()
    ours = F.cross_entropy(logits, smoothed(labels, 5, 0.2).double(), reduction="none")
    torch.testing.assert_close(
        ours, F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.2), rtol=1e-6, atol=1e-6
    )
