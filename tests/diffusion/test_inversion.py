"""Inversion and decoding where the trajectories are known, under every scheduler that has an inverse."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffinf.diffusion.invert import check_scheduler, decode, default_scheduler, invert, timestep_grid
from diffinf.errors import UserError

TIMESTEPS = 1000
DDIM = default_scheduler(TIMESTEPS)
ALPHAS = (1 - torch.linspace(1e-4, 0.02, TIMESTEPS, dtype=torch.float64)).cumprod(0)

# diffusers keeps its noise levels in float32.
FLOAT32 = {"rtol": 1e-4, "atol": 1e-4}

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
        (invert(DDIM, clean, exact_v, steps=steps, depth=depth) - exact).abs().max().item()
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
    result = invert(DDIM, clean, curved_v, steps=steps, depth=depth)
    torch.testing.assert_close(result, expected, **FLOAT32)


@pytest.mark.parametrize("depth", [0.3, 0.7, 1.0])
def test_decoding_converges_to_the_clean_latents(clean: Tensor, depth: float) -> None:
    noisy = exact_trajectory(clean, depth)
    errors = [
        (decode(DDIM, noisy, exact_v, steps=steps, depth=depth) - clean).abs().max().item()
        for steps in (25, 50, 100)
    ]
    assert errors[1] < 0.65 * errors[0] and errors[2] < 0.65 * errors[1]
    assert errors[2] < 0.1


@pytest.mark.parametrize("depth", [0.5, 1.0])
def test_what_was_inverted_is_decoded_ever_better_with_more_steps(clean: Tensor, depth: float) -> None:
    errors = []
    for steps in (20, 40, 80, 160):
        noisy = invert(DDIM, clean, exact_v, steps=steps, depth=depth)
        back = decode(DDIM, noisy, exact_v, steps=steps, depth=depth)
        errors.append((back - clean).abs().max().item())
    assert all(later < 0.7 * earlier for earlier, later in pairwise(errors)), errors
    assert errors[-1] < 0.1


def curved_v(noisy: Tensor, t: Tensor) -> Tensor:
    """A prediction with nothing special about it."""
    return torch.sin(2 * noisy + t[:, None, None, None] / 300)


@pytest.mark.parametrize(("steps", "depth"), [(1, 1.0), (3, 0.7), (10, 0.4)])
def test_decoding_turns_back_by_the_angle_between_noise_levels(
    clean: Tensor, steps: int, depth: float
) -> None:
    levels = timestep_grid(TIMESTEPS, steps, depth)
    expected = noisy = clean.flip(0)
    for t, below in zip(levels[::-1], [*levels[-2::-1], None], strict=True):
        angle = ALPHAS[t].sqrt().acos() - (0 if below is None else ALPHAS[below].sqrt().acos())
        v = curved_v(expected, torch.full((len(clean),), t))
        expected = angle.cos() * expected - angle.sin() * v
    result = decode(DDIM, noisy, curved_v, steps=steps, depth=depth)
    torch.testing.assert_close(result, expected, **FLOAT32)


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_respacing_changes_nothing_where_the_schedulers_can_do_without(clean: Tensor, steps: int) -> None:
    down, up = DDIM, DDIMInverseScheduler.from_config(DDIM.config)
    for scheduler, respaced in ((up, invert), (down, decode)):
        scheduler.set_timesteps(steps)
        expected = clean
        for t in scheduler.timesteps:
            v = curved_v(expected, t.expand(len(expected)))
            expected = scheduler.step(v, t, expected).prev_sample
        result = respaced(DDIM, clean, curved_v, steps=steps)
        torch.testing.assert_close(result, expected, **FLOAT32)


def test_the_network_is_asked_once_a_step_at_the_noisier_level() -> None:
    asked: list[list[int]] = []

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        asked.append(t.tolist())
        return torch.zeros_like(noisy)

    latents = torch.zeros(2, 3, 1, 1)
    invert(DDIM, latents, predict, steps=4, depth=0.4)
    decode(DDIM, latents, predict, steps=4, depth=0.4)
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
        torch.testing.assert_close(predicted, alpha.sqrt() * noisy - (1 - alpha).sqrt() * v, **FLOAT32)
        return target

    noisy = exact_trajectory(clean, 0.8)
    result = decode(DDIM, noisy, predict, steps=4, depth=0.8, correct=correct)
    assert remaining == [1.0, 0.75, 0.5, 0.25]
    torch.testing.assert_close(result, target, **FLOAT32)
    # The noise explains what the corrected clean latents leave of the noisy ones, and goes on to the next level.
    high, low = (ALPHAS[t] for t in (799, 599))
    noise = (noisy - high.sqrt() * target) / (1 - high).sqrt()
    torch.testing.assert_close(asked[1], low.sqrt() * target + (1 - low).sqrt() * noise, **FLOAT32)


def test_a_correction_of_nothing_changes_nothing(clean: Tensor) -> None:
    noisy = exact_trajectory(clean, 0.8)
    plain = decode(DDIM, noisy, exact_v, steps=5, depth=0.8)
    same = decode(DDIM, noisy, exact_v, steps=5, depth=0.8, correct=lambda predicted, _: predicted)
    assert torch.equal(plain, same)


def dpm(**changes: Any) -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler.from_config(DDIM.config, **changes)


SCHEDULERS = {
    "ddim": DDIM,
    "ddim on another schedule": DDIMScheduler.from_config(DDIM.config, beta_schedule="scaled_linear"),
    "ddim without a signal at the end": DDIMScheduler.from_config(DDIM.config, rescale_betas_zero_snr=True),
    "dpm": dpm(),
    "dpm of first order": dpm(solver_order=1),
    "dpm of third order": dpm(solver_order=3),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_every_scheduler_undoes_its_inverse_up_to_its_steps(scheduler: Any, clean: Tensor) -> None:
    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        alpha = scheduler.alphas_cumprod.double()[t][:, None, None, None]
        variance = alpha * SPREAD**2 + 1 - alpha
        residual = (noisy - alpha.sqrt() * MEAN) / variance
        expected_clean = MEAN + alpha.sqrt() * SPREAD**2 * residual
        return alpha.sqrt() * (1 - alpha).sqrt() * residual - (1 - alpha).sqrt() * expected_clean

    for depth in (0.5, 1.0):
        errors = []
        for steps in (10, 20, 80):
            noisy = invert(scheduler, clean, predict, steps=steps, depth=depth)
            assert noisy.dtype == clean.dtype and noisy.isfinite().all()
            assert torch.equal(noisy, invert(scheduler, clean, predict, steps=steps, depth=depth))
            back = decode(scheduler, noisy, predict, steps=steps, depth=depth)
            errors.append((back - clean).abs().mean().item())
        assert errors[2] < 0.5 * min(errors[:2]) and errors[2] < 0.05, (depth, errors)


@pytest.mark.parametrize("scheduler", [DDIM, dpm()], ids=["ddim", "dpm"])
def test_far_values_are_not_clipped(scheduler: Any) -> None:
    far = torch.full((1, 3, 2, 2), 40.0)

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        alpha = scheduler.alphas_cumprod[t][:, None, None, None]
        return (alpha.sqrt() * noisy - far) / (1 - alpha).sqrt()  # what says that the image is this one

    noisy = invert(scheduler, far, predict, steps=6, depth=0.5)
    assert noisy.mean() > 3
    torch.testing.assert_close(
        decode(scheduler, noisy, predict, steps=6, depth=0.5), far, rtol=1e-2, atol=1e-2
    )


@pytest.mark.parametrize("scheduler", [DDIM, dpm()], ids=["ddim", "dpm"])
def test_a_correction_of_every_step_is_what_comes_out(scheduler: Any, clean: Tensor) -> None:
    left: list[float] = []

    def correct(predicted: Tensor, remaining: float) -> Tensor:
        left.append(remaining)
        return torch.full_like(predicted, 0.3)

    result = decode(scheduler, clean, curved_v, steps=5, depth=0.6, correct=correct)
    assert left == [1.0, 0.8, 0.6, 0.4, 0.2]
    # Down to the last level, which of DPM-Solver is timestep 0: the noise that is left there has a spread of 0.01.
    torch.testing.assert_close(result, torch.full_like(clean, 0.3), rtol=0, atol=0.06)
    same = decode(scheduler, clean, curved_v, steps=5, depth=0.6, correct=lambda predicted, _: predicted + 0)
    torch.testing.assert_close(
        same, decode(scheduler, clean, curved_v, steps=5, depth=0.6), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        (DDIMScheduler.from_config(DDIM.config, clip_sample=True), "clip_sample=True"),
        (DDIMScheduler.from_config(DDIM.config, thresholding=True), "thresholding=True"),
        (DDIMScheduler.from_config(DDIM.config, prediction_type="epsilon"), "prediction_type=epsilon"),
        (dpm(thresholding=True), "thresholding=True"),
        (dpm(use_karras_sigmas=True), "use_karras_sigmas=True"),
        (dpm(algorithm_type="sde-dpmsolver++"), "draws noise"),
        (EulerDiscreteScheduler(), "EulerDiscreteScheduler has no inverse; choose DDIMScheduler or DPM"),
        (None, "NoneType has no inverse"),
    ],
    ids=str,
)
def test_schedulers_whose_way_cannot_be_undone_are_refused(scheduler: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_scheduler(scheduler)
    with pytest.raises(UserError, match=words):
        invert(scheduler, torch.zeros(1, 3, 1, 1), curved_v, steps=2)


def test_the_dpm_solver_needs_a_level_to_leave_out() -> None:
    with pytest.raises(UserError, match="choose fewer steps"):
        invert(dpm(), torch.zeros(1, 3, 1, 1), curved_v, steps=4, depth=0.004)


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
    decode(DDIM, torch.zeros(1, 3, 1, 1), exact_v, steps=steps)
