"""The edit: the guidance rule, taking apart, decoding under two contexts, keeping what was not edited."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffinf.config import RepairConfig
from diffinf.diffusion.autoencoder import DiffusionAutoencoder
from diffinf.diffusion.invert import decode
from diffinf.errors import UserError
from diffinf.repair.edit import (
    Edited,
    _finish,
    check_noise_levels,
    decode_edit,
    guided,
    keep_unchanged,
    negative_guidance,
    take_apart,
)
from diffinf.repair.editors import EDITORS, Inverted, Plan, Wish
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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depth": 0.61}, r"repair\.depth: 0\.61 .*autoencoder\.max_depth \(0\.6\)"),
        ({"finish_depth": 0.7}, r"repair\.finish_depth: 0\.7 .*autoencoder\.max_depth \(0\.6\)"),
        ({"diffusion_steps": 334}, r"repair\.diffusion_steps: 334 .*largest possible number is 333"),
        ({"inversion_steps": 400}, r"repair\.inversion_steps: 400 .*largest possible number is 333"),
        ({"finish_steps": 67, "finish_depth": 0.1}, r"repair\.finish_steps: 67 .*number is 66"),
        ({"depth": 0.001}, r"repair\.diffusion_steps: 3 .*number is 0"),
    ],
)
def test_noise_levels_that_are_not_there_are_refused(
    autoencoder: DiffusionAutoencoder, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        check_noise_levels(settings(**changes), 0.6, autoencoder.most_steps)
    fitting = {"diffusion_steps": 333, "finish_steps": 200, "finish_depth": 0.3}
    check_noise_levels(settings(**fitting), 0.6, autoencoder.most_steps)
    # What is let through can be done.
    autoencoder.invert_latents(
        torch.zeros(1, 16, 4, 4), lambda noisy, t: torch.zeros_like(noisy), steps=333, depth=0.5
    )


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
    assert torch.equal(apart.latents, autoencoder.to_latents(IMAGES))
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


# The untrained denoiser hardly hears the code that "linear" moves.
@pytest.mark.parametrize("editor", [name for name in EDITORS if name != "linear"])
def test_an_edit_grows_from_the_round_trip_without_a_jump(
    autoencoder: DiffusionAutoencoder, apart: Inverted, moved: Tensor, editor: str
) -> None:
    config = settings(editor=editor, fresh_noise=0.1)

    def drawn(strength: float) -> Edited:
        return decode_edit(autoencoder, apart, Wish(moved, ASSIGNED, SHOWN), strength, config)

    def away(strength: float) -> float:
        return float((drawn(strength).drawn.float() - apart.roundtrip.float()).abs().mean())

    assert (drawn(1e-6).drawn.int() - apart.roundtrip.int()).abs().max() <= 1  # one grey level of rounding
    assert (keep_unchanged(IMAGES, apart.roundtrip, drawn(1e-6), config).int() - IMAGES).abs().max() <= 2
    assert 0.5 * away(0.05) <= away(0.1) <= away(0.25) < away(1.0)
    assert away(0.05) < 0.5 * away(1.0)


def test_above_full_strength_the_guide_alone_pulls_harder(
    autoencoder: DiffusionAutoencoder, apart: Inverted, moved: Tensor
) -> None:
    def edited(strength: float, guide_scale: float) -> Tensor:
        config = settings(guide_scale=guide_scale)
        return decode_edit(autoencoder, apart, Wish(moved, ASSIGNED, SHOWN), strength, config).images.int()

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
    assert (edited.images.int() - expected.int()).abs().max() <= 1
    assert torch.equal(edited.drawn, edited.images)


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
    assert (edited.images.int() - apart.roundtrip.int()).abs().max() <= 1


def test_samples_of_a_batch_do_not_touch_each_other(
    autoencoder: DiffusionAutoencoder, apart: Inverted, moved: Tensor
) -> None:
    together = decode_edit(autoencoder, apart, Wish(moved, ASSIGNED, SHOWN), 1.0, settings())
    one = torch.tensor([1])
    alone = decode_edit(autoencoder, apart.at(one), Wish(moved, ASSIGNED, SHOWN).at(one), 1.0, settings())
    for many, single in ((together.images, alone.images), (together.drawn, alone.drawn)):
        assert (many[1:2].int() - single.int()).abs().max() <= 1


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


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, int, Tensor]]:
    """What the denoiser is asked: (noisy latents, timestep, contexts) of each call."""
    calls: list[tuple[Tensor, int, Tensor]] = []
    original = DiffusionAutoencoder.predict

    def noting(model: DiffusionAutoencoder, noisy: Tensor, t: Tensor, context: Tensor) -> Tensor:
        assert t.unique().numel() == 1
        calls.append((noisy.clone(), int(t[0]), context))
        return original(model, noisy, t, context)

    monkeypatch.setattr(DiffusionAutoencoder, "predict", noting)
    return calls


def test_the_guide_is_heard_at_every_step_of_the_drawing_and_then_no_more(
    autoencoder: DiffusionAutoencoder,
    apart: Inverted,
    monkeypatch: pytest.MonkeyPatch,
    asked: list[tuple[Tensor, int, Tensor]],
) -> None:
    heard: list[tuple[int, float, list[int]]] = []

    def noting(
        model: DiffusionAutoencoder, clean: Tensor, labels: Tensor, scale: float, config: Any
    ) -> Tensor:
        heard.append((len(asked), scale, labels.tolist()))
        return guided(model, clean, labels, scale, config)

    monkeypatch.setattr("diffinf.repair.edit.guided", noting)
    config = settings(diffusion_steps=4, finish_steps=2, guide_scale=0.3)
    decode_edit(autoencoder, apart, Wish(apart.code, ASSIGNED, SHOWN), 0.5, config)
    assert heard == [(call, 0.15, ASSIGNED.tolist()) for call in (1, 2, 3, 4)] and len(asked) == 6


@pytest.mark.parametrize(
    ("editor", "changes", "branches"),
    [
        ("guided", {}, [1, 1, 1, 1, 2, 2, 2]),
        ("guided", {"finish_steps": 1}, [1, 1, 1, 1, 2]),
        ("guided", {"guidance": 0.0}, [1] * 7),
        ("guided", {"guide_scale": 0.0}, [2, 2, 2, 2]),
        ("guide", {}, [1] * 7),
        ("contexts", {}, [2, 2, 2, 2]),
        ("renoised", {}, [2, 2, 2, 2]),
        ("contexts", {"guidance": 0.0}, [1, 1, 1, 1]),
        ("codes", {}, [1, 1, 1, 1]),
        ("linear", {}, [1, 1, 1, 1]),
    ],
)
def test_the_denoiser_is_asked_for_one_branch_where_the_other_does_not_count(
    autoencoder: DiffusionAutoencoder,
    apart: Inverted,
    asked: list[tuple[Tensor, int, Tensor]],
    editor: str,
    changes: dict[str, float],
    branches: list[int],
) -> None:
    config = settings(**{"diffusion_steps": 4, "finish_steps": 3, "editor": editor, **changes})
    decode_edit(autoencoder, apart, Wish(apart.code, ASSIGNED, SHOWN), 1.0, config)
    assert [len(context) / len(IMAGES) for _, _, context in asked] == branches
    # The branch that is left is that of the assigned label; the other one is of what the image shows.
    if editor not in ("codes", "linear"):
        positive = autoencoder.context(apart.code, torch.eye(2)[ASSIGNED])
        negative = autoencoder.context(apart.code, SHOWN)
        for _, _, context in asked:
            assert torch.equal(context[:3], positive)
            assert len(context) == 3 or torch.equal(context[3:], negative)


def test_with_a_guide_that_moves_nothing_the_drawing_is_the_decode_of_the_positive_context(
    autoencoder: DiffusionAutoencoder, apart: Inverted, moved: Tensor
) -> None:
    wish = Wish(moved, ASSIGNED, SHOWN)
    edited = decode_edit(autoencoder, apart, wish, 1.0, settings(guide_scale=1e-7))
    bare = settings(editor="contexts", guidance=0.0)
    alone = decode_edit(autoencoder, apart, wish, 1.0, bare)
    assert (edited.drawn.int() - alone.images.int()).abs().max() <= 1
    assert not torch.equal(edited.images, edited.drawn)


def test_without_a_guide_nothing_is_finished(
    autoencoder: DiffusionAutoencoder, apart: Inverted, moved: Tensor
) -> None:
    wish = Wish(moved, ASSIGNED, SHOWN)
    edited = decode_edit(autoencoder, apart, wish, 1.0, settings(editor="contexts"))
    assert torch.equal(edited.images, edited.drawn)
    other = settings(editor="contexts", finish_depth=0.1, finish_steps=1)
    assert torch.equal(decode_edit(autoencoder, apart, wish, 1.0, other).images, edited.images)


def plan_of(model: DiffusionAutoencoder, parts: Inverted, scale: float = 0.0) -> Plan:
    """Decode as the images were taken apart: under what they show."""
    context = model.context(parts.code, SHOWN)
    return Plan(parts.noisy, context, context, scale)


@pytest.mark.parametrize("inversion", [None, 5])
def test_a_drawing_that_is_the_image_is_finished_to_its_round_trip(
    autoencoder: DiffusionAutoencoder, inversion: int | None
) -> None:
    config = settings(finish_depth=0.5, finish_steps=3, inversion_steps=inversion)  # as deep as the inversion
    parts = take_apart(autoencoder, IMAGES, SHOWN, config)
    finished = _finish(autoencoder, parts, plan_of(autoencoder, parts), parts.latents, config)
    assert (autoencoder.to_images(finished).int() - parts.roundtrip.int()).abs().max() <= 1


@pytest.mark.parametrize(("depth", "steps"), [(0.3, 3), (0.1, 1), (0.5, 2)])
def test_a_drawing_is_carried_up_with_the_noise_of_its_image(
    autoencoder: DiffusionAutoencoder,
    apart: Inverted,
    moved: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    asked: list[tuple[Tensor, int, Tensor]],
    depth: float,
    steps: int,
) -> None:
    drawings: list[Tensor] = []
    decode_latents = DiffusionAutoencoder.decode_latents

    def noting(model: DiffusionAutoencoder, *arguments: Any, **settings_: Any) -> Tensor:
        drawings.append(decode_latents(model, *arguments, **settings_))
        return drawings[-1]

    monkeypatch.setattr(DiffusionAutoencoder, "decode_latents", noting)
    config = settings(finish_depth=depth, finish_steps=steps)
    edited = decode_edit(autoencoder, apart, Wish(moved, ASSIGNED, SHOWN), 1.0, config)
    levels = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).neg().add(1).cumprod(0)
    up, start = levels[499].float(), levels[round(1000 * depth) - 1].float()  # inverted to depth 0.5
    noise = (apart.noisy - up.sqrt() * apart.latents) / (1 - up).sqrt()
    drawn, finished = drawings
    assert (edited.drawn.int() - autoencoder.to_images(drawn).int()).abs().max() == 0
    assert torch.equal(edited.images, autoencoder.to_images(finished))
    noisy, timestep, _ = asked[3]  # the first after the three of the drawing
    assert timestep == round(1000 * depth) - 1 and len(asked) == 3 + steps
    expected = start.sqrt() * drawn + (1 - start).sqrt() * noise
    torch.testing.assert_close(noisy, expected.repeat(2, 1, 1, 1), rtol=1e-4, atol=1e-4)


def test_the_drawing_is_finished_away_from_what_the_image_shows(
    autoencoder: DiffusionAutoencoder, apart: Inverted
) -> None:
    config = settings()
    positive = autoencoder.context(apart.code, torch.eye(2)[ASSIGNED])
    negative = autoencoder.context(apart.code, SHOWN)

    def finished(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
        plan = Plan(apart.noisy, positive, negative, scale, 0.2)
        return _finish(autoencoder, apart, plan, apart.latents, config)

    label, shown, past = (finished(positive, negative, scale) for scale in (0.0, -1.0, 2.0))
    torch.testing.assert_close(shown, finished(negative, positive, 0.0), rtol=1e-4, atol=1e-4)
    assert ((past - label) * (label - shown)).sum() > 0 and not torch.equal(past, label)


SOURCE = pictures(2, 3, size=32, channels=3).clamp(40, 180)


def with_patch(images: Tensor, change: int) -> Tensor:
    """Return the images with their left third brighter."""
    changed = images.clone()
    changed[:, :, :, :10] += change
    return changed


def as_drawn(images: Tensor) -> Edited:
    """Return an edit that was decoded once."""
    return Edited(images, images)


def test_without_an_edit_the_original_is_kept_bit_by_bit() -> None:
    roundtrip = SOURCE.flip(0)  # however bad the round trip is
    assert torch.equal(keep_unchanged(SOURCE, roundtrip, as_drawn(roundtrip), settings()), SOURCE)


def test_a_local_edit_replaces_its_own_pixels_alone() -> None:
    edited = with_patch(SOURCE, 60)
    result = keep_unchanged(SOURCE, SOURCE, as_drawn(edited), settings())
    assert result.dtype == torch.uint8
    assert torch.equal(result[..., :8], edited[..., :8])
    assert torch.equal(result[..., 14:], SOURCE[..., 14:])


def test_where_nothing_was_drawn_the_original_stays_whatever_the_denoiser_made_of_it() -> None:
    everywhere = SOURCE.flip(0)
    nothing = Edited(everywhere, SOURCE)
    assert torch.equal(keep_unchanged(SOURCE, SOURCE, nothing, settings()), SOURCE)
    # What was drawn says where, what was finished says what.
    result = keep_unchanged(SOURCE, SOURCE, Edited(everywhere, with_patch(SOURCE, 60)), settings())
    assert torch.equal(result[..., :8], everywhere[..., :8])
    assert torch.equal(result[..., 14:], SOURCE[..., 14:])
    assert not torch.equal(everywhere[..., 14:], SOURCE[..., 14:])
    # A drawing that the denoiser took back again leaves nothing.
    undone = Edited(SOURCE, with_patch(SOURCE, 60))
    assert torch.equal(keep_unchanged(SOURCE, SOURCE, undone, settings()), SOURCE)


def test_the_tint_of_the_round_trip_is_taken_out_of_the_edit() -> None:
    roundtrip = SOURCE - 12
    edited = with_patch(roundtrip, 60)
    result = keep_unchanged(SOURCE, roundtrip, as_drawn(edited), settings())
    assert (result[..., :8].int() - (SOURCE[..., :8].int() + 60)).abs().max() <= 1
    assert torch.equal(result[..., 14:], SOURCE[..., 14:])


def test_small_differences_are_blended_in_by_their_size() -> None:
    # A change of 6 grey levels is 6 / 127.5 in [0, 2].
    share = 6 / 127.5 / 0.12
    result = keep_unchanged(SOURCE, SOURCE, as_drawn(SOURCE + 6), settings(blend_difference=0.12))
    assert (result.float() - SOURCE.float() - 6 * share).abs().max() <= 0.5 + 1e-3


def test_blending_clamps_and_does_not_wrap() -> None:
    white = torch.full((1, 1, 16, 16), 255, dtype=torch.uint8)
    grey = torch.full((1, 1, 16, 16), 100, dtype=torch.uint8)
    assert torch.equal(keep_unchanged(white, grey, as_drawn(grey + 100), settings()), white)
