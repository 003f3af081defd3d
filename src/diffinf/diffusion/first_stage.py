"""The first stage: the closed-form map between images and the latents that the diffusion works on.

A first stage makes latent diffusion (arXiv 2112.10752) cheap by working on a grid that is coarser than the pixels.
Here it is the principal components of 4x4 patches: fitted in a second, the same every time, exact up to the
components left out. At 48-64 px, where one patch is half a mouth high, a small convolutional KL autoencoder is
blurrier after minutes of training on a CPU (docs/method.md has the figures).
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FirstStage(nn.Module):
    """Images (B, C, H, W) in [-1, 1] to latents (B, L, H/P, W/P) of zero mean, and back."""

    def __init__(self, image_channels: int, latent_channels: int, patch: int) -> None:
        """Build a first stage of the right shape; `fit` gives a useful one."""
        super().__init__()
        self.patch = patch
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
