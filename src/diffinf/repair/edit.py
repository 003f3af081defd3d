"""The edit: decoding with a positive context (the assigned label, the moved code) against a negative one.

The negative context is what the image appears to show: the label that the cross-fitted classifiers read. Away from it
and towards the assigned label, v = (1 + w)·v(c+) - w·v(c-): the rule of NegFaceDiff (arXiv 2508.09661), put to work
on repair. While there is still noise, a guide that reads through noise draws the label's features into the predicted
clean image; then the denoiser alone makes a face of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from diffinf.config import RepairConfig
from diffinf.diffusion.interface import Autoencoder
from diffinf.training.loop import step_generator


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


@torch.no_grad()
def take_apart(model: Autoencoder, images: Tensor, shown: Tensor, config: RepairConfig) -> Inverted:
    """Invert uint8 images (B, C, H, W) and decode them back.

    Args:
        model: the autoencoder.
        images: the images.
        shown: how much of each class the image appears to show, (B, K), rows summing to 1.
        config: settings.
    """
    latents = model.to_latents(images)
    code = model.code(latents)
    context = model.context(code, shown)

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        return model.predict(noisy, t, context)

    noisy = model.invert_latents(latents, predict, steps=config.diffusion_steps, depth=config.depth)
    back = model.decode_latents(noisy, predict, steps=config.diffusion_steps, depth=config.depth)
    return Inverted(code, noisy, model.to_images(back))


def negative_guidance(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Return (1 + w)·positive - w·negative (arXiv 2508.09661) for predictions of any shape.

    The rule is linear, so it is the same for noise, v and clean predictions.
    """
    return positive + scale * (positive - negative)


@torch.no_grad()
def decode_edit(
    model: Autoencoder,
    parts: Inverted,
    code: Tensor,
    labels: Tensor,
    shown: Tensor,
    strength: float,
    config: RepairConfig,
) -> Tensor:
    """Return edited uint8 images (B, C, H, W).

    Args:
        model: the autoencoder.
        parts: the images taken apart.
        code: edited normalised codes (B, D), at full strength.
        labels: assigned labels (B,).
        shown: what the images appear to show, (B, K).
        strength: how hard the guide pulls; up to 1 also how far the code goes and the contexts are apart.
        config: settings.
    """
    share = min(strength, 1.0)
    moved = parts.code + share * (code - parts.code)
    assigned = F.one_hot(labels, shown.shape[1]).float()
    away = moved if model.reads_labels else parts.code
    contexts = torch.cat([model.context(moved, assigned), model.context(away, shown)])
    scale = share * (1 + config.guidance) - 1  # at strength 0 the negative context alone is left

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        positive, negative = model.predict(noisy.repeat(2, 1, 1, 1), t.repeat(2), contexts).chunk(2)
        return negative_guidance(positive, negative, scale)

    def correct(clean: Tensor, remaining: float) -> Tensor:
        # Once the guide is silent, the denoiser turns what it drew into a face again.
        if remaining <= config.guide_until:
            return clean
        return guided(model, clean, labels, strength * config.guide_scale, config)

    latents = model.decode_latents(
        parts.noisy, predict, steps=config.diffusion_steps, depth=config.depth, correct=correct
    )
    return model.to_images(latents)


def guided(model: Autoencoder, clean: Tensor, labels: Tensor, scale: float, config: RepairConfig) -> Tensor:
    """Move predicted clean latents (B, L, h, w) towards showing `labels` (B,), by the gradient of the guide.

    Classifier guidance on the predicted clean latents (arXiv 2105.05233, 2302.07121) with a guide that reads
    through noise. Two things keep it to the face's features: what is smooth over many positions is taken out of
    the gradient (shading, tint and the like go with a label in the data, but do not make an expression), and only
    the share of positions where it is strongest moves.
    """
    # The same noise for all samples, and its negative: an edit must not depend on its neighbours in the batch.
    generator = step_generator(0, "guide noise", 0)
    noise = config.guide_noise * torch.randn(clean.shape[1:], generator=generator).to(clean.device)
    with torch.enable_grad():
        moved = clean.detach().requires_grad_(True)
        logits = model.guide_logits(torch.cat([moved + noise, moved - noise]))
        error = F.cross_entropy(logits, labels.repeat(2), reduction="sum")
        (gradient,) = torch.autograd.grad(-error, moved)
    gradient = gradient - _blurred(gradient, config.guide_smoothness * model.position)
    strength = _blurred(gradient.square().sum(1, keepdim=True), 0.8 * model.position)  # (B, 1, h, w)
    least = strength.flatten(1).quantile(1 - config.guide_share, dim=1)[:, None, None, None]
    gradient = gradient * (strength >= least)
    size = gradient.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
    return clean + scale * gradient / size


def keep_unchanged(original: Tensor, roundtrip: Tensor, edited: Tensor, config: RepairConfig) -> Tensor:
    """Put the edit into the original where it differs from the unedited round trip, and only there.

    What the edit did not touch keeps its pixels; what it touched is corrected by the smooth part of the round
    trip's error (shading, tint), so that no seam shows.

    Args:
        original: uint8 (B, C, H, W).
        roundtrip: the same images decoded without an edit.
        edited: decoded with the edit.
        config: settings.

    Returns:
        uint8 (B, C, H, W).
    """
    source, plain, changed = (x.float() / 127.5 - 1 for x in (original, roundtrip, edited))
    width = config.blend_width * original.shape[-1]
    difference = _blurred((changed - plain).abs().mean(1, keepdim=True), width)
    mask = (difference / config.blend_difference).clamp(0, 1)
    corrected = changed + _blurred(source - plain, 2 * width)
    blended = mask * corrected + (1 - mask) * source
    return ((blended + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _blurred(images: Tensor, sigma: float) -> Tensor:
    """Blur images (B, C, H, W) by a Gaussian of `sigma` pixels."""
    size = 2 * max(1, round(2 * sigma)) + 1
    blurred: Tensor = gaussian_blur(images, [size, size], [sigma, sigma])
    return blurred
