"""A diffusion autoencoder that fits into milliseconds, and pictures for it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from diffinf.diffusion.autoencoder import AutoencoderSpec, DiffusionAutoencoder
from diffinf.diffusion.first_stage import FirstStage

SPEC = AutoencoderSpec(
    class_names=("calm", "smile"),
    image_channels=1,
    image_size=16,
    latent_channels=16,
    code_size=8,
    unet_channels=(32, 64),
    unet_layers=1,
    identity_size=4,
)


def pictures(n: int, seed: int, *, size: int = 16, channels: int = 1) -> Tensor:
    """Smooth pictures with a little noise, uint8 (n, channels, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 4, 4, generator=generator) * 200 + 20
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    noise = 8 * torch.randn(smooth.shape, generator=generator)
    return (smooth + noise).clamp(0, 255).to(torch.uint8)


def make_autoencoder(seed: int = 0, **changes: object) -> DiffusionAutoencoder:
    """Return an untrained autoencoder (its first stage is fitted) whose code statistics are not trivial."""
    spec = replace(SPEC, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DiffusionAutoencoder(spec)
        torch.nn.init.normal_(model.denoiser.empty_code)  # as if learned
        model.code_mean.normal_()
        model.code_std.uniform_(0.5, 2)
    images = pictures(64, 7, size=spec.image_size, channels=spec.image_channels)
    model.first_stage = FirstStage.fit(images, spec.latent_channels)
    return model.eval().requires_grad_(False)
