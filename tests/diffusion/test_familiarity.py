"""Whether images are of the kind that an autoencoder was trained on: datasets by moments, single pictures."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diffinf.diffusion import familiarity
from diffinf.diffusion.autoencoder import DiffusionAutoencoder
from diffinf.diffusion.familiarity import (
    denoising_errors,
    moments,
    unlike_pictures,
    unlike_set,
    usual_error,
)
from diffinf.diffusion.interface import Autoencoder
from diffusion.tiny_autoencoder import make_autoencoder, pictures
from diffusion.tiny_diffae import make_diffae, photos

OTHER = "the autoencoder was trained on other data: "


@pytest.fixture(scope="module")
def model() -> DiffusionAutoencoder:
    made = make_autoencoder()
    made.usual_error = usual_error(made, pictures(64, 7))
    return made


def noise(n: int) -> Tensor:
    return torch.randint(0, 256, (n, 1, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_pictures_of_the_kind_trained_on_are_no_news(model: DiffusionAutoencoder) -> None:
    said = unlike_pictures(model, pictures(200, 8))
    assert len(said) == 200 and sum(words is not None for words in said) <= 6


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (noise(5), "denoiser is off by"),
        (torch.full((5, 1, 16, 16), 90, dtype=torch.uint8), "standard deviations of the latents differ"),
    ],
    ids=["noise", "flat"],
)
def test_each_picture_of_another_kind_is_told(
    model: DiffusionAutoencoder, images: Tensor, reason: str
) -> None:
    mixed = torch.cat([pictures(2, 8), images])
    said = unlike_pictures(model, mixed)
    assert said[:2] == [None, None] and len(said) == 7
    assert all(words is not None and words.startswith(OTHER) and reason in words for words in said[2:])


def test_what_a_model_does_not_know_of_its_training_is_not_asked(model: DiffusionAutoencoder) -> None:
    strange = torch.cat([noise(2), torch.full((1, 1, 16, 16), 90, dtype=torch.uint8)])
    older = make_autoencoder()
    said = unlike_pictures(older, strange)
    assert said[2] is not None and all("denoiser" not in (words or "") for words in said)
    older.latent_mean = older.latent_std = ()
    assert unlike_pictures(older, strange) == [None] * 3
    older.usual_error = model.usual_error
    assert [words is not None for words in unlike_pictures(older, strange[:2])] == [True, True]


@pytest.mark.parametrize("kind", ["ours", "imported"])
def test_the_error_of_a_picture_does_not_depend_on_its_neighbours(kind: str) -> None:
    known: Autoencoder = make_autoencoder()
    images = pictures(20, 3)
    if kind == "imported":
        known, images = imported(), photos(20, 3)
    errors = denoising_errors(known, images)
    assert errors.shape == (20,) and errors.isfinite().all() and errors.std() > 0
    torch.testing.assert_close(denoising_errors(known, images[17:]), errors[17:], rtol=0, atol=1e-4)


def imported() -> Autoencoder:
    from diffinf.diffusion.diffae.autoencoder import DatasetHeads

    made = make_diffae(calm=0.1)
    made.heads = DatasetHeads(made.config, ("calm", "smile"))
    return made.eval().requires_grad_(False)


def test_an_error_is_that_of_the_latents_with_the_noise_taken_away() -> None:
    """A denoiser that takes away all noise has no error; one that takes none away has that of the noise."""
    perfect, idle = make_autoencoder(), make_autoencoder()
    images = pictures(3, 1)
    latents = perfect.to_latents(images)
    perfect.decode_latents = lambda *_, **__: latents  # type: ignore[method-assign]
    idle.decode_latents = lambda noisy, *_, **__: noisy  # type: ignore[method-assign]
    assert denoising_errors(perfect, images).tolist() == pytest.approx([math.log(1e-12)] * 3)
    share = 1 - idle.signal(2, 0.2)
    assert denoising_errors(idle, images).exp().mean() == pytest.approx(share, rel=0.5)


@pytest.mark.parametrize(("n", "looks"), [(5, 5), (300, 128)])
def test_the_usual_error_is_that_of_some_pictures_from_first_to_last(
    model: DiffusionAutoencoder, monkeypatch: pytest.MonkeyPatch, n: int, looks: int
) -> None:
    asked: list[Tensor] = []

    def errors(_: object, images: Tensor) -> Tensor:
        asked.append(images[:, 0])
        return images[:, 0].float()

    monkeypatch.setattr(familiarity, "denoising_errors", errors)
    mean, std = usual_error(model, torch.arange(n)[:, None])
    (rows,) = asked
    assert len(rows) == looks == len(rows.unique()) and rows[[0, -1]].tolist() == [0, n - 1]
    assert (mean, std) == (float(rows.float().mean()), float(rows.float().std()))


def test_moments_of_latents_and_of_codes() -> None:
    latents = torch.randn(7, 3, 2, 5, generator=torch.Generator().manual_seed(0))
    mean, std = moments(latents)
    flat = latents.permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(mean, flat.mean(1))
    torch.testing.assert_close(std, flat.std(1))
    codes = latents[:, :, 0, 0]
    torch.testing.assert_close(moments(codes), (codes.mean(0), codes.std(0)))


@pytest.mark.parametrize(
    ("shift", "scale", "told"),
    [
        (0.9, 1.9, False),
        (0.9, 0.55, False),
        (1.1, 1.0, True),
        (-1.1, 1.0, True),
        (0, 2.1, True),
        (0, 0.45, True),
    ],
)
def test_one_channel_is_enough_to_tell_a_dataset(shift: float, scale: float, told: bool) -> None:
    trained = (torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    found = (trained[0] + torch.tensor([0.0, 4 * shift]), trained[1] * torch.tensor([1.0, scale]))
    words = unlike_set("codes", found, trained)
    assert (words is not None) == told
    if words is not None:
        assert words.startswith(OTHER) and "the mean of the codes" in words
