"""A diffusion autoencoder that fits into milliseconds, and pictures for it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from diffinf.diffusion.autoencoder import DiffusionAutoencoder, create_autoencoder
from diffinf.diffusion.first_stage import PatchComponents
from diffinf.diffusion.spec import AutoencoderSpec

SPEC = AutoencoderSpec(
    class_names=("calm", "smile"),
    image_channels=1,
    image_size=16,
    patch_size=4,
    latent_channels=16,
    attribute_size=3,
    appearance_size=5,
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


def make_autoencoder() -> DiffusionAutoencoder:
    """Return an untrained autoencoder (its first stage is fitted) whose code statistics are not trivial."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stage = PatchComponents.fit(pictures(64, 7), SPEC.latent_channels, SPEC.patch_size)
        model = create_autoencoder(SPEC, stage)
        for empty in (model.denoiser.empty_appearance, model.denoiser.empty_label):
            torch.nn.init.normal_(empty)  # as if learned
        model.code_mean.normal_()
        model.code_std.uniform_(0.5, 2)
    model.set_latent_statistics(model.to_latents(pictures(64, 7)))
    return model.freeze()


def weights(directory: Path) -> dict[str, Tensor]:
    """The saved weights of all components, by component and name."""
    files = sorted(directory.glob("*/diffusion_pytorch_model.safetensors"))
    return {
        f"{path.parent.name}.{name}": values for path in files for name, values in load_file(path).items()
    }
