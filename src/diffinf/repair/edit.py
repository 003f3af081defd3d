"""The edit: taking images apart, decoding them as an editor plans it, and keeping what was not edited.

The editors are in `diffinf.repair.editors`. By default an edit is decoded twice. First a guide that reads through noise
draws the label's features into the predicted clean image: it finds them, but it smudges. Then the drawing is carried up
to a lower noise level, with the image's own noise, and the denoiser alone makes a face of it: to the assigned label,
and away from what the image appears to show, v = (1 + w)·v(c+) - w·v(c-), the rule of NegFaceDiff (arXiv 2508.09661).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from diffinf.config import RepairConfig
from diffinf.diffusion.interface import Autoencoder
from diffinf.diffusion.invert import Prediction
from diffinf.errors import UserError
from diffinf.repair.editors import EDITORS, Inverted, Plan, Wish
from diffinf.training.loop import step_generator


@dataclass(frozen=True)
class Edited:
    """A batch of edits, decoded.

    Attributes:
        images: uint8 (B, C, H, W).
        drawn: the same before the denoiser made a face of them: where these differ from the unedited round trip, there
            is an edit.
    """

    images: Tensor
    drawn: Tensor


def check_noise_levels(config: RepairConfig, max_depth: float, most_steps: Callable[[float], int]) -> None:
    """Check that an autoencoder has the noise levels that a repair is to visit.

    Args:
        config: settings.
        max_depth: highest noise level that its denoiser was trained on.
        most_steps: how many steps an inversion or a decode to a depth can take.

    Raises:
        UserError: a depth is beyond what was trained, or the steps are finer than the noise levels.
    """
    for name, depth in (("depth", config.depth), ("finish_depth", config.finish_depth)):
        if depth > max_depth:
            raise UserError(
                f"repair.{name}: {depth} is a noise level beyond the deepest that the denoiser was trained on, "
                f"autoencoder.max_depth ({max_depth}); lower repair.{name}, or train an autoencoder with a greater "
                "autoencoder.max_depth"
            )
    for name, steps, depth in (
        ("diffusion_steps", config.diffusion_steps, config.depth),
        ("inversion_steps", config.inversion_steps or config.diffusion_steps, config.depth),
        ("finish_steps", config.finish_steps, config.finish_depth),
    ):
        if steps > (most := most_steps(depth)):
            raise UserError(
                f"repair.{name}: {steps} steps to depth {depth} are finer than the noise levels; the largest "
                f"possible number is {most}"
            )


@torch.no_grad()
def take_apart(model: Autoencoder, images: Tensor, shown: Tensor, config: RepairConfig) -> Inverted:
    """Invert uint8 images (B, C, H, W) and decode them back.

    Args:
        model: the autoencoder.
        images: the images.
        shown: how much of each class the image appears to show, (B, K), rows summing to 1.
        config: settings.

    Raises:
        UserError: images do not fit, or inversion and decode of so many steps do not meet at one noise level.
    """
    steps = config.inversion_steps or config.diffusion_steps
    if model.signal(steps, config.depth) != model.signal(config.diffusion_steps, config.depth):
        raise UserError(
            f"repair.inversion_steps: {steps} steps end at another noise level than the decode's "
            f"{config.diffusion_steps} begin at with this autoencoder; leave repair.inversion_steps null"
        )
    latents = model.to_latents(images)
    code = model.code(latents)
    context = model.context(code, shown)

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        return model.predict(noisy, t, context)

    noisy = model.invert_latents(latents, predict, steps=steps, depth=config.depth)
    back = model.decode_latents(noisy, predict, steps=config.diffusion_steps, depth=config.depth)
    return Inverted(code, latents, noisy, model.to_images(back))


def negative_guidance(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Return (1 + w)·positive - w·negative (arXiv 2508.09661) for predictions of any shape.

    The rule is linear, so it is the same for noise, v and clean predictions.
    """
    return positive + scale * (positive - negative)


@torch.no_grad()
def decode_edit(
    model: Autoencoder,
    parts: Inverted,
    wish: Wish,
    strength: float,
    config: RepairConfig,
) -> Edited:
    """Decode a batch of edits.

    Args:
        model: the autoencoder.
        parts: the images taken apart.
        wish: what they should show, and the moved codes.
        strength: how far the editor of the settings goes; 1 is the whole way, beyond it the guide alone pulls harder.
        config: settings.
    """
    plan = EDITORS[config.editor](model, parts, wish, strength, config)
    steps, depth = config.diffusion_steps, config.depth
    if not plan.guide:
        images = model.to_images(
            model.decode_latents(plan.noisy, _prediction(model, plan), steps=steps, depth=depth)
        )
        return Edited(images, images)

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        return model.predict(noisy, t, plan.positive)

    def correct(clean: Tensor, _: float) -> Tensor:
        return guided(model, clean, wish.labels, plan.guide, config)

    drawn = model.decode_latents(plan.noisy, predict, steps=steps, depth=depth, correct=correct)
    finished = _finish(model, parts, plan, drawn, config)
    return Edited(model.to_images(finished), model.to_images(drawn))


def _prediction(model: Autoencoder, plan: Plan) -> Prediction:
    """Return what the denoiser predicts under the contexts of `plan`; a scale of 0 asks it once, not twice."""
    contexts = torch.cat([plan.positive, plan.negative])

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        if plan.scale == 0:
            return model.predict(noisy, t, plan.positive)
        positive, negative = model.predict(noisy.repeat(2, 1, 1, 1), t.repeat(2), contexts).chunk(2)
        return negative_guidance(positive, negative, plan.scale)

    return predict


def _finish(model: Autoencoder, parts: Inverted, plan: Plan, drawn: Tensor, config: RepairConfig) -> Tensor:
    """Carry drawn latents (B, L, h, w) up to a lower noise level and decode them without the guide.

    The noise is what the inversion found in the image, so that its texture stays its own.
    """
    signal = model.signal(config.inversion_steps or config.diffusion_steps, config.depth)
    noise = (parts.noisy - signal**0.5 * parts.latents) / (1 - signal) ** 0.5
    steps, depth = config.finish_steps, config.finish_depth
    signal = model.signal(steps, depth)
    noisy = signal**0.5 * drawn + (1 - signal) ** 0.5 * noise
    return model.decode_latents(noisy, _prediction(model, plan), steps=steps, depth=depth)


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


def keep_unchanged(original: Tensor, roundtrip: Tensor, edited: Edited, config: RepairConfig) -> Tensor:
    """Put the edit into the original where its drawing differs from the unedited round trip, and only there.

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
    source, plain, drawn, changed = (
        x.float() / 127.5 - 1 for x in (original, roundtrip, edited.drawn, edited.images)
    )
    width = config.blend_width * original.shape[-1]
    difference = _blurred((drawn - plain).abs().mean(1, keepdim=True), width)
    mask = (difference / config.blend_difference).clamp(0, 1)
    corrected = changed + _blurred(source - plain, 2 * width)
    blended = mask * corrected + (1 - mask) * source
    return ((blended + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _blurred(images: Tensor, sigma: float) -> Tensor:
    """Blur images (B, C, H, W) by a Gaussian of `sigma` pixels."""
    size = 2 * max(1, round(2 * sigma)) + 1
    blurred: Tensor = gaussian_blur(images, [size, size], [sigma, sigma])
    return blurred
