"""The networks of the diffusion autoencoder: semantic encoder, denoiser, guide, and the statistics of the codes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import Tensor, nn

from diffinf.classify.model import SMALL_CNN, ClassifierSpec, create_classifier
from diffinf.diffusion.component import Component


class SemanticEncoder(Component):
    """Latents (B, L, h, w) to semantic codes (B, D) of two parts, with linear heads.

    The attribute head reads the first part, the identity head the second, and an adversary sees to it that the
    attribute cannot be read from the second (Fader networks, arXiv 1706.00409): otherwise the appearance would
    carry the expression and no label context could move it.
    """

    def __init__(
        self,
        latent_channels: int,
        attribute_size: int,
        appearance_size: int,
        num_classes: int,
        identity_size: int,
    ) -> None:
        """Build an untrained encoder."""
        super().__init__()
        self.register_to_config(
            latent_channels=latent_channels,
            attribute_size=attribute_size,
            appearance_size=appearance_size,
            num_classes=num_classes,
            identity_size=identity_size,
        )
        channels = (64, 96, 128)
        layers: list[nn.Module] = [nn.Conv2d(latent_channels, channels[0], 3, padding=1)]
        for before, after in zip((channels[0], *channels), channels, strict=False):
            layers += [
                nn.GroupNorm(8, before),
                nn.SiLU(),
                nn.Conv2d(before, after, 3, stride=1 if before == after else 2, padding=1),
            ]
        self.body = nn.Sequential(*layers, nn.GroupNorm(8, channels[-1]), nn.SiLU(), nn.AdaptiveAvgPool2d(2))
        self.project = nn.Linear(channels[-1] * 4, attribute_size + appearance_size)
        self.attribute_size = attribute_size
        self.attribute_head = nn.Linear(attribute_size, num_classes)
        self.identity_head = nn.Linear(appearance_size, identity_size, bias=False)

    def forward(self, latents: Tensor) -> Tensor:
        """Return the codes (B, D)."""
        code: Tensor = self.project(self.body(latents).flatten(1))
        return code

    def attribute(self, code: Tensor) -> Tensor:
        """Return the attribute's logits (B, K) of codes (B, D)."""
        logits: Tensor = self.attribute_head(code[:, : self.attribute_size])
        return logits

    def appearance(self, code: Tensor) -> Tensor:
        """Return the part of codes (B, D) that the denoiser sees, (B, D - A)."""
        return code[:, self.attribute_size :]

    def identity(self, code: Tensor) -> Tensor:
        """Return unit vectors (B, I) whose cosine tells persons apart, of codes (B, D)."""
        return F.normalize(self.identity_head(self.appearance(code)), dim=1)


class Denoiser(Component):
    """U-Net on latents, conditioned through adaptive group norm on time + code + label; predicts v (2202.00512)."""

    def __init__(
        self,
        latent_channels: int,
        latent_size: int,
        channels: Sequence[int],
        layers: int,
        appearance_size: int,
        num_classes: int,
    ) -> None:
        """Build an untrained denoiser of latents (B, L, h, h)."""
        super().__init__()
        channels = tuple(channels)
        self.register_to_config(
            latent_channels=latent_channels,
            latent_size=latent_size,
            channels=list(channels),
            layers=layers,
            appearance_size=appearance_size,
            num_classes=num_classes,
        )
        plain = len(channels) - 1
        self.unet = UNet2DModel(
            sample_size=latent_size,
            in_channels=latent_channels,
            out_channels=latent_channels,
            block_out_channels=channels,
            layers_per_block=layers,
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
            attention_head_dim=32,
            norm_num_groups=16,
            class_embed_type="identity",
            resnet_time_scale_shift="scale_shift",
        )
        width = 4 * channels[0]
        self.appearance_context = nn.Linear(appearance_size, width)
        self.label_context = nn.Linear(num_classes, width, bias=False)
        # Learned, not zeros pushed through a projection.
        self.empty_appearance = nn.Parameter(torch.zeros(width))
        self.empty_label = nn.Parameter(torch.zeros(width))

    def context(
        self,
        appearance: Tensor,
        shares: Tensor,
        keep_appearance: Tensor | None = None,
        keep_label: Tensor | None = None,
    ) -> Tensor:
        """Return the context (B, W).

        Args:
            appearance: second part of the semantic codes, (B, D - A).
            shares: how much of each class the image shows, (B, K), rows summing to 1.
            keep_appearance: bool (B,); False gives that sample the learned empty appearance.
            keep_label: bool (B,); False gives that sample the learned empty label.
        """
        parts = [self.appearance_context(appearance), self.label_context(shares)]
        empties = [(keep_appearance, self.empty_appearance), (keep_label, self.empty_label)]
        for index, (keep, empty) in enumerate(empties):
            if keep is not None:
                parts[index] = torch.where(keep[:, None], parts[index], empty)
        context: Tensor = parts[0] + parts[1]
        return context

    def forward(self, noisy: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """Return v (B, L, h, w) for noisy latents (B, L, h, w), timesteps (B,) and contexts (B, W)."""
        v: Tensor = self.unet(noisy, timestep, class_labels=context).sample
        return v


class Guide(Component):
    """Reads the attribute in decoded noisy latents: its gradient is what guides a decode to a label."""

    def __init__(self, num_classes: int, image_channels: int, image_size: int) -> None:
        """Build an untrained guide of images (B, C, H, H)."""
        super().__init__()
        self.register_to_config(num_classes=num_classes, image_channels=image_channels, image_size=image_size)
        spec = ClassifierSpec(SMALL_CNN, num_classes, image_channels, image_size)
        self.network = create_classifier(spec, seed=0)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of images (B, C, H, H) in [-1, 1]."""
        logits: Tensor = self.network(images)
        return logits


class CodeStatistics(Component):
    """Mean and standard deviation of the semantic codes (D,) over the training set."""

    def __init__(self, size: int) -> None:
        """Start with mean 0 and standard deviation 1."""
        super().__init__()
        self.register_to_config(size=size)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        self.mean: Tensor
        self.std: Tensor
