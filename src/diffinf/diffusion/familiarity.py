"""Whether images are of the kind that an autoencoder was trained on, as far as its latents tell.

A dataset has moments: those of its latents, or of its codes, are held against the training set's. One picture has too
few values for that, so two things are asked of it: whether its latents are spread as those of the training set, and
whether the denoiser is further off on it than on pictures of the training set.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffinf.diffusion.interface import Autoencoder

# From these on, a dataset is clearly other data: a mean by so many standard deviations, a spread so many times.
_SHIFTED_MEAN, _SHIFTED_SPREAD = 1.0, 2.0
# From these on, a picture is: a typical spread so many times, an error so many standard deviations above the mean.
_UNUSUAL_SPREAD, _UNUSUAL_ERROR = math.e, 2.75
_DEPTH, _STEPS = 0.2, 2  # the noise that the denoiser is asked to take away, where detail counts most
LOOKS = 128  # pictures that say what its error usually is
_BATCH = 16


def moments(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation by channel, (L,) each, of latents (N, L, h, w) or codes (N, L)."""
    values = latents if latents.ndim == 4 else latents[:, :, None, None]
    return values.mean((0, 2, 3)), values.std((0, 2, 3))


def unlike_set(of: str, found: tuple[Tensor, Tensor], trained: tuple[Tensor, Tensor]) -> str | None:
    """Say in words how the `moments` of a dataset clearly differ from the training set's, or None.

    Args:
        of: what they are the moments of, in the plural.
        found: mean and standard deviation by channel, (L,) each.
        trained: likewise, over the training set.
    """
    (mean, std), (trained_mean, trained_std) = found, (trained[0], trained[1].clamp_min(1e-6))
    offset = (mean - trained_mean).abs() / trained_std
    ratio = std.clamp_min(1e-6) / trained_std
    ratio = torch.maximum(ratio, 1 / ratio)
    if offset.max() < _SHIFTED_MEAN and ratio.max() < _SHIFTED_SPREAD:
        return None
    return (
        f"the autoencoder was trained on other data: the mean of the {of} is off by up to {offset.max():.1f} of "
        f"their standard deviations, and these differ by up to {ratio.max():.1f} times; expect poor round trips, "
        "or train one on this dataset (autoencoder.weights=null)"
    )


def unlike_pictures(model: Autoencoder, images: Tensor) -> list[str | None]:
    """Say in words for each picture how it clearly differs from those that `model` was trained on, or None.

    Args:
        model: what it does not know of its training (`latent_std`, `usual_error`) is not asked.
        images: uint8 (N, C, H, W).
    """
    spreads, errors = _spreads(model, images), _errors(model, images)
    said: list[str | None] = []
    for spread, error in zip(spreads.tolist(), errors.tolist(), strict=True):
        reasons = []
        if spread > _UNUSUAL_SPREAD:
            reasons.append(f"the standard deviations of the latents differ by typically {spread:.1f} times")
        if error > _UNUSUAL_ERROR:
            reasons.append(f"the denoiser is off by {error:.1f} standard deviations more than usual")
        what = ", and ".join(reasons)
        advice = "expect a poor round trip, or take one that was trained on such pictures"
        said.append(f"the autoencoder was trained on other data: {what}; {advice}" if reasons else None)
    return said


def usual_error(model: Autoencoder, images: Tensor) -> tuple[float, float]:
    """Return mean and standard deviation of the denoiser's log errors on at most 128 of the images, evenly spaced.

    Args:
        model: a trained autoencoder.
        images: uint8 (N, C, H, W), N > 1, of the training set; best those that were held out of the training.
    """
    rows = torch.linspace(0, len(images) - 1, min(len(images), LOOKS)).long()
    errors = denoising_errors(model, images[rows])
    return float(errors.mean()), float(errors.std())


@torch.no_grad()
def denoising_errors(model: Autoencoder, images: Tensor) -> Tensor:
    """Return the log mean squared error, (N,), of the latents that the denoiser makes of images with a little noise.

    The noise is the same for each image, whatever its neighbours. Costs two evaluations of the network an image.
    """
    depth = min(_DEPTH, model.max_depth)
    steps = max(1, min(_STEPS, model.most_steps(depth)))
    signal, errors = model.signal(steps, depth), []
    for part in torch.split(images, _BATCH):
        latents = model.to_latents(part)
        code = model.code(latents)
        context = model.context(code, model.read_code(code)[0].softmax(1))
        noise = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(0)).to(latents)
        noisy = signal**0.5 * latents + (1 - signal) ** 0.5 * noise

        def predict(noisy: Tensor, timestep: Tensor, context: Tensor = context) -> Tensor:
            return model.predict(noisy, timestep, context)

        clean = model.decode_latents(noisy, predict, steps=steps, depth=depth)
        errors.append((clean - latents).square().mean((1, 2, 3)).clamp_min(1e-12).log().cpu())
    return torch.cat(errors)


@torch.no_grad()
def _spreads(model: Autoencoder, images: Tensor) -> Tensor:
    """Return how many times, (N,), each picture's latents are spread more or less; the root mean square of the logs."""
    if not model.latent_std:
        return torch.ones(len(images))
    trained = torch.tensor(model.latent_std).clamp_min(1e-6)
    latents = torch.cat([model.to_latents(part).cpu() for part in torch.split(images, _BATCH)])
    ratio = latents.std((2, 3)).clamp_min(1e-6) / trained
    return ratio.log().square().mean(1).sqrt().exp()


def _errors(model: Autoencoder, images: Tensor) -> Tensor:
    """Return by how many standard deviations, (N,), the denoiser errs more on each picture than it usually does."""
    if not model.usual_error:
        return torch.zeros(len(images))
    mean, std = model.usual_error
    return (denoising_errors(model, images) - mean) / max(std, 1e-3)
