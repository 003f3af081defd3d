"""Whole images through the pipeline: encode, decode, reconstruct, interpolate, sample; and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from torch import Tensor

from diffinf.diffusion.autoencoder import DiffusionAutoencoder, spherical
from diffinf.diffusion.networks import CodeStatistics
from diffinf.diffusion.prior import LatentPrior
from diffinf.errors import UserError
from diffusion.schedulers import ddim, dpm
from diffusion.tiny_autoencoder import SPEC, make_autoencoder, pictures

SIDE = SPEC.image_size // SPEC.patch_size


@pytest.fixture(params=["default", "ddim", "dpm"])
def model(request: pytest.FixtureRequest) -> DiffusionAutoencoder:
    made = make_autoencoder()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made.prior = LatentPrior(SPEC.code_size, 2, width=8, layers=2)
    if request.param != "default":
        made.scheduler = {"ddim": ddim, "dpm": dpm}[request.param]()
    return made.freeze()


def test_images_are_taken_apart_and_put_together(model: DiffusionAutoencoder) -> None:
    images = pictures(3, 2)
    code, noisy = model.encode(images, steps=12, depth=0.4)
    assert code.shape == (3, SPEC.code_size) and noisy.shape == (3, SPEC.latent_channels, SIDE, SIDE)
    torch.testing.assert_close(code, model.code(model.to_latents(images)))
    back = model.decode(code, noisy, steps=12, depth=0.4)
    assert back.dtype == torch.uint8 and back.shape == images.shape
    again, error = model.reconstruct(images, steps=12, depth=0.4)
    assert torch.equal(back, again)
    expected = (again.double() / 127.5 - images.double() / 127.5).abs().flatten(1).mean(1)
    torch.testing.assert_close(error.double(), expected)
    assert (error < 0.1).all()


def test_more_steps_make_a_better_round_trip(model: DiffusionAutoencoder) -> None:
    images = pictures(4, 2)
    errors = [model.reconstruct(images, steps=steps, depth=0.6)[1].mean() for steps in (3, 30)]
    assert errors[1] < 0.7 * errors[0]


def test_the_same_call_gives_the_same_bits_alone_and_in_batches(
    model: DiffusionAutoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pictures(5, 2)
    first, second = (model.reconstruct(images, steps=3)[0] for _ in range(2))
    assert torch.equal(first, second)
    monkeypatch.setattr(DiffusionAutoencoder, "decode_batch", 2)
    assert (model.reconstruct(images, steps=3)[0].int() - first.int()).abs().max() <= 1


def test_the_depth_is_by_default_the_deepest_that_was_trained_on(model: DiffusionAutoencoder) -> None:
    images, asked = pictures(2, 2), list[int]()
    model.max_depth = 0.3
    forward = model.denoiser.forward

    def recording(noisy: Tensor, t: Tensor, context: Tensor) -> Tensor:
        asked.extend(t.tolist())
        return forward(noisy, t, context)

    model.denoiser.forward = recording
    codes = model.encode(images, steps=3)
    model.decode(*codes, steps=3)
    assert max(asked) == 299
    asked.clear()
    deeper = model.encode(images, steps=3, depth=0.9)
    model.decode(*deeper, steps=3, depth=0.9)
    assert max(asked) == 899
    assert (deeper[1] - codes[1]).abs().mean() > 0.1


def test_the_label_context_is_by_default_what_the_attribute_head_reads(model: DiffusionAutoencoder) -> None:
    images = pictures(3, 2)
    code, noisy = model.encode(images, steps=3)
    read = model.read_code(code)[0].softmax(1)
    assert torch.equal(noisy, model.encode(images, read, steps=3)[1])
    assert torch.equal(model.decode(code, noisy, steps=3), model.decode(code, noisy, read, steps=3))
    other = read.flip(1)
    assert not torch.equal(noisy, model.encode(images, other, steps=3)[1])


def test_a_correction_of_every_step_is_what_comes_out(model: DiffusionAutoencoder) -> None:
    target = model.to_latents(pictures(2, 9))
    code, noisy = model.encode(pictures(2, 2), steps=4)
    left: list[float] = []

    def correct(clean: Tensor, remaining: float) -> Tensor:
        left.append(remaining)
        return target

    back = model.decode(code, noisy, steps=4, correct=correct)
    assert left == [1.0, 0.75, 0.5, 0.25]
    assert (back.int() - pictures(2, 9).int()).abs().float().mean() < 4


def test_interpolation_starts_and_ends_at_the_round_trips(model: DiffusionAutoencoder) -> None:
    a, b = pictures(2, 2), pictures(2, 3)
    between = model.interpolate(a, b, [0, 0.5, 1], steps=4, depth=0.5)
    assert between.shape == (3, *a.shape) and between.dtype == torch.uint8
    for end, images in ((between[0], a), (between[2], b)):
        assert (end.int() - model.reconstruct(images, steps=4, depth=0.5)[0].int()).abs().max() <= 1
    assert not torch.equal(between[1], between[0]) and not torch.equal(between[1], between[2])
    same = model.interpolate(a, a, [0.3], steps=4, depth=0.5)[0]
    assert (same.int() - between[0].int()).abs().max() <= 1


def test_the_spherical_interpolation_keeps_lengths_and_halves_angles() -> None:
    a, b = torch.randn(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    a, b = (x / x.flatten(1).norm(dim=1)[:, None, None, None] for x in (a, b))
    middle = spherical(a, b, 0.5).flatten(1)
    torch.testing.assert_close(middle.norm(dim=1), torch.ones(5).double())
    cosines = [(middle * x.flatten(1)).sum(1) for x in (a, b)]
    torch.testing.assert_close(cosines[0], cosines[1])
    angle = (a.flatten(1) * b.flatten(1)).sum(1).acos()
    torch.testing.assert_close(cosines[0].acos(), angle / 2)
    torch.testing.assert_close(spherical(a, b, 0), a)
    torch.testing.assert_close(spherical(a, b, 1), b)


def test_samples_are_new_images_and_a_function_of_the_generator(model: DiffusionAutoencoder) -> None:
    def draw(seed: int, labels: Tensor | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return model.sample(4, labels, generator=generator, steps=3, prior_steps=3)

    images = draw(0)
    assert images.shape == (4, 1, 16, 16) and images.dtype == torch.uint8
    torch.manual_seed(5)  # the state of the global generator is nothing to it
    assert torch.equal(draw(0), images) and not torch.equal(draw(1), images)
    calm, smile = (draw(0, torch.full((4,), label)) for label in (0, 1))
    assert not torch.equal(calm, smile)
    assert torch.equal(model.sample(2, steps=2, prior_steps=2), model.sample(2, steps=2, prior_steps=2))


def test_a_sample_starts_with_the_broad_colours_of_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """A denoiser that always sees the same latents: the decode begins at these, noised to where training stopped."""
    model = make_autoencoder()
    model.max_depth, model.decode_batch = 0.4, 200
    with torch.random.fork_rng():
        model.prior = LatentPrior(SPEC.code_size, 2, width=8, layers=2)
    model.freeze()
    latents, starts = model.to_latents(pictures(1, 4)), []

    def decode(noisy: Tensor, *_: Any, **__: Any) -> Tensor:
        starts.append(noisy)
        return latents.expand_as(noisy)

    monkeypatch.setattr(model, "decode_latents", decode)
    model.sample(200, torch.zeros(200, dtype=torch.long), prior_steps=2)
    signal, begun = model.signal(1, 0.4), starts[-1]
    torch.testing.assert_close(begun.mean(0), signal**0.5 * latents[0], rtol=0, atol=0.3)
    assert begun.std(0).mean() == pytest.approx((1 - signal) ** 0.5, rel=0.05)


def test_guidance_leads_a_sample_away_from_no_label(model: DiffusionAutoencoder) -> None:
    code, shares = (
        torch.randn(3, SPEC.code_size, generator=torch.Generator().manual_seed(0)),
        torch.eye(2)[[0, 1, 0]],
    )
    noisy, t = model.to_latents(pictures(3, 2)), torch.full((3,), 100)
    towards, away, guided = (model._guided(code, shares, w)(noisy, t) for w in (0.0, -1.0, 1.5))
    torch.testing.assert_close(towards, model.predict(noisy, t, model.context(code, shares)))
    torch.testing.assert_close(guided, 2.5 * towards - 1.5 * away, rtol=1e-4, atol=1e-4)
    other = model._guided(code, shares.flip(1), -1.0)(noisy, t)
    torch.testing.assert_close(other, away, rtol=1e-4, atol=1e-5, msg="where no label is heard, none matters")
    assert not torch.allclose(towards, away, atol=1e-3)


def refused(work: Callable[[DiffusionAutoencoder], Any], words: str) -> Any:
    return pytest.param(work, words, id=words)


CODE, NOISY = torch.zeros(3, SPEC.code_size), torch.zeros(3, SPEC.latent_channels, SIDE, SIDE)
BROKEN_CODE, BROKEN_NOISY = CODE.clone(), NOISY.clone()
BROKEN_CODE[1, 4], BROKEN_NOISY[2, 0, 1, 1] = torch.nan, torch.inf
IMAGES = pictures(3, 2)


@pytest.mark.parametrize(
    ("work", "words"),
    [
        refused(lambda m: m.encode(pictures(2, 0, size=20)), "data.image_size"),
        refused(lambda m: m.encode(pictures(2, 0, channels=3)), "data.channels"),
        refused(lambda m: m.encode(IMAGES.float()), "torch.uint8"),
        refused(lambda m: m.encode(IMAGES[0]), "data.image_size"),
        refused(lambda m: m.encode(IMAGES, torch.ones(3, 5)), r"shares: .*\(3, 2\), found \(3, 5\)"),
        refused(lambda m: m.decode(BROKEN_CODE, NOISY), "semantic code: row 1 holds"),
        refused(lambda m: m.decode(CODE, BROKEN_NOISY), "stochastic code: row 2 holds"),
        refused(lambda m: m.decode(CODE[:, 1:], NOISY), r"semantic code: expected shape \(N, 8\)"),
        refused(lambda m: m.decode(CODE, NOISY[:, 1:]), r"stochastic code: expected shape \(N, 16, 4, 4\)"),
        refused(lambda m: m.decode(CODE, NOISY[:2]), "3 semantic codes, but 2 stochastic codes"),
        refused(lambda m: m.decode(CODE, NOISY, torch.ones(2, 2)), "shares"),
        refused(lambda m: m.sample(2), "autoencoder.prior_steps"),
    ],
)
def test_what_does_not_fit_is_refused(
    autoencoder: DiffusionAutoencoder, work: Callable[[DiffusionAutoencoder], Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        work(autoencoder)


@pytest.mark.parametrize("labels", [torch.tensor([0, 2]), torch.tensor([0]), torch.tensor([-1, 0])], ids=str)
def test_labels_of_no_class_are_refused(model: DiffusionAutoencoder, labels: Tensor) -> None:
    with pytest.raises(UserError, match="labels"):
        model.sample(2, labels)


def test_components_that_do_not_fit_each_other_are_refused() -> None:
    parts: dict[str, Any] = make_autoencoder().components
    with pytest.raises(UserError, match=r"code size of encoder and statistics \(8 and 9\)"):
        DiffusionAutoencoder(**{**parts, "statistics": CodeStatistics(9)}, class_names=("a", "b"))
    with pytest.raises(UserError, match="classes of class names and guide"):
        DiffusionAutoencoder(**parts, class_names=("a", "b", "c"))
    with pytest.raises(UserError, match="classes of class names and prior"):
        DiffusionAutoencoder(**{**parts, "prior": LatentPrior(8, 3)}, class_names=("a", "b"))
    with pytest.raises(UserError, match="has no inverse"):
        DiffusionAutoencoder(**{**parts, "scheduler": EulerDiscreteScheduler()}, class_names=("a", "b"))


def test_a_scheduler_put_in_later_is_checked_when_it_is_used(model: DiffusionAutoencoder) -> None:
    model.scheduler = ddim(clip_sample=True)
    with pytest.raises(UserError, match="clip_sample"):
        model.encode(pictures(1, 2))


def test_images_of_the_training_set_are_no_news(autoencoder: DiffusionAutoencoder) -> None:
    assert autoencoder.differs_from(pictures(64, 8)) is None  # others of the same kind
    inverted, flat = 255 - pictures(64, 8) // 4, pictures(64, 8) // 4 + 80
    for images in (inverted, flat):
        words = autoencoder.differs_from(images)
        assert words is not None and words.startswith("the autoencoder was trained on other data: ")


def test_nothing_is_said_where_the_training_set_is_not_known() -> None:
    model = make_autoencoder()
    model.latent_mean = model.latent_std = ()
    assert model.differs_from(torch.zeros(4, 1, 16, 16, dtype=torch.uint8)) is None
