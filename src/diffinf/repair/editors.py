"""The editors: what an edit decodes from, under which contexts, and with which help; `decode_edit` does the rest.

A semantic code says little about an expression, and the stochastic code of an inversion holds the one the image has.
Each editor is a way out of that, or the baseline that has none; `repair.editor` chooses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diffinf.config import EditorName, RepairConfig
from diffinf.diffusion.interface import Autoencoder
from diffinf.training.loop import step_generator

# The strength from which on the label's context is heard in full; below it, the edit fades into the round trip.
HEARD = 0.5
# How far a linear edit goes at strength 1, in units of a normalised code's expected norm (arXiv 2111.15640).
LINEAR_STEP = 0.3


@dataclass(frozen=True)
class Inverted:
    """A batch of images taken apart.

    Attributes:
        code: normalised semantic codes (B, D).
        latents: clean latents (B, L, h, w).
        noisy: the latents carried up to the depth of the settings.
        roundtrip: uint8 images (B, C, H, W), decoded without an edit.
    """

    code: Tensor
    latents: Tensor
    noisy: Tensor
    roundtrip: Tensor

    def at(self, rows: Tensor) -> Inverted:
        """Return the images at `rows` alone."""
        return Inverted(self.code[rows], self.latents[rows], self.noisy[rows], self.roundtrip[rows])


@dataclass(frozen=True)
class Plan:
    """How a batch is decoded.

    Attributes:
        noisy: the latents (B, L, h, w) that the decode starts from.
        positive: contexts (B, W) that the decode is drawn to.
        negative: contexts (B, W) that it is drawn away from.
        scale: w of (1 + w)·positive - w·negative; 0 is the positive context alone, -1 the negative one.
        guide: how hard the guide pulls the predicted clean latents towards the labels, under the positive context
            alone; the rule of the contexts then makes a face of what it drew. 0: no guide, and the rule all the way.
    """

    noisy: Tensor
    positive: Tensor
    negative: Tensor
    scale: float
    guide: float = 0.0


@dataclass(frozen=True)
class Wish:
    """What a batch of edits should come to.

    Attributes:
        code: normalised codes (B, D) moved by the objective, at full strength.
        labels: assigned labels (B,).
        shown: what the images appear to show, (B, K), rows summing to 1.
    """

    code: Tensor
    labels: Tensor
    shown: Tensor

    def at(self, rows: Tensor) -> Wish:
        """Return what is wished of the images at `rows` alone."""
        return Wish(self.code[rows], self.labels[rows], self.shown[rows])

    @property
    def assigned(self) -> Tensor:
        """The assigned labels as shares (B, K)."""
        return F.one_hot(self.labels, self.shown.shape[1]).float()


Editor = Callable[[Autoencoder, Inverted, Wish, float, RepairConfig], Plan]


def contexts(model: Autoencoder, parts: Inverted, wish: Wish, strength: float, config: RepairConfig) -> Plan:
    """Decode towards the assigned label and away from the shown one: the rule of arXiv 2508.09661 put to work.

    Up to 1, the strength is how far the code goes and how far apart the contexts are; at 0 both are what the image is.
    """
    share = min(strength, 1.0)
    label = torch.lerp(wish.shown, wish.assigned, min(strength / HEARD, 1.0))
    moved = torch.lerp(parts.code, wish.code, share)
    away = moved if model.reads_labels else parts.code
    return Plan(
        noisy=parts.noisy,
        positive=model.context(moved, label),
        negative=model.context(away, wish.shown),
        scale=share * (1 + config.guidance) - 1,  # at strength 0 the negative context alone is left
    )


def renoised(model: Autoencoder, parts: Inverted, wish: Wish, strength: float, config: RepairConfig) -> Plan:
    """As `contexts`, but part of the stochastic code's variance is fresh noise: less of the old expression is left."""
    plan = contexts(model, parts, wish, strength, config)
    share = config.fresh_noise * min(strength, 1.0)
    # One noise for all: an edit must not depend on its neighbours in the batch.
    noise = torch.randn(parts.noisy.shape[1:], generator=step_generator(0, "fresh noise", 0)).to(parts.noisy)
    spread = parts.noisy.std((1, 2, 3), keepdim=True)
    noisy = (1 - share) ** 0.5 * parts.noisy + share**0.5 * spread * noise
    return Plan(noisy, plan.positive, plan.negative, plan.scale)


def guide(model: Autoencoder, parts: Inverted, wish: Wish, strength: float, config: RepairConfig) -> Plan:
    """As `guided`, but with the assigned label alone: classifier guidance without a negative context."""
    plan = contexts(model, parts, wish, strength, config)
    return Plan(plan.noisy, plan.positive, plan.negative, 0.0, strength * config.guide_scale)


def guided(model: Autoencoder, parts: Inverted, wish: Wish, strength: float, config: RepairConfig) -> Plan:
    """Let the guide draw, the harder the greater the strength, also beyond 1; then decode as `contexts` does."""
    plan = contexts(model, parts, wish, strength, config)
    return Plan(plan.noisy, plan.positive, plan.negative, plan.scale, strength * config.guide_scale)


def codes(model: Autoencoder, parts: Inverted, wish: Wish, strength: float, config: RepairConfig) -> Plan:
    """Decode the code that the objective moved, and leave the label's context as it was."""
    context = model.context(torch.lerp(parts.code, wish.code, strength), wish.shown)
    return Plan(parts.noisy, context, context, 0.0)


def linear(model: Autoencoder, parts: Inverted, wish: Wish, strength: float, config: RepairConfig) -> Plan:
    """Move the code along the direction of the linear attribute head, as arXiv 2111.15640 edits attributes."""
    with torch.enable_grad():
        code = parts.code.detach().requires_grad_(True)
        logits, _ = model.read_code(code)
        (direction,) = torch.autograd.grad((logits * (wish.assigned - wish.shown)).sum(), code)
    step = strength * LINEAR_STEP * code.shape[1] ** 0.5
    context = model.context(parts.code + step * F.normalize(direction, dim=1), wish.shown)
    return Plan(parts.noisy, context, context, 0.0)


EDITORS: dict[EditorName, Editor] = {
    "guided": guided,
    "guide": guide,
    "contexts": contexts,
    "renoised": renoised,
    "codes": codes,
    "linear": linear,
}
