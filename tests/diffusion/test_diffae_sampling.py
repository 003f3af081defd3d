"""DDIM as DiffAE runs it: against trajectories that are known, and against diffusers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffinf.diffusion.diffae.sampling import ddim_decode, ddim_invert, spaced_timesteps
from diffusion.tiny_diffae import make_diffae, photos

ALPHAS = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
SPREAD = torch.tensor([0.5, 1.0, 1.6], dtype=torch.float64)[None, :, None, None]


def exact_noise(noisy: Tensor, t: Tensor) -> Tensor:
    """E[noise | noisy] where each channel of the data is normal."""
    alpha = ALPHAS[t][:, None, None, None]
    return (1 - alpha).sqrt() * noisy / (alpha * SPREAD**2 + 1 - alpha)


def curved_noise(noisy: Tensor, t: Tensor) -> Tensor:
    """A prediction with nothing special about it."""
    return torch.sin(2 * noisy + t[:, None, None, None] / 300)


@pytest.fixture
def clean() -> Tensor:
    return SPREAD * torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_twenty_steps_are_the_originals() -> None:
    assert spaced_timesteps(1000, 20) == list(range(0, 1000, 50))
    assert spaced_timesteps(1000, 250) == list(range(0, 1000, 4))
    assert spaced_timesteps(1000, 1) == [0]


@settings(max_examples=300, deadline=None)
@given(timesteps=st.integers(1, 1200), share=st.floats(0, 1), depth=st.floats(0, 1, exclude_min=True))
def test_timesteps_start_at_the_image_and_are_even(timesteps: int, share: float, depth: float) -> None:
    steps = max(1, round(share * timesteps))
    found = spaced_timesteps(timesteps, steps, depth)
    assert len(found) == steps and found[0] == 0
    assert found[-1] < max(steps, round(depth * timesteps)) <= timesteps
    gaps = [later - earlier for earlier, later in pairwise(found)]
    assert not gaps or (min(gaps) >= 1 and max(gaps) - min(gaps) <= 1)


def test_inversion_converges_to_pure_noise_of_unit_variance(clean: Tensor) -> None:
    errors = [
        (ddim_invert(clean, exact_noise, ALPHAS, spaced_timesteps(1000, steps)) - clean / SPREAD)
        .abs()
        .max()
        .item()
        for steps in (25, 50, 100, 200)
    ]
    assert all(later < 0.7 * earlier for earlier, later in pairwise(errors)), errors
    assert errors[-1] < 0.05


def test_the_last_step_up_takes_the_noise_itself(clean: Tensor) -> None:
    asked: list[tuple[int, Tensor]] = []

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        asked.append((int(t[0]), noisy))
        return curved_noise(noisy, t)

    timesteps = [0, 300, 999]
    result = ddim_invert(clean, predict, ALPHAS, timesteps)
    assert [t for t, _ in asked] == timesteps and torch.equal(asked[0][1], clean)
    torch.testing.assert_close(result, curved_noise(asked[-1][1], torch.full((6,), 999)))


@pytest.mark.parametrize("predict", [exact_noise, curved_noise])
@pytest.mark.parametrize("steps", [1, 4, 10])
def test_decoding_is_ddim_of_diffusers(
    clean: Tensor, steps: int, predict: Callable[[Tensor, Tensor], Tensor]
) -> None:
    from diffusers import DDIMScheduler  # slow to import

    ddim: Any = DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, clip_sample=False, set_alpha_to_one=True, timestep_spacing="leading"
    )
    ddim.set_timesteps(steps)
    noisy = expected = clean.flip(0)
    assert ddim.timesteps.tolist() == spaced_timesteps(1000, steps)[::-1]
    for t in ddim.timesteps:
        expected = ddim.step(predict(expected, t.expand(6)), t, expected, eta=0.0).prev_sample
    result = ddim_decode(noisy, predict, ALPHAS, spaced_timesteps(1000, steps))
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_a_correction_changes_the_clean_images_and_keeps_the_noisy_ones(clean: Tensor) -> None:
    target, left, asked = torch.full_like(clean, 0.3), [], []

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        asked.append(noisy)
        return exact_noise(noisy, t)

    def correct(predicted: Tensor, remaining: float) -> Tensor:
        left.append(remaining)
        return target

    result = ddim_decode(clean, predict, ALPHAS, [0, 200, 400, 600], correct)
    assert left == [1.0, 0.75, 0.5, 0.25]
    torch.testing.assert_close(result, target)
    high, low = ALPHAS[600], ALPHAS[400]
    noise = (clean - high.sqrt() * target) / (1 - high).sqrt()
    torch.testing.assert_close(asked[1], low.sqrt() * target + (1 - low).sqrt() * noise)


def test_what_was_inverted_to_pure_noise_is_decoded_ever_better_with_more_steps(clean: Tensor) -> None:
    errors = []
    for steps in (20, 40, 80, 160):
        timesteps = spaced_timesteps(1000, steps)
        noise = ddim_invert(clean, exact_noise, ALPHAS, timesteps)
        errors.append((ddim_decode(noise, exact_noise, ALPHAS, timesteps) - clean).abs().max().item())
    assert all(later < 0.7 * earlier for earlier, later in pairwise(errors)), errors
    assert errors[-1] < 0.1


def test_an_image_comes_back_through_the_network_the_better_the_more_steps() -> None:
    model = make_diffae(calm=0.3)
    images = model.to_latents(photos(1, 0))
    context = model.context(model.code(images), torch.zeros(1, 2))
    asked: list[int] = []

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        asked.append(int(t[0]))
        return model.predict(noisy, t, context)

    errors = []
    for steps in (3, 12):
        asked.clear()
        noisy = model.invert_latents(images, predict, steps=steps, depth=0.4)
        back = model.decode_latents(noisy, predict, steps=steps, depth=0.4)
        errors.append((back - images).abs().mean().item())
        timesteps = spaced_timesteps(1000, steps, 0.4)
        assert asked == timesteps[:-1] + timesteps[::-1]
    assert errors[1] < 0.8 * errors[0], errors
