"""Augmentation of whole batches: mirror, shift, brightness and contrast, from an explicit generator."""

from __future__ import annotations

import torch
from torch import Tensor

_SHIFT = 1 / 16  # largest shift as a share of the side: more moves chins and hair out of the picture
_CONTRAST = 0.2
_BRIGHTNESS = 0.2  # in the units of [-1, 1]


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return a randomly changed copy of images x (B, C, H, W), float in [-1, 1]; faces stay what they are.

    Each image is mirrored with probability 1/2, shifted by up to 1/16 of its side (the border is repeated),
    scaled by 1 ± 0.2 and brightened by ± 0.2. Values may leave [-1, 1].

    Args:
        x: the images, on any device.
        generator: on the CPU, so that all devices draw alike.
    """
    batch, _, height, width = x.shape
    mirrored = torch.rand(batch, generator=generator) < 0.5
    shift = max(1, round(_SHIFT * max(height, width)))
    down = torch.randint(0, 2 * shift + 1, (batch, 1), generator=generator)
    right = torch.randint(0, 2 * shift + 1, (batch, 1), generator=generator)
    contrast = 1 + _CONTRAST * (2 * torch.rand(batch, 1, 1, 1, generator=generator) - 1)
    brightness = _BRIGHTNESS * (2 * torch.rand(batch, 1, 1, 1, generator=generator) - 1)

    rows = (down + torch.arange(height) - shift).clamp_(0, height - 1)  # (B, H) source rows
    columns = right + torch.arange(width) - shift
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns).clamp_(0, width - 1)  # (B, W)
    index = (rows[:, :, None] * width + columns[:, None, :]).to(x.device)  # (B, H, W)
    flat = x.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, x.shape[1], -1))
    changed = flat.view(x.shape).mul_(contrast.to(x.device)).add_(brightness.to(x.device))
    return changed.contiguous(memory_format=torch.channels_last)
