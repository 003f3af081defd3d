"""The latent prior: it draws what it was trained on, by class, and its training can be killed."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffinf.diffusion import prior as module
from diffinf.diffusion.invert import default_scheduler
from diffinf.diffusion.prior import PRIOR_CHECKPOINT, LatentPrior, train_prior
from diffinf.training.loop import batch_indices, fit

N = 400
SCHEDULER = default_scheduler()
LABELS = torch.arange(N) % 2
SHARES = torch.eye(2)[LABELS]
MEANS = torch.tensor([[1.5, 0.0, -1.0], [-1.5, 0.0, 1.0]])
CODES = MEANS[LABELS] + 0.3 * torch.randn(N, 3, generator=torch.Generator().manual_seed(0))


def train_here(directory: Path, steps: int, seed: int = 0) -> LatentPrior:
    return train_prior(
        CODES,
        SHARES,
        SCHEDULER.alphas_cumprod,
        steps=steps,
        seed=seed,
        device=torch.device("cpu"),
        directory=directory,
    )[0]


def weights(prior: LatentPrior) -> Tensor:
    return torch.cat([values.flatten() for values in prior.state_dict().values()])


def test_it_draws_the_codes_of_the_class_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH_SIZE", 64)
    prior = train_here(tmp_path, 400)
    assert not prior.training and not any(p.requires_grad for p in prior.parameters())
    for label in (0, 1):
        shares = torch.eye(2)[torch.full((200,), label)]
        drawn = prior.sample(shares, SCHEDULER, steps=25, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(drawn.mean(0), MEANS[label], rtol=0, atol=0.2)
        torch.testing.assert_close(drawn.std(0), torch.full((3,), 0.3), rtol=0, atol=0.15)


def test_drawing_is_a_function_of_the_generator(tmp_path: Path) -> None:
    prior = train_here(tmp_path, 2)
    one, same, other = (
        prior.sample(SHARES[:5], SCHEDULER, steps=3, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert one.shape == (5, 3)
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_killed_training_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fit", partial(fit, save_every=2))
    whole = train_here(tmp_path / "whole", 6)

    def killed(n: int, batch_size: int, seed: int, step: int) -> Tensor:
        if step == 5:
            raise KeyboardInterrupt
        return batch_indices(n, batch_size, seed, step)

    with monkeypatch.context() as patch:
        patch.setattr(module, "batch_indices", killed)
        with pytest.raises(KeyboardInterrupt):
            train_here(tmp_path / "killed", 6)
    assert (tmp_path / "killed" / PRIOR_CHECKPOINT).exists()
    torch.manual_seed(3)  # the state of the global generator is nothing to it
    assert torch.equal(weights(train_here(tmp_path / "killed", 6)), weights(whole))
    assert not torch.equal(weights(train_here(tmp_path / "other", 6, seed=1)), weights(whole))
