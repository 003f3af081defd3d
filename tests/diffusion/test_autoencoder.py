"""The autoencoder's parts: contexts, latents, codes, components that fit."""

from __future__ import annotations

import pytest
import torch

from diffinf.diffusion.autoencoder import DiffusionAutoencoder
from diffinf.errors import UserError
from diffusion.tiny_autoencoder import SPEC, pictures


@pytest.fixture
def code() -> torch.Tensor:
    return torch.randn(3, SPEC.code_size, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def shares() -> torch.Tensor:
    return torch.tensor([[0.9, 0.1], [0.0, 1.0], [0.5, 0.5]])


def test_a_code_has_two_parts_with_heads_of_their_own(
    autoencoder: DiffusionAutoencoder, code: torch.Tensor
) -> None:
    encoder = autoencoder.encoder
    assert SPEC.code_size == SPEC.attribute_size + SPEC.appearance_size == code.shape[1]
    assert torch.equal(encoder.appearance(code), code[:, SPEC.attribute_size :])
    other_attribute, other_appearance = code.clone(), code.clone()
    other_attribute[:, : SPEC.attribute_size] += 1
    other_appearance[:, SPEC.attribute_size :] += 1
    assert torch.equal(encoder.attribute(other_appearance), encoder.attribute(code))
    assert not torch.equal(encoder.attribute(other_attribute), encoder.attribute(code))
    assert torch.equal(encoder.identity(other_attribute), encoder.identity(code))
    assert not torch.equal(encoder.identity(other_appearance), encoder.identity(code))
    assert encoder.attribute(code).shape == (3, len(SPEC.class_names))


def test_a_context_is_the_appearance_plus_the_labels_by_their_shares(
    autoencoder: DiffusionAutoencoder, code: torch.Tensor, shares: torch.Tensor
) -> None:
    denoiser, appearance = autoencoder.denoiser, autoencoder.encoder.appearance(code)
    of_class = denoiser.label_context.weight.T  # (K, W)
    expected = denoiser.appearance_context(appearance) + shares @ of_class
    torch.testing.assert_close(denoiser.context(appearance, shares), expected)


def test_left_out_appearances_and_labels_are_the_learned_empty_ones(
    autoencoder: DiffusionAutoencoder, code: torch.Tensor, shares: torch.Tensor
) -> None:
    denoiser, appearance = autoencoder.denoiser, autoencoder.encoder.appearance(code)
    of_appearance, of_label = denoiser.appearance_context(appearance), denoiser.label_context(shares)
    whole = denoiser.context(appearance, shares)
    keep_appearance, keep_label = torch.tensor([True, False, False]), torch.tensor([True, True, False])
    context = denoiser.context(appearance, shares, keep_appearance, keep_label)
    torch.testing.assert_close(context[0], whole[0])
    torch.testing.assert_close(context[1], denoiser.empty_appearance + of_label[1])
    torch.testing.assert_close(context[2], denoiser.empty_appearance + denoiser.empty_label)
    without_label = denoiser.context(appearance, shares, keep_label=torch.zeros(3, dtype=torch.bool))
    torch.testing.assert_close(without_label, of_appearance + denoiser.empty_label)
    assert (context - whole)[1:].abs().amax(1).min() > 0.1


def test_the_context_changes_what_is_predicted(autoencoder: DiffusionAutoencoder, code: torch.Tensor) -> None:
    noisy = torch.randn(3, SPEC.latent_channels, 4, 4, generator=torch.Generator().manual_seed(1))
    t = torch.full((3,), 500)
    denoiser, appearance = autoencoder.denoiser, autoencoder.encoder.appearance(code)
    calm, smile = (
        denoiser(noisy, t, denoiser.context(appearance, torch.eye(2)[k].expand(3, -1))) for k in (0, 1)
    )
    assert smile.shape == noisy.shape
    assert (smile - calm).abs().max() > 1e-3


def test_the_noise_schedule_is_the_linear_one_of_ddpm(autoencoder: DiffusionAutoencoder) -> None:
    alphas = autoencoder.alphas_cumprod
    assert alphas.shape == (1000,)
    assert alphas[0].item() == pytest.approx(1 - 1e-4)
    assert alphas[1].item() == pytest.approx((1 - 1e-4) * (1 - 1e-4 - 0.0199 / 999))
    assert alphas[-1].item() == pytest.approx(4.036e-5, rel=1e-2)


@pytest.mark.parametrize(("steps", "depth"), [(1, 0.2), (3, 0.3), (6, 0.4), (7, 1.0)])
def test_the_signal_is_that_of_where_a_decode_starts(
    autoencoder: DiffusionAutoencoder, steps: int, depth: float
) -> None:
    # Of latents whose noise the network knows, all that is not noise is signal.
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 2, 16, 4, 4, generator=generator, dtype=torch.float64)
    alphas = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    asked: list[int] = []

    def predict(noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        asked.append(int(t[0]))
        alpha = alphas[int(t[0])]
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * clean

    signal = autoencoder.signal(steps, depth)
    noisy = signal**0.5 * clean + (1 - signal) ** 0.5 * noise
    decoded = autoencoder.decode_latents(noisy, predict, steps=steps, depth=depth)
    assert signal == pytest.approx(float(alphas[asked[0]]), rel=1e-4) and asked[0] == round(1000 * depth) - 1
    # The scheduler takes the clean latents to be at the first timestep.
    expected = alphas[0].sqrt() * clean + (1 - alphas[0]).sqrt() * noise
    torch.testing.assert_close(decoded, expected, rtol=1e-3, atol=1e-3)


def test_images_survive_the_latents(autoencoder: DiffusionAutoencoder) -> None:
    images = pictures(8, 3)
    latents = autoencoder.to_latents(images)
    assert latents.shape == (8, 16, 4, 4)
    assert torch.equal(autoencoder.to_images(latents), images)


def test_images_are_clamped_not_wrapped(autoencoder: DiffusionAutoencoder) -> None:
    images = torch.cat([torch.zeros(1, 1, 16, 16), torch.full((1, 1, 16, 16), 255.0)]).to(torch.uint8)
    latents = autoencoder.to_latents(images)
    brighter_and_darker = latents + 0.2 * (latents - latents.flip(0))
    assert torch.equal(autoencoder.to_images(brighter_and_darker), images)


@pytest.mark.parametrize("shape", [(2, 1, 20, 20), (2, 3, 16, 16), (2, 1, 16, 20)])
def test_images_of_another_shape_are_refused(
    autoencoder: DiffusionAutoencoder, shape: tuple[int, ...]
) -> None:
    with pytest.raises(UserError, match=r"data\.image_size") as caught:
        autoencoder.to_latents(torch.zeros(shape, dtype=torch.uint8))
    assert str(shape[1:]) in str(caught.value) and "(1, 16, 16)" in str(caught.value)


def test_codes_are_normalised_by_their_statistics(
    autoencoder: DiffusionAutoencoder, code: torch.Tensor
) -> None:
    normalised = autoencoder.normalised(code)
    torch.testing.assert_close(normalised * autoencoder.code_std + autoencoder.code_mean, code)
    assert (normalised - code).abs().max() > 0.1


def test_identities_are_unit_vectors(autoencoder: DiffusionAutoencoder, code: torch.Tensor) -> None:
    identity = autoencoder.encoder.identity(code)
    assert identity.shape == (3, SPEC.identity_size)
    torch.testing.assert_close(identity.norm(dim=1), torch.ones(3))
