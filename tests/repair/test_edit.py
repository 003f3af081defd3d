"""The edit: the guidance rule, taking apart, decoding under two contexts, keeping what was not edited."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffinf.config import RepairConfig
from diffinf.diffusion.autoencoder import DiffusionAutoencoder
from diffinf.diffusion.invert import decode
from diffinf.repair.edit import (
    decode_edit,
    guided,
    keep_unchanged,
    negative_guidance,
    take_apart,
)
from diffinf.repair.editors import Inverted, Wish
from diffusion.tiny_autoencoder import pictures

IMAGES = pictures(3, 11)
ASSIGNED = torch.tensor([0, 1, 0])
SHOWN = torch.tensor([[0.1, 0.9], [1.0, 0.0], [0.3, 0.7]])


def settings(**changes: object) -> RepairConfig:
    return RepairConfig(**{"diffusion_steps": 3, "depth": 0.5, "guidance": 2.0, **changes})


@pytest.fixture(scope="module")
def apart(autoencoder: DiffusionAutoencoder) -> Inverted:
    return take_apart(autoencoder, IMAGES, SHOWN, settings())


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
        (take_apart(autoencoder, IMAGES, SHOWN, settings(diffusion_steps=steps)).roundtrip.float() - IMAGES)
        .abs()
        .mean()
        .item()
        for steps in (2, 8, 32)
    ]
    assert errors[2] < 0.5 * errors[1] < 0.25 * errors[0]


def test_an_inversion_may_take_other_steps_than_the_decode(autoencoder: DiffusionAutoencoder) -> None:
    def noisy(**changes: object) -> Tensor:
        return take_apart(autoencoder, IMAGES, SHOWN, settings(**changes)).noisy

    assert torch.equal(noisy(inversion_steps=8), noisy(diffusion_steps=8))
    assert torch.equal(noisy(inversion_steps=8, diffusion_steps=2), noisy(diffusion_steps=8))


def test_a_strength_of_nearly_nothing_is_the_round_trip(
    autoencoder: DiffusionAutoencoder, apart: Inverted, moved: Tensor
) -> None:
    def away(strength: float) -> int:
        edited = decode_edit(autoencoder, apart, Wish(moved, ASSIGNED, SHOWN), strength, settings())
        return int((edited.int() - apart.roundtrip.int()).abs().max())

    assert away(1e-6) <= 1  # one grey level of rounding
    assert away(0.25) > 3
    assert away(1.0) > away(0.25)


def test_above_full_strength_the_guide_alone_pulls_harder(
    autoencoder: DiffusionAutoencoder, apart: Inverted, moved: Tensor
) -> None:
    def edited(strength: float, guide_scale: float) -> Tensor:
        config = settings(guide_scale=guide_scale)
        return decode_edit(autoencoder, apart, Wish(moved, ASSIGNED, SHOWN), strength, config).int()

    assert torch.equal(edited(2.0, 0.0), edited(1.0, 0.0))
    assert torch.equal(edited(2.0, 0.1), edited(1.0, 0.2))
    assert not torch.equal(edited(2.0, 0.1), edited(1.0, 0.1))


@pytest.mark.parametrize(("strength", "guidance"), [(1.0, 0.0), (1.0, 2.0), (0.5, 2.0)])
def test_the_edit_is_guided_away_from_what_the_image_shows(
    autoencoder: DiffusionAutoencoder, apart: Inverted, moved: Tensor, strength: float, guidance: float
) -> None:
    config = settings(guidance=guidance, guide_scale=0.0)
    raw = ((1 - strength) * apart.code + strength * moved) * autoencoder.code_std + autoencoder.code_mean
    appearance = autoencoder.encoder.appearance(raw)
    positive = autoencoder.denoiser.context(appearance, torch.eye(2)[ASSIGNED])
    negative = autoencoder.denoiser.context(appearance, SHOWN)
    pull = strength * (1 + guidance)  # weight of the step from the negative to the positive prediction

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        away = autoencoder.denoiser(noisy, t, negative)
        return away + pull * (autoencoder.denoiser(noisy, t, positive) - away)

    expected = autoencoder.to_images(decode(autoencoder.scheduler, apart.noisy, predict, steps=3, depth=0.5))
    edited = decode_edit(autoencoder, apart, Wish(moved, ASSIGNED, SHOWN), strength, config)
    assert (edited.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_where_the_image_shows_its_label_nothing_is_edited(
    autoencoder: DiffusionAutoencoder, strength: float
) -> None:
    shown = torch.eye(2)[ASSIGNED]
    apart = take_apart(autoencoder, IMAGES, shown, settings())
    edited = decode_edit(
        autoencoder,
        apart,
        Wish(apart.code, ASSIGNED, shown),
        strength,
        settings(guidance=5.0, guide_scale=0.0),
    )
    assert (edited.int() - apart.roundtrip.int()).abs().max() <= 1


def test_samples_of_a_batch_do_not_touch_each_other(
    autoencoder: DiffusionAutoencoder, apart: Inverted, moved: Tensor
) -> None:
    together = decode_edit(autoencoder, apart, Wish(moved, ASSIGNED, SHOWN), 1.0, settings())
    one = Inverted(apart.code[1:2], apart.noisy[1:2], apart.roundtrip[1:2])
    alone = decode_edit(autoencoder, one, Wish(moved[1:2], ASSIGNED[1:2], SHOWN[1:2]), 1.0, settings())
    assert (together[1:2].int() - alone.int()).abs().max() <= 1


@pytest.fixture
def clean(autoencoder: DiffusionAutoencoder) -> Tensor:
    return autoencoder.to_latents(IMAGES)


def moves(guided_latents: Tensor, clean: Tensor) -> Tensor:
    """Where each sample moved, bool (B, h, w)."""
    return ((guided_latents - clean).abs() > 0).any(1)


def test_the_guide_moves_every_sample_by_its_scale(autoencoder: DiffusionAutoencoder, clean: Tensor) -> None:
    for scale in (0.1, 0.5):
        step = guided(autoencoder, clean, ASSIGNED, scale, settings()) - clean
        torch.testing.assert_close(step.square().mean((1, 2, 3)).sqrt(), torch.full((3,), scale))
    assert torch.equal(guided(autoencoder, clean, ASSIGNED, 0.0, settings()), clean)


def test_the_guide_makes_the_label_likelier(autoencoder: DiffusionAutoencoder, clean: Tensor) -> None:
    config = settings(guide_noise=0.0)

    def share(latents: Tensor, labels: Tensor) -> Tensor:
        logits = autoencoder.guide(autoencoder.first_stage.decode(latents))
        return logits.softmax(1)[torch.arange(3), labels]

    for labels in (ASSIGNED, 1 - ASSIGNED):
        after = guided(autoencoder, clean, labels, 0.05, config)
        assert (share(after, labels) > share(clean, labels)).all()


@pytest.mark.parametrize(("share", "positions"), [(0.01, 1), (0.25, 4), (0.5, 8), (1.0, 16)])
def test_the_guide_moves_its_share_of_the_positions(
    autoencoder: DiffusionAutoencoder, clean: Tensor, share: float, positions: int
) -> None:
    moved = guided(autoencoder, clean, ASSIGNED, 0.2, settings(guide_share=share))
    counts = moves(moved, clean).sum((1, 2))
    assert ((counts >= positions) & (counts <= positions + 1)).all()


def test_the_guide_leaves_out_what_is_smooth(autoencoder: DiffusionAutoencoder, clean: Tensor) -> None:
    sums = []
    for smoothness in (0.01, 1.5):  # nothing is smooth to the first
        config = settings(guide_smoothness=smoothness, guide_share=1.0)
        with pytest.MonkeyPatch.context() as patch:
            if smoothness < 1:
                patch.setattr("diffinf.repair.edit._blurred", lambda images, sigma: 0 * images)
            step = guided(autoencoder, clean, ASSIGNED, 1.0, config) - clean
        sums.append(step.mean((2, 3)).square().sum().item())
    assert sums[1] < 0.5 * sums[0]


def test_the_guide_looks_at_each_sample_alone_and_keeps_no_gradients(
    autoencoder: DiffusionAutoencoder, clean: Tensor
) -> None:
    with torch.no_grad():  # as in a decode
        together = guided(autoencoder, clean, ASSIGNED, 0.2, settings())
    alone = guided(autoencoder, clean[1:2], ASSIGNED[1:2], 0.2, settings())
    torch.testing.assert_close(together[1:2], alone, rtol=1e-3, atol=1e-4)
    assert not together.requires_grad
    networks = (autoencoder.encoder, autoencoder.denoiser, autoencoder.guide)
    assert all(p.grad is None for network in networks for p in network.parameters())


def test_the_guide_is_heard_until_it_is_to_be_silent(
    autoencoder: DiffusionAutoencoder, apart: Inverted, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[float] = []

    def counting(
        model: DiffusionAutoencoder, clean: Tensor, labels: Tensor, scale: float, config: Any
    ) -> Tensor:
        heard.append(scale)
        return guided(model, clean, labels, scale, config)

    monkeypatch.setattr("diffinf.repair.edit.guided", counting)
    for until, times in ((0.0, 4), (0.5, 2), (0.6, 2), (1.0, 0)):
        heard.clear()
        config = settings(diffusion_steps=4, guide_until=until, guide_scale=0.3)
        decode_edit(autoencoder, apart, Wish(apart.code, ASSIGNED, SHOWN), 0.5, config)
        assert heard == [0.15] * times


@pytest.mark.parametrize(
    ("editor", "until", "branches"),
    [
        ("contexts", 0.0, [2, 2, 2, 2]),
        ("contexts", 0.5, [2, 2, 1, 1]),
        ("contexts", 0.7, [2, 2, 1, 1]),
        ("guided", 0.25, [2, 2, 2, 1]),
        ("contexts", 1.0, [1, 1, 1, 1]),
        ("guide", 0.0, [1, 1, 1, 1]),
        ("codes", 0.0, [1, 1, 1, 1]),
    ],
)
def test_the_denoiser_is_asked_for_one_branch_where_the_other_does_not_count(
    autoencoder: DiffusionAutoencoder,
    apart: Inverted,
    monkeypatch: pytest.MonkeyPatch,
    editor: str,
    until: float,
    branches: list[int],
) -> None:
    asked: list[Tensor] = []
    original = DiffusionAutoencoder.predict

    def counting(model: DiffusionAutoencoder, noisy: Tensor, t: Tensor, context: Tensor) -> Tensor:
        asked.append(context)
        return original(model, noisy, t, context)

    monkeypatch.setattr(DiffusionAutoencoder, "predict", counting)
    config = settings(diffusion_steps=4, guidance_until=until, editor=editor)
    decode_edit(autoencoder, apart, Wish(apart.code, ASSIGNED, SHOWN), 1.0, config)
    assert [len(context) / len(IMAGES) for context in asked] == branches
    # The branch that is left is that of the assigned label.
    if editor != "codes":
        expected = autoencoder.context(apart.code, torch.eye(2)[ASSIGNED])
        assert all(torch.equal(context[: len(IMAGES)], expected) for context in asked)


def test_without_the_negative_context_to_the_end_an_edit_is_that_of_no_guidance(
    autoencoder: DiffusionAutoencoder, apart: Inverted, moved: Tensor
) -> None:
    wish = Wish(moved, ASSIGNED, SHOWN)
    bare, plain, half = (
        decode_edit(autoencoder, apart, wish, 1.0, settings(editor="contexts", **changes))
        for changes in ({"guidance_until": 1.0}, {"guidance": 0.0}, {"guidance_until": 0.4})
    )
    assert torch.equal(bare, plain) and not torch.equal(bare, half)


SOURCE = pictures(2, 3, size=32, channels=3).clamp(40, 180)


def with_patch(images: Tensor, change: int) -> Tensor:
    """Return the images with their left third brighter."""
    changed = images.clone()
    changed[:, :, :, :10] += change
    return changed


def test_without_an_edit_the_original_is_kept_bit_by_bit() -> None:
    roundtrip = SOURCE.flip(0)  # however bad the round trip is
    assert torch.equal(keep_unchanged(SOURCE, roundtrip, roundtrip, settings()), SOURCE)


def test_a_local_edit_replaces_its_own_pixels_alone() -> None:
    edited = with_patch(SOURCE, 60)
    result = keep_unchanged(SOURCE, SOURCE, edited, settings())
    assert result.dtype == torch.uint8
    assert torch.equal(result[..., :8], edited[..., :8])
    assert torch.equal(result[..., 14:], SOURCE[..., 14:])


def test_the_tint_of_the_round_trip_is_taken_out_of_the_edit() -> None:
    roundtrip = SOURCE - 12
    edited = with_patch(roundtrip, 60)
    result = keep_unchanged(SOURCE, roundtrip, edited, settings())
    assert (result[..., :8].int() - (SOURCE[..., :8].int() + 60)).abs().max() <= 1
    assert torch.equal(result[..., 14:], SOURCE[..., 14:])


def test_small_differences_are_blended_in_by_their_size() -> None:
    # A change of 6 grey levels is 6 / 127.5 in [0, 2].
    share = 6 / 127.5 / 0.12
    result = keep_unchanged(SOURCE, SOURCE, SOURCE + 6, settings(blend_difference=0.12))
    assert (result.float() - SOURCE.float() - 6 * share).abs().max() <= 0.5 + 1e-3


def test_blending_clamps_and_does_not_wrap() -> None:
    white = torch.full((1, 1, 16, 16), 255, dtype=torch.uint8)
    grey = torch.full((1, 1, 16, 16), 100, dtype=torch.uint8)
    assert torch.equal(keep_unchanged(white, grey, grey + 100, settings()), white)
