"""The surrogate: what it learns, what it says of itself, and that it is the same every time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from diffinf.repair.surrogate import Surrogate, SurrogateMetrics, train_surrogate

N, D = 600, 6
CODES = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(N) % 2


def trained(flagged: Tensor, *, seed: int = 0, steps: int = 80) -> tuple[Surrogate, SurrogateMetrics]:
    return train_surrogate(CODES, LABELS, flagged, num_classes=2, steps=steps, seed=seed)


def test_separable_flags_are_learned() -> None:
    flagged = CODES[:, 0] + CODES[:, 1] > 0.8
    model, metrics = trained(flagged)
    assert metrics.auroc is not None and metrics.auroc > 0.95
    assert metrics.brier < 0.1
    assert roc_auc_score(flagged.numpy(), model(CODES, LABELS).numpy()) > 0.95
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_flags_that_depend_on_code_and_label_together_are_learned() -> None:
    flagged = torch.where(LABELS == 1, CODES[:, 0] > 0, CODES[:, 0] < 0)
    _, metrics = trained(flagged, steps=200)
    assert metrics.auroc is not None and metrics.auroc > 0.9


def test_flags_at_random_are_predicted_at_chance_and_at_their_rate() -> None:
    flagged = torch.rand(N, generator=torch.Generator().manual_seed(1)) < 0.15
    _, metrics = trained(flagged, steps=25)
    assert metrics.auroc is not None and 0.3 < metrics.auroc < 0.7
    assert sum(n for *_, n in metrics.bins) == metrics.n == N // 2
    # The balance of the training is undone: without that the mean would be near a half.
    assert sum(predicted * n for predicted, _, n in metrics.bins) / metrics.n == pytest.approx(0.15, abs=0.06)


def test_the_calibration_curve_is_that_of_the_held_out_half() -> None:
    _, metrics = trained(CODES[:, 0] > 0.5)
    assert metrics.bins == sorted(metrics.bins)
    assert len({int(predicted * 10) for predicted, *_ in metrics.bins}) == len(metrics.bins) > 3
    observed = sum(share * n for _, share, n in metrics.bins)
    assert observed == pytest.approx(round(observed), abs=1e-3)  # whole samples
    # The variance decomposition bounds the Brier score from below.
    bins = np.array(metrics.bins)
    calibration = ((bins[:, 0] - bins[:, 1]) ** 2 * bins[:, 2]).sum() / metrics.n
    assert metrics.brier >= calibration - 1e-3


@pytest.mark.parametrize("flag", [True, False])
def test_nothing_but_one_kind_of_flag_has_no_curve(flag: bool) -> None:
    model, metrics = trained(torch.full((N,), flag), steps=30)
    assert metrics.auroc is None
    assert metrics.brier < 0.1
    assert model(CODES, LABELS).isfinite().all()


def test_training_is_a_function_of_the_seed() -> None:
    flagged = CODES[:, 0] > 0.5
    torch.manual_seed(1)
    first, metrics = trained(flagged, steps=5)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    second, again = trained(flagged, steps=5)
    assert torch.equal(torch.random.get_rng_state(), before)  # nothing drawn from the caller's generator
    assert metrics == again
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    other_seed, _ = trained(flagged, steps=5, seed=1)
    assert not torch.equal(first.layers[0].weight, other_seed.layers[0].weight)


def test_it_is_measured_on_samples_it_was_not_trained_on() -> None:
    # Memorising random flags of 600 samples in 500 steps is possible; predicting the others is not.
    flagged = torch.rand(N, generator=torch.Generator().manual_seed(3)) < 0.5
    model, metrics = trained(flagged, steps=500)
    assert roc_auc_score(flagged.numpy(), model(CODES, LABELS).numpy()) > 0.65
    assert metrics.auroc is not None and metrics.auroc < 0.62


def test_the_logit_is_differentiable_in_the_code() -> None:
    model, _ = trained(CODES[:, 0] > 0.5, steps=40)
    code = CODES[:5].clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(model(code, LABELS[:5]).sum(), code)
    assert (gradient[:, 0] > 0).all()  # towards the flagged side
