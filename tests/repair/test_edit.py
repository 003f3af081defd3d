"""The edit: the guidance rule, taking apart, decoding under two contexts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffinf.config import RepairConfig
from diffinf.diffusion.autoencoder import DiffusionAutoencoder
from diffinf.diffusion.invert import decode
from diffinf.repair.edit import Inverted, decode_edit, negative_guidance, take_apart
from diffusion.tiny_autoencoder import pictures

IMAGES = pictures(3, 11)
ASSIGNED, APPEARS = torch.tensor([0, 1, 0]), torch.tensor([1, 0, 1])


def settings(**changes: object) -> RepairConfig:
    return RepairConfig(**{"diffusion_steps": 3, "depth": 0.5, "guidance": 2.0, **changes})


@pytest.fixture(scope="module")
def apart(autoencoder: DiffusionAutoencoder) -> Inverted:
    return take_apart(autoencoder, IMAGES, APPEARS, settings())


@pytest.fixture(scope="module")
def moved(apart: Inverted) -> Tensor:
    return apart.code + torch.randn(apart.code.shape, generator=torch.Generator().manual_seed(0))


def test_guidance_extrapolates_from_the_negative_past_the_positive() -> None:
    positive, negative = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(negative_guidance(positive, negative, 0.0), positive)
    for scale in (-1.0, 0.5, 3.0):
        expected = (1 + scale) * positive - scale * negative
        torch.testing.assert_close(negative_guidance(positive, negative, scale), expected)
        assert torch.equal(negative_guidance(positive, positive, scale), positive)
    assert (negative_guidance(positive, negative, 1.0) - positive).abs().max() > 1


def test_guidance_is_linear_in_its_predictions() -> None:
    first, second = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(0))
    combined = negative_guidance(2 * first[0] - second[0], 2 * first[1] - second[1], 1.5)
    parts = 2 * negative_guidance(first[0], first[1], 1.5) - negative_guidance(second[0], second[1], 1.5)
    torch.testing.assert_close(combined, parts)


def test_taking_apart_gives_normalised_codes_and_a_round_trip(
    autoencoder: DiffusionAutoencoder, apart: Inverted
) -> None:
    code = autoencoder.encoder(autoencoder.to_latents(IMAGES))
    torch.testing.assert_close(apart.code, (code - autoencoder.code_mean) / autoencoder.code_std)
    assert apart.noisy.shape == (3, 16, 4, 4)
    assert apart.roundtrip.shape == IMAGES.shape and apart.roundtrip.dtype == torch.uint8


def test_the_round_trip_gets_better_with_more_steps(autoencoder: DiffusionAutoencoder) -> None:
    errors = [
        (take_apart(autoencoder, IMAGES, APPEARS, settings(diffusion_steps=steps)).roundtrip.float() - IMAGES)
        .abs()
        .mean()
        .item()
        for steps in (2, 8, 32)
    ]
    assert errors[2] < 0.5 * errors[1] < 0.25 * errors[0]


def test_a_strength_of_nearly_nothing_is_the_round_trip(
    autoencoder: DiffusionAutoencoder, apart: Inverted, moved: Tensor
) -> None:
    def away(strength: float) -> int:
        edited = decode_edit(autoencoder, apart, moved, ASSIGNED, APPEARS, strength, settings())
        return int((edited.int() - apart.roundtrip.int()).abs().max())

    assert away(1e-6) <= 1  # one grey level of rounding
    assert away(0.25) > 3
    assert away(1.0) > away(0.25)


@pytest.mark.parametrize(("strength", "guidance"), [(1.0, 0.0), (1.0, 2.0), (0.5, 2.0)])
def test_the_edit_is_guided_away_from_the_code_and_label_as_they_were(
    autoencoder: DiffusionAutoencoder, apart: Inverted, moved: Tensor, strength: float, guidance: float
) -> None:
    def context(code: Tensor, labels: Tensor) -> Tensor:
        raw = code * autoencoder.code_std + autoencoder.code_mean
        return autoencoder.denoiser.context(raw, labels)

    positive = context((1 - strength) * apart.code + strength * moved, ASSIGNED)
    negative = context(apart.code, APPEARS)
    pull = strength * (1 + guidance)  # weight of the step from the negative to the positive prediction

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        away = autoencoder.denoiser(noisy, t, negative)
        return away + pull * (autoencoder.denoiser(noisy, t, positive) - away)

    expected = autoencoder.to_images(decode(autoencoder, apart.noisy, predict, steps=3, depth=0.5))
    edited = decode_edit(
        autoencoder, apart, moved, ASSIGNED, APPEARS, strength, settings(guidance=guidance)
    )
    assert (edited.int() - expected.int()).abs().max() <= 1


def test_with_one_context_nothing_is_edited(autoencoder: DiffusionAutoencoder, apart: Inverted) -> None:
    edited = decode_edit(
        autoencoder, apart, apart.code, APPEARS, APPEARS, 1.0, settings(guidance=5.0)
    )
    assert (edited.int() - apart.roundtrip.int()).abs().max() <= 1


def test_samples_of_a_batch_do_not_touch_each_other(
    autoencoder: DiffusionAutoencoder, apart: Inverted, moved: Tensor
) -> None:
    together = decode_edit(autoencoder, apart, moved, ASSIGNED, APPEARS, 1.0, settings())
    one = Inverted(apart.code[1:2], apart.noisy[1:2], apart.roundtrip[1:2])
    alone = decode_edit(autoencoder, one, moved[1:2], ASSIGNED[1:2], APPEARS[1:2], 1.0, settings())
    assert (together[1:2].int() - alone.int()).abs().max() <= 1
