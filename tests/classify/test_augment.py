from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffinf.classify.augment import augment


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.sampled_from([1, 3]), st.integers(8, 40), st.integers(0, 2**31))
def test_shape_range_and_determinism(batch: int, channels: int, side: int, seed: int) -> None:
    x = torch.rand(batch, channels, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    kept = x.clone()
    first, again = (augment(x, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(first, again) and first.shape == x.shape and first.dtype == x.dtype
    assert torch.equal(x, kept)
    assert first.abs().max() <= 1.2 + 0.2 + 1e-6


def test_a_flat_picture_stays_flat_and_every_image_draws_its_own() -> None:
    y = augment(torch.full((64, 3, 16, 16), 0.5), torch.Generator().manual_seed(0))
    assert torch.equal(y, y[:, :1, :1, :1].expand_as(y))
    assert len(y[:, 0, 0, 0].unique()) > 60


def test_images_are_shifted_and_mirrored_not_scrambled() -> None:
    ramp = torch.linspace(-1, 1, 32).expand(1, 1, 32, 32).repeat(200, 1, 1, 1)
    y = augment(ramp, torch.Generator().manual_seed(0))
    assert torch.equal(y, y[:, :, :1].expand_as(y))  # rows are alike: shifts down change nothing
    steps = y[:, 0, 0, 4:-4].diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), atol=1e-5, rtol=0)
    assert (steps[:, 0] < 0).float().mean().item() == pytest.approx(0.5, abs=0.12)  # a mirrored ramp falls
