"""Guidance by the embedder that contexts come from: it reads each predicted clean image, which gives way."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffinf.errors import UserError
from diffinf.generate.model import ContextGenerator

_SHARPNESS = 16.0  # of the softmax over cosines, as in the embedder's training


@dataclass(frozen=True)
class IdentityGuidance:
    """Moves predicted clean latents until an embedder tells the asked-for context from the others of the run.

    Guidance on the predicted clean image, so that the denoiser is never differentiated (as arXiv 2302.07121, 2303.09833
    guide by other networks); new is that the context has to win a softmax over all contexts of the run. What the
    embedder reads so is no measure of the result any more: judge it by a network that had no part in it.

    Attributes:
        network: images (B, C, H, W) in [-1, 1] to vectors (B, D), in evaluation mode.
        contexts: (P, D) of unit length, all that the run asks for, where the network is.
        strength: length of the move in standard deviations of the noise that is left (root mean square over a latent).
        highest: noise level, in [0, 1], above which predicted images are too vague to be read.
        steps: gradients of one move.
    """

    network: nn.Module
    contexts: Tensor
    strength: float = 0.3
    highest: float = 0.6
    steps: int = 3

    def __post_init__(self) -> None:
        """Raise a UserError where a value is out of range."""
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise UserError(f"identity guidance: expected a number of at least 0, found {self.strength}")
        if not 0 <= self.highest <= 1 or self.steps < 1:
            raise UserError(
                f"identity guidance: expected a level from 0 to 1 and a step, found {self.highest}, {self.steps}"
            )

    def corrected(
        self,
        model: ContextGenerator,
        noisy: Tensor,
        output: Tensor,
        timestep: int,
        wanted: Tensor,
        rows: Tensor,
    ) -> Tensor:
        """Return the denoiser's prediction (B, L, h, w) that leads to the moved images, in the place of `output`.

        Args:
            model: denoiser's noise levels, and the first stage that turns latents into images.
            noisy: latents (B, L, h, w) that the denoiser was given.
            output: its prediction, the noise or v.
            timestep: of the noise level.
            wanted: contexts (B, D) of unit length that the images were asked for by.
            rows: int64 (B,), which of `contexts` they belong to: a perturbed one is not its own rival.
        """
        if self.strength == 0 or timestep > self.highest * model.timesteps:
            return output
        signal = model.alphas_cumprod[timestep].sqrt()
        deviation = (1 - signal.square()).sqrt()
        if model.scheduler.config.prediction_type == "epsilon":
            moved = self._moved(model, (noisy - deviation * output) / signal, wanted, rows, deviation)
            return (noisy - signal * moved) / deviation
        moved = self._moved(model, signal * noisy - deviation * output, wanted, rows, deviation)
        return (signal * noisy - moved) / deviation

    @torch.enable_grad()
    def _moved(
        self, model: ContextGenerator, clean: Tensor, wanted: Tensor, rows: Tensor, deviation: Tensor
    ) -> Tensor:
        moved = clean.detach()
        for _ in range(self.steps):
            latents = moved.requires_grad_(True)
            vectors = F.normalize(self.network(model.first_stage.decode(latents).clamp(-1, 1)), dim=1)
            cosines = (vectors @ self.contexts.T).scatter(
                1, rows[:, None], (vectors * wanted).sum(1, keepdim=True)
            )
            fit = -F.cross_entropy(_SHARPNESS * cosines, rows, reduction="sum")
            (gradient,) = torch.autograd.grad(fit, latents)
            length = gradient.flatten(1).square().mean(1).sqrt().clamp_min(1e-12).view(-1, 1, 1, 1)
            moved = (latents + self.strength / self.steps * deviation * gradient / length).detach()
        return moved
