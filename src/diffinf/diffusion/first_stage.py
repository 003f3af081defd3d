"""First stages: maps between images and the latents that the diffusion works on.

A first stage makes latent diffusion (arXiv 2112.10752) cheap by working on a grid that is coarser than the pixels.
By default it is the principal components of 4x4 patches: fitted in a second, the same every time, exact up to the
components left out. At 48-64 px, where one patch is half a mouth high, a small convolutional KL autoencoder is
blurrier after minutes of training on a CPU (docs/method.md has the figures); it is for larger images and longer
training. Pixels as their own latents lose nothing and cost most.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from diffinf.diffusion.component import Component

_KL_GROUPS = 16  # of its group norms: widths are multiples of it


class FirstStage(Component, ABC):
    """Images in [-1, 1] to latents and back.

    Attributes:
        image_channels: C.
        latent_channels: L.
        factor: how much coarser the latents' grid is than the pixels', by side.
    """

    image_channels: int
    latent_channels: int
    factor: int

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Return latents (B, L, H/f, W/f) of images (B, C, H, W) in [-1, 1]."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, C, H, W) of latents (B, L, H/f, W/f); values may leave [-1, 1] slightly."""


class PatchComponents(FirstStage):
    """Principal components of square patches: latents of zero mean, closed form."""

    def __init__(self, image_channels: int, latent_channels: int, patch: int) -> None:
        """Build a first stage of the right shape; `fit` gives a useful one."""
        super().__init__()
        self.register_to_config(image_channels=image_channels, latent_channels=latent_channels, patch=patch)
        self.image_channels, self.latent_channels = image_channels, latent_channels
        self.patch = self.factor = patch
        self.register_buffer("basis", torch.zeros(latent_channels, image_channels, patch, patch))
        self.register_buffer("mean", torch.zeros(1, image_channels, patch, patch))
        self.register_buffer("scale", torch.ones(1, latent_channels, 1, 1))
        self.basis: Tensor
        self.mean: Tensor
        self.scale: Tensor

    @classmethod
    def fit(cls, images: Tensor, latent_channels: int, patch: int, whitening: float = 0.5) -> Self:
        """Return the first stage fitted to uint8 images (N, C, H, W), H and W multiples of the patch side P.

        Args:
            images: training images; at most 2,000 of them, evenly spaced, are looked at.
            latent_channels: components kept, at most P·P·C.
            patch: side P of the square patches, in pixels.
            whitening: 0 keeps the components' spread, 1 makes it equal, values in between lie in between.
        """
        sample = images[:: -(-len(images) // 2000)].double() / 127.5 - 1
        patches = F.unfold(sample, patch, stride=patch).transpose(1, 2).flatten(0, 1)  # (M, 16·C)
        mean = patches.mean(0)
        covariance = torch.cov(patches.T)
        variance, vectors = torch.linalg.eigh(covariance)
        variance = variance.flip(0)[:latent_channels].clamp_min(1e-8)
        basis = vectors.flip(1)[:, :latent_channels].T  # (L, 16·C)
        # The sign of an eigenvector is arbitrary: fix it, so that the same images give the same latents everywhere.
        # Entries that cancel (left against right) have no sum to go by; an uneven ramp tells those apart.
        total, ramp = basis.sum(1, keepdim=True), torch.arange(1, basis.shape[1] + 1).double().sqrt()
        direction = torch.where(total.abs() > 1e-8, total, (basis * ramp).sum(1, keepdim=True))
        basis = basis * torch.where(direction < 0, -1.0, 1.0)
        stage = cls(images.shape[1], latent_channels, patch)
        stage.basis.copy_(basis.view_as(stage.basis))
        stage.mean.copy_(mean.view_as(stage.mean))
        # Half-way to white: fully white latents would spend the denoiser on the faintest texture, raw ones on shading.
        scale = variance.sqrt() ** whitening
        scaled_variance = (variance / scale.square()).mean()
        stage.scale.copy_((scale * scaled_variance.sqrt()).view_as(stage.scale))
        return stage

    def encode(self, images: Tensor) -> Tensor:
        """Return latents (B, L, H/P, W/P) of images (B, C, H, W) in [-1, 1]."""
        tiles = (images.shape[2] // self.patch, images.shape[3] // self.patch)
        return F.conv2d(images - self.mean.tile(tiles), self.basis, stride=self.patch) / self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, C, H, W) of latents (B, L, H/P, W/P); values may leave [-1, 1] slightly."""
        tiles = (latents.shape[2], latents.shape[3])
        return F.conv_transpose2d(latents * self.scale, self.basis, stride=self.patch) + self.mean.tile(tiles)


class KLStage(FirstStage):
    """A convolutional autoencoder with a normal posterior (arXiv 2112.10752), its latents normalised by channel.

    Each width after the first halves the sides. `train_kl` gives a useful one.
    """

    def __init__(self, image_channels: int, latent_channels: int, channels: Sequence[int]) -> None:
        """Build an untrained first stage; ValueError where a width is not a multiple of 16."""
        super().__init__()
        channels = [int(width) for width in channels]
        if not channels or any(width <= 0 or width % _KL_GROUPS for width in channels):
            raise ValueError(f"widths of the KL stage: expected multiples of {_KL_GROUPS}, found {channels}")
        self.register_to_config(
            image_channels=image_channels, latent_channels=latent_channels, channels=channels
        )
        self.image_channels, self.latent_channels = image_channels, latent_channels
        self.factor = 2 ** (len(channels) - 1)
        self.vae = AutoencoderKL(
            in_channels=image_channels,
            out_channels=image_channels,
            latent_channels=latent_channels,
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            block_out_channels=tuple(channels),
            layers_per_block=1,
            norm_num_groups=_KL_GROUPS,
            mid_block_add_attention=False,
        )
        self.register_buffer("mean", torch.zeros(1, latent_channels, 1, 1))
        self.register_buffer("std", torch.ones(1, latent_channels, 1, 1))
        self.mean: Tensor
        self.std: Tensor

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and logarithm of the variance (B, L, h, w), not normalised, of images (B, C, H, W) in [-1, 1]."""
        normal = self.vae.encode(images).latent_dist
        return normal.mean, normal.logvar

    def encode(self, images: Tensor) -> Tensor:
        """Return the posterior's means, normalised: (B, L, H/f, W/f) of images (B, C, H, W) in [-1, 1]."""
        return (self.posterior(images)[0] - self.mean) / self.std

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, C, H, W) of latents (B, L, H/f, W/f)."""
        images: Tensor = self.vae.decode(latents * self.std + self.mean).sample
        return images


class PixelStage(FirstStage):
    """No first stage: the latents are the images in [-1, 1]."""

    def __init__(self, image_channels: int) -> None:
        """Build it for images of so many channels."""
        super().__init__()
        self.register_to_config(image_channels=image_channels)
        self.image_channels = self.latent_channels = image_channels
        self.factor = 1
        # diffusers asks every module of a pipeline where it is; this one has no weights that could tell.
        self.register_buffer("place", torch.empty(0), persistent=False)

    def encode(self, images: Tensor) -> Tensor:
        """Return `images` (B, C, H, W)."""
        return images

    def decode(self, latents: Tensor) -> Tensor:
        """Return `latents` (B, C, H, W)."""
        return latents
