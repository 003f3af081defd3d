"""The shapes of a diffusion autoencoder."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AutoencoderSpec:
    """Everything that fixes the shapes of a diffusion autoencoder.

    `patch_size` is the side, in pixels, of one position of the latents, whatever the first stage; `max_depth` the
    highest noise level that the denoiser was trained on.
    """

    class_names: tuple[str, ...]
    image_channels: int
    image_size: int
    patch_size: int
    latent_channels: int
    attribute_size: int
    appearance_size: int
    unet_channels: tuple[int, ...]
    unet_layers: int
    identity_size: int
    timesteps: int = 1000
    max_depth: float = 1.0

    @property
    def code_size(self) -> int:
        """Size D of the whole semantic code: the attribute's part first, then the appearance's."""
        return self.attribute_size + self.appearance_size
