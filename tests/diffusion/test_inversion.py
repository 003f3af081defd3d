"""Inversion and decoding where the trajectories are known, under every scheduler that has an inverse."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDIMInverseScheduler, DPMSolverMultistepInverseScheduler, EulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffinf.diffusion.invert import (
    check_scheduler,
    decode,
    default_scheduler,
    invert,
    most_steps,
    timestep_grid,
)
from diffinf.errors import UserError
from diffusion.schedulers import ddim, dpm

TIMESTEPS = 1000
DEFAULT, DDIM = default_scheduler(TIMESTEPS), ddim(TIMESTEPS)
FIRST_ORDER = pytest.mark.parametrize("scheduler", [DEFAULT, DDIM], ids=["default", "ddim"])
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


@FIRST_ORDER
@pytest.mark.parametrize("depth", [0.3, 0.7, 1.0])
def test_inversion_converges_to_the_exact_trajectory(scheduler: Any, clean: Tensor, depth: float) -> None:
    exact = exact_trajectory(clean, depth)
    errors = [
        (invert(scheduler, clean, exact_v, steps=steps, depth=depth) - exact).abs().max().item()
        for steps in (25, 50, 100)
    ]
    # First order: twice the steps, half the error.
    assert errors[1] < 0.65 * errors[0] and errors[2] < 0.65 * errors[1]
    assert errors[2] < 0.1


def angle(level: int | None) -> Tensor:
    """The angle whose cos² is alpha at a timestep; None is the clean image itself."""
    return torch.tensor(0.0, dtype=torch.float64) if level is None else ALPHAS[level].sqrt().acos()


def turned(latents: Tensor, start: int | None, end: int | None, asked: int) -> Tensor:
    """`latents` from one level to another: a rotation in the plane of latents and v (arXiv 2202.00512)."""
    turn = angle(end) - angle(start)
    return turn.cos() * latents + turn.sin() * curved_v(latents, torch.full((len(latents),), asked))


ANY_STEPS = pytest.mark.parametrize(("steps", "depth"), [(1, 1.0), (3, 0.7), (10, 0.4)])


@ANY_STEPS
def test_the_default_is_asked_at_the_level_that_it_leaves(clean: Tensor, steps: int, depth: float) -> None:
    levels = [0, *timestep_grid(TIMESTEPS, steps, depth)]  # the clean image is at timestep 0
    up = down = clean
    for start, end in pairwise(levels):
        up = turned(up, start, end, asked=start)
    for start, end in pairwise(levels[::-1]):
        down = turned(down, start, end, asked=start)
    torch.testing.assert_close(invert(DEFAULT, clean, curved_v, steps=steps, depth=depth), up, **FLOAT32)
    torch.testing.assert_close(decode(DEFAULT, clean, curved_v, steps=steps, depth=depth), down, **FLOAT32)


@ANY_STEPS
def test_ddim_is_asked_at_the_noisier_level(clean: Tensor, steps: int, depth: float) -> None:
    levels = [
        None,
        *timestep_grid(TIMESTEPS, steps, depth),
    ]  # no level has as little noise as the clean image
    up = down = clean
    for start, end in pairwise(levels):
        assert end is not None
        up = turned(up, start, end, asked=end)
    for start, end in pairwise(levels[::-1]):
        assert start is not None
        down = turned(down, start, end, asked=start)
    torch.testing.assert_close(invert(DDIM, clean, curved_v, steps=steps, depth=depth), up, **FLOAT32)
    torch.testing.assert_close(decode(DDIM, clean, curved_v, steps=steps, depth=depth), down, **FLOAT32)


@FIRST_ORDER
@pytest.mark.parametrize("depth", [0.3, 0.7, 1.0])
def test_decoding_converges_to_the_clean_latents(scheduler: Any, clean: Tensor, depth: float) -> None:
    noisy = exact_trajectory(clean, depth)
    errors = [
        (decode(scheduler, noisy, exact_v, steps=steps, depth=depth) - clean).abs().max().item()
        for steps in (25, 50, 100)
    ]
    assert errors[1] < 0.65 * errors[0] and errors[2] < 0.65 * errors[1]
    assert errors[2] < 0.1


@FIRST_ORDER
@pytest.mark.parametrize("depth", [0.5, 1.0])
def test_what_was_inverted_is_decoded_ever_better_with_more_steps(
    scheduler: Any, clean: Tensor, depth: float
) -> None:
    errors = []
    for steps in (20, 40, 80, 160):
        noisy = invert(scheduler, clean, exact_v, steps=steps, depth=depth)
        back = decode(scheduler, noisy, exact_v, steps=steps, depth=depth)
        errors.append((back - clean).abs().max().item())
    assert all(later < 0.7 * earlier for earlier, later in pairwise(errors)), errors
    assert errors[-1] < 0.1


def curved_v(noisy: Tensor, t: Tensor) -> Tensor:
    """A prediction with nothing special about it."""
    return torch.sin(2 * noisy + t[:, None, None, None] / 300)


def stepped(scheduler: Any, latents: Tensor, steps: int) -> Tensor:
    """What a scheduler does by itself, without respacing."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        v = curved_v(latents, t.expand(len(latents)))
        latents = scheduler.step(v, t, latents, return_dict=False)[0]
    return latents


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_respacing_changes_nothing_where_ddim_can_do_without(clean: Tensor, steps: int) -> None:
    up = stepped(DDIMInverseScheduler.from_config(DDIM.config), clean, steps)
    down = stepped(ddim(), clean, steps)
    torch.testing.assert_close(invert(DDIM, clean, curved_v, steps=steps), up, **FLOAT32)
    torch.testing.assert_close(decode(DDIM, clean, curved_v, steps=steps), down, **FLOAT32)


# DPM-Solver spaces its levels evenly from timestep 0 to 999 = 9 · 111, the grid to 1000.
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 3, 9])
def test_respacing_changes_nothing_where_dpm_solver_can_do_without(
    clean: Tensor, steps: int, order: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    even = [333 * step * 3 // steps for step in range(1, steps + 1)]
    monkeypatch.setattr("diffinf.diffusion.invert.timestep_grid", lambda *_: even)
    down = dpm(solver_order=order, final_sigmas_type="sigma_min")
    up = DPMSolverMultistepInverseScheduler.from_config(down.config)
    expected_up, expected_down = stepped(up, clean, steps), stepped(down, clean, steps)
    torch.testing.assert_close(invert(down, clean, curved_v, steps=steps), expected_up, **FLOAT32)
    torch.testing.assert_close(decode(down, clean, curved_v, steps=steps), expected_down, **FLOAT32)


@pytest.mark.parametrize(
    ("scheduler", "up"),
    [
        (DDIM, [99, 199, 299, 399]),
        (DEFAULT, [0, 99, 199, 299]),
        (dpm(), [0, 99, 199, 299]),
        (dpm(solver_order=3), [0, 99, 199, 299]),
    ],
    ids=["ddim", "default", "second order", "third order"],
)
def test_the_network_is_asked_once_a_step(scheduler: Any, up: list[int]) -> None:
    asked: list[list[int]] = []

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        asked.append(t.tolist())
        return torch.zeros_like(noisy)

    latents = torch.zeros(2, 3, 1, 1)
    invert(scheduler, latents, predict, steps=4, depth=0.4)
    decode(scheduler, latents, predict, steps=4, depth=0.4)
    down = [399, 299, 199, 99]
    assert asked == [[t, t] for t in up + down]


@pytest.mark.parametrize("steps", [4, 8])
@pytest.mark.parametrize(("depth", "share"), [(0.4, 0.5), (0.8, 0.6)])
def test_the_round_trip_of_the_default_is_better_in_few_steps(
    clean: Tensor, steps: int, depth: float, share: float
) -> None:
    def error(scheduler: Any) -> float:
        noisy = invert(scheduler, clean, exact_v, steps=steps, depth=depth)
        back = decode(scheduler, noisy, exact_v, steps=steps, depth=depth)
        return float((back - clean).square().mean())

    assert error(DEFAULT) < share * error(DDIM)


@FIRST_ORDER
def test_a_correction_changes_the_clean_latents_and_keeps_the_noisy_ones(
    scheduler: Any, clean: Tensor
) -> None:
    asked: list[Tensor] = []
    remaining: list[float] = []
    target = torch.full_like(clean, 0.3)
    levels = timestep_grid(TIMESTEPS, 4, 0.8)[::-1]

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        asked.append(noisy)
        return exact_v(noisy, t)

    def correct(predicted: Tensor, left: float) -> Tensor:
        level, noisy = levels[len(remaining)], asked[-1]
        remaining.append(left)
        v = exact_v(noisy, torch.full((len(noisy),), level))
        alpha = ALPHAS[level]
        torch.testing.assert_close(predicted, alpha.sqrt() * noisy - (1 - alpha).sqrt() * v, **FLOAT32)
        return target

    def noise_at(level: int, noisy: Tensor) -> Tensor:
        """What the corrected clean latents leave of the noisy ones."""
        return (noisy - ALPHAS[level].sqrt() * target) / (1 - ALPHAS[level]).sqrt()

    result = decode(scheduler, exact_trajectory(clean, 0.8), predict, steps=4, depth=0.8, correct=correct)
    assert remaining == [1.0, 0.75, 0.5, 0.25]
    # It goes on to the next level.
    for step, low in enumerate(levels[1:]):
        noise = noise_at(levels[step], asked[step])
        expected = ALPHAS[low].sqrt() * target + (1 - ALPHAS[low]).sqrt() * noise
        torch.testing.assert_close(asked[step + 1], expected, **FLOAT32)
    if scheduler is DDIM:
        expected = target
    else:  # the clean image is at timestep 0, where a hundredth of the noise is left
        noise = noise_at(levels[-1], asked[-1])
        expected = ALPHAS[0].sqrt() * target + (1 - ALPHAS[0]).sqrt() * noise
    torch.testing.assert_close(result, expected, **FLOAT32)


@FIRST_ORDER
def test_a_correction_of_nothing_changes_nothing(scheduler: Any, clean: Tensor) -> None:
    noisy = exact_trajectory(clean, 0.8)
    plain = decode(scheduler, noisy, exact_v, steps=5, depth=0.8)
    same = decode(scheduler, noisy, exact_v, steps=5, depth=0.8, correct=lambda predicted, _: predicted)
    assert torch.equal(plain, same)


SCHEDULERS = {
    "default": DEFAULT,
    "default on another schedule": dpm(solver_order=1, beta_schedule="scaled_linear"),
    "default on a cosine, whose end it would clip": dpm(
        solver_order=1, beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1
    ),
    "default without a signal at the end": dpm(solver_order=1, rescale_betas_zero_snr=True),
    "ddim": DDIM,
    "ddim on another schedule": ddim(beta_schedule="scaled_linear"),
    "ddim without a signal at the end": ddim(rescale_betas_zero_snr=True),
    "dpm": dpm(),
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


@pytest.mark.parametrize("scheduler", [DEFAULT, DDIM, dpm()], ids=["default", "ddim", "dpm"])
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


@pytest.mark.parametrize("scheduler", [DEFAULT, DDIM, dpm()], ids=["default", "ddim", "dpm"])
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
        (ddim(clip_sample=True), "clip_sample=True"),
        (ddim(thresholding=True), "thresholding=True"),
        (ddim(prediction_type="epsilon"), "prediction_type=epsilon"),
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


@pytest.mark.parametrize("scheduler", [DEFAULT, dpm()], ids=["default", "dpm"])
def test_a_step_needs_a_level_above_the_clean_image(scheduler: Any) -> None:
    with pytest.raises(UserError, match="choose fewer steps, at most 2"):
        invert(scheduler, torch.zeros(1, 3, 1, 1), curved_v, steps=4, depth=0.004)
    assert invert(scheduler, torch.zeros(1, 3, 1, 1), curved_v, steps=4, depth=0.008).isfinite().all()


@settings(max_examples=200, deadline=None)
@given(timesteps=st.integers(1, 1200), share=st.floats(0, 1), depth=st.floats(0, 1, exclude_min=True))
def test_the_grid_is_ascending_even_and_ends_at_the_depth(timesteps: int, share: float, depth: float) -> None:
    steps = max(1, round(share * timesteps))
    grid = timestep_grid(timesteps, steps, depth)
    assert len(grid) == steps
    assert grid[-1] == max(steps, round(depth * timesteps)) - 1 < timesteps
    gaps = [later - earlier for earlier, later in pairwise([-1, *grid])]
    assert min(gaps) >= 1 and max(gaps) - min(gaps) <= 2


@settings(max_examples=50, deadline=None)
@given(timesteps=st.integers(2, 60), depth=st.floats(0, 1, exclude_min=True))
def test_the_most_steps_are_those_that_the_grid_has_room_for(timesteps: int, depth: float) -> None:
    def has_room(steps: int) -> bool:
        grid = timestep_grid(timesteps, steps, depth)
        return grid[0] > 0 and grid[-1] < round(depth * timesteps)

    most = most_steps(default_scheduler(timesteps), depth)
    assert most == max((steps for steps in range(1, timesteps + 1) if has_room(steps)), default=0)
    assert most_steps(DDIM, depth) == round(depth * TIMESTEPS)


def test_more_steps_than_noise_levels_are_refused_or_bounded() -> None:
    from pydantic import ValidationError

    from diffinf.config import RepairConfig

    try:
        steps = RepairConfig(diffusion_steps=TIMESTEPS + 1).diffusion_steps
    except ValidationError:
        return
    decode(DDIM, torch.zeros(1, 3, 1, 1), exact_v, steps=steps)
