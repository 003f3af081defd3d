"""Inversion and decoding where the trajectories are known, under every scheduler that has an inverse."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffinf.diffusion.invert import check_scheduler, decode, default_scheduler, invert, timestep_grid
from diffinf.errors import UserError

TIMESTEPS = 1000
ALPHAS = (1 - torch.linspace(1e-4, 0.02, TIMESTEPS, dtype=torch.float64)).cumprod(0)

# Data with one normal distribution a channel.
MEAN = torch.tensor([0.0, 0.7, -1.2], dtype=torch.float64)[None, :, None, None]
SPREAD = torch.tensor([0.5, 1.0, 1.6], dtype=torch.float64)[None, :, None, None]


def exact_v(noisy: Tensor, t: Tensor) -> Tensor:
    """E[v | noisy], which a perfect network would predict of this data."""
    alpha = ALPHAS[t][:, None, None, None]
    residual = noisy - alpha.sqrt() * MEAN
    variance = alpha * SPREAD**2 + 1 - alpha
    clean = MEAN + alpha.sqrt() * SPREAD**2 / variance * residual
    noise = (1 - alpha).sqrt() / variance * residual
    return alpha.sqrt() * noise - (1 - alpha).sqrt() * clean


def exact_trajectory(clean: Tensor, depth: float) -> Tensor:
    """Where the probability flow carries `clean`: as many standard deviations from the mean as before."""
    alpha = ALPHAS[round(depth * TIMESTEPS) - 1]
    return alpha.sqrt() * MEAN + (alpha * SPREAD**2 + 1 - alpha).sqrt() * (clean - MEAN) / SPREAD


@pytest.fixture
def clean() -> Tensor:
    normal = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return MEAN + SPREAD * normal


@pytest.mark.parametrize("depth", [0.3, 0.7, 1.0])
def test_inversion_converges_to_the_exact_trajectory(clean: Tensor, depth: float) -> None:
    exact = exact_trajectory(clean, depth)
    errors = [
        (invert(ALPHAS, clean, exact_v, steps=steps, depth=depth) - exact).abs().max().item()
        for steps in (25, 50, 100)
    ]
    # First order: twice the steps, half the error.
    assert errors[1] < 0.65 * errors[0] and errors[2] < 0.65 * errors[1]
    assert errors[2] < 0.1


@pytest.mark.parametrize(("steps", "depth"), [(1, 1.0), (3, 0.7), (10, 0.4)])
def test_inversion_turns_by_the_angle_between_noise_levels(clean: Tensor, steps: int, depth: float) -> None:
    # With alpha = cos² of an angle, the update is a rotation in the plane of latents and v (arXiv 2202.00512).
    expected, angle = clean, torch.tensor(0.0, dtype=torch.float64)
    for t in timestep_grid(TIMESTEPS, steps, depth):
        target = ALPHAS[t].sqrt().acos()
        v = curved_v(expected, torch.full((len(clean),), t))
        expected = (target - angle).cos() * expected + (target - angle).sin() * v
        angle = target
    torch.testing.assert_close(invert(ALPHAS, clean, curved_v, steps=steps, depth=depth), expected)


@pytest.mark.parametrize("depth", [0.3, 0.7, 1.0])
def test_decoding_converges_to_the_clean_latents(clean: Tensor, depth: float) -> None:
    noisy = exact_trajectory(clean, depth)
    errors = [
        (decode(ALPHAS, noisy, exact_v, steps=steps, depth=depth) - clean).abs().max().item()
        for steps in (25, 50, 100)
    ]
    assert errors[1] < 0.65 * errors[0] and errors[2] < 0.65 * errors[1]
    assert errors[2] < 0.1


@pytest.mark.parametrize("depth", [0.5, 1.0])
def test_what_was_inverted_is_decoded_ever_better_with_more_steps(clean: Tensor, depth: float) -> None:
    errors = []
    for steps in (20, 40, 80, 160):
        noisy = invert(ALPHAS, clean, exact_v, steps=steps, depth=depth)
        back = decode(ALPHAS, noisy, exact_v, steps=steps, depth=depth)
        errors.append((back - clean).abs().max().item())
    assert all(later < 0.7 * earlier for earlier, later in pairwise(errors)), errors
    assert errors[-1] < 0.1


def curved_v(noisy: Tensor, t: Tensor) -> Tensor:
    """A prediction with nothing special about it."""
    return torch.sin(2 * noisy + t[:, None, None, None] / 300)


@pytest.mark.parametrize("predict", [exact_v, curved_v])
@pytest.mark.parametrize("steps", [1, 4, 10])
def test_decoding_is_ddim_of_diffusers(
    clean: Tensor, steps: int, predict: Callable[[Tensor, Tensor], Tensor]
) -> None:
    ddim = scheduler(steps)
    noisy = expected = clean.flip(0)
    assert ddim.timesteps.tolist() == timestep_grid(TIMESTEPS, steps, 1.0)[::-1]
    for t in ddim.timesteps:
        v = predict(expected, t.expand(len(expected)))
        expected = ddim.step(v, t, expected, eta=0.0).prev_sample
    result = decode(ALPHAS, noisy, predict, steps=steps)
    # diffusers keeps its noise levels in float32.
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_the_network_is_asked_once_a_step_at_the_noisier_level() -> None:
    asked: list[list[int]] = []

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        asked.append(t.tolist())
        return torch.zeros_like(noisy)

    latents = torch.zeros(2, 3, 1, 1)
    invert(ALPHAS, latents, predict, steps=4, depth=0.4)
    decode(ALPHAS, latents, predict, steps=4, depth=0.4)
    up = [[99, 99], [199, 199], [299, 299], [399, 399]]
    assert asked == up + up[::-1]


def test_a_correction_changes_the_clean_latents_and_keeps_the_noisy_ones(clean: Tensor) -> None:
    asked: list[Tensor] = []
    remaining: list[float] = []
    target = torch.full_like(clean, 0.3)

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        asked.append(noisy)
        return exact_v(noisy, t)

    def correct(predicted: Tensor, left: float) -> Tensor:
        remaining.append(left)
        alpha = ALPHAS[timestep_grid(TIMESTEPS, 4, 0.8)[4 - len(remaining)]]
        noisy = asked[-1]
        v = exact_v(noisy, torch.full((len(noisy),), timestep_grid(TIMESTEPS, 4, 0.8)[4 - len(remaining)]))
        torch.testing.assert_close(predicted, alpha.sqrt() * noisy - (1 - alpha).sqrt() * v)
        return target

    noisy = exact_trajectory(clean, 0.8)
    result = decode(ALPHAS, noisy, predict, steps=4, depth=0.8, correct=correct)
    assert remaining == [1.0, 0.75, 0.5, 0.25]
    torch.testing.assert_close(result, target)
    # The noise explains what the corrected clean latents leave of the noisy ones, and goes on to the next level.
    high, low = (ALPHAS[t] for t in (799, 599))
    noise = (noisy - high.sqrt() * target) / (1 - high).sqrt()
    torch.testing.assert_close(asked[1], low.sqrt() * target + (1 - low).sqrt() * noise)


def test_a_correction_of_nothing_changes_nothing(clean: Tensor) -> None:
    noisy = exact_trajectory(clean, 0.8)
    plain = decode(ALPHAS, noisy, exact_v, steps=5, depth=0.8)
    same = decode(ALPHAS, noisy, exact_v, steps=5, depth=0.8, correct=lambda predicted, _: predicted)
    assert torch.equal(plain, same)


@settings(max_examples=200, deadline=None)
@given(timesteps=st.integers(1, 1200), share=st.floats(0, 1), depth=st.floats(0, 1, exclude_min=True))
def test_the_grid_is_ascending_even_and_ends_at_the_depth(timesteps: int, share: float, depth: float) -> None:
    steps = max(1, round(share * timesteps))
    grid = timestep_grid(timesteps, steps, depth)
    assert len(grid) == steps
    assert grid[-1] == max(steps, round(depth * timesteps)) - 1 < timesteps
    gaps = [later - earlier for earlier, later in pairwise([-1, *grid])]
    assert min(gaps) >= 1 and max(gaps) - min(gaps) <= 2


def test_more_steps_than_noise_levels_are_refused_or_bounded() -> None:
    from pydantic import ValidationError

    from diffinf.config import RepairConfig

    try:
        steps = RepairConfig(diffusion_steps=TIMESTEPS + 1).diffusion_steps
    except ValidationError:
        return
    decode(ALPHAS, torch.zeros(1, 3, 1, 1), exact_v, steps=steps)
