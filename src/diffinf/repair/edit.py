"""The edit: decoding with a positive context (the assigned label, the moved code) against a negative one.

The negative context is what the image appears to show: the label that the cross-fitted judge reads, with the code as it
is. Away from it and towards the assigned label, v = v(c+) + w·(v(c+) - v(c-)): the rule of NegFaceDiff
(arXiv 2508.09661), put to work on repair.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffinf.config import RepairConfig
from diffinf.diffusion.autoencoder import DiffusionAutoencoder
from diffinf.diffusion.invert import Prediction, decode, invert


@dataclass(frozen=True)
class Inverted:
    """A batch of images taken apart.

    Attributes:
        code: normalised semantic codes (B, D).
        noisy: latents (B, L, h, w) carried up to the depth of the settings.
        roundtrip: uint8 images (B, C, H, W), decoded without an edit.
    """

    code: Tensor
    noisy: Tensor
    roundtrip: Tensor


def _conditioned(model: DiffusionAutoencoder, context: Tensor) -> Prediction:
    return lambda noisy, t: model.denoiser(noisy, t, context)


def _context(model: DiffusionAutoencoder, code: Tensor, labels: Tensor) -> Tensor:
    context: Tensor = model.denoiser.context(code * model.code_std + model.code_mean, labels)
    return context


@torch.no_grad()
def take_apart(
    model: DiffusionAutoencoder, images: Tensor, appears: Tensor, config: RepairConfig
) -> Inverted:
    """Invert uint8 images (B, C, H, W) under the label that each appears to show, (B,), and decode them back."""
    latents = model.to_latents(images)
    code = model.normalised(model.encoder(latents))
    predict = _conditioned(model, _context(model, code, appears))
    noisy = invert(model, latents, predict, steps=config.diffusion_steps, depth=config.depth)
    back = decode(model, noisy, predict, steps=config.diffusion_steps, depth=config.depth)
    return Inverted(code, noisy, model.to_images(back))


def negative_guidance(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Return (1 + w)·positive - w·negative (arXiv 2508.09661, eq. 5) for predictions of any shape.

    The rule is linear, so it is the same for noise, v and clean predictions.
    """
    return positive + scale * (positive - negative)


@torch.no_grad()
def decode_edit(
    model: DiffusionAutoencoder,
    parts: Inverted,
    code: Tensor,
    labels: Tensor,
    appears: Tensor,
    strength: float,
    config: RepairConfig,
) -> Tensor:
    """Return edited uint8 images (B, C, H, W).

    Args:
        model: the autoencoder.
        parts: the images taken apart.
        code: edited normalised codes (B, D), at full strength.
        labels: assigned labels (B,).
        appears: labels that the images appear to show (B,).
        strength: in (0, 1]: how far the code goes, and how hard the guidance pulls.
        config: settings.
    """
    moved = parts.code + strength * (code - parts.code)
    contexts = torch.cat([_context(model, moved, labels), _context(model, parts.code, appears)])
    scale = strength * (1 + config.guidance) - 1  # at strength 0 nothing is left but the negative context

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        positive, negative = model.denoiser(noisy.repeat(2, 1, 1, 1), t.repeat(2), contexts).chunk(2)
        return negative_guidance(positive, negative, scale)

    latents = decode(model, parts.noisy, predict, steps=config.diffusion_steps, depth=config.depth)
    return model.to_images(latents)
