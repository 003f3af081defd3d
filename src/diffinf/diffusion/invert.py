"""Deterministic inversion and decoding (DDIM, arXiv 2010.02502) between clean latents and a chosen noise level.

The update that goes from one noise level to another is the same in both directions. Nothing is clipped: a clipped
inversion cannot be undone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# (noisy latents (B, L, h, w), timesteps (B,)) -> what the model predicts, here v, (B, L, h, w)
Prediction = Callable[[Tensor, Tensor], Tensor]
# (predicted clean latents (B, L, h, w), distance from the end in (0, 1]) -> clean latents
Correction = Callable[[Tensor, float], Tensor]


def timestep_grid(timesteps: int, steps: int, depth: float) -> list[int]:
    """Return `steps` ascending timesteps that end at `depth`·`timesteps` - 1 and are evenly spaced from there to 0."""
    last = max(steps, round(depth * timesteps)) - 1
    return [round((index + 1) * (last + 1) / steps) - 1 for index in range(steps)]


def _moved(noisy: Tensor, v: Tensor, alpha_from: Tensor, alpha_to: Tensor) -> Tensor:
    """Return the latents at noise level `alpha_to` on the trajectory that `v` gives at `alpha_from`."""
    clean = alpha_from.sqrt() * noisy - (1 - alpha_from).sqrt() * v
    noise = alpha_from.sqrt() * v + (1 - alpha_from).sqrt() * noisy
    return alpha_to.sqrt() * clean + (1 - alpha_to).sqrt() * noise


@torch.no_grad()
def invert(
    alphas_cumprod: Tensor, latents: Tensor, predict: Prediction, *, steps: int, depth: float = 1.0
) -> Tensor:
    """Return the stochastic code: `latents` (B, L, h, w) carried up to noise level `depth` in (0, 1].

    `alphas_cumprod` (T,) is the share of the variance that is signal, by timestep.
    Costs `steps` network evaluations. At depth 1 this is the x_T of arXiv 2111.15640.
    """
    one = torch.ones((), device=latents.device)
    levels = timestep_grid(len(alphas_cumprod), steps, depth)
    alphas = [one, *(alphas_cumprod[t] for t in levels)]
    for index, t in enumerate(levels):
        # The network is asked at the level it is carried to: asked at level 0 it has never seen anything to denoise.
        v = predict(latents, torch.full((len(latents),), t, device=latents.device))
        latents = (
            _moved(latents, v, alphas[index], alphas[index + 1]) if index else _first(latents, v, alphas[1])
        )
    return latents


def _first(latents: Tensor, v: Tensor, alpha: Tensor) -> Tensor:
    """Leave noise level 0, where the trajectory's noise is v itself."""
    return alpha.sqrt() * latents + (1 - alpha).sqrt() * v


@torch.no_grad()
def decode(
    alphas_cumprod: Tensor,
    noisy: Tensor,
    predict: Prediction,
    *,
    steps: int,
    depth: float = 1.0,
    correct: Correction | None = None,
) -> Tensor:
    """Return clean latents (B, L, h, w) from latents at noise level `depth`; undoes `invert` up to its error.

    Args:
        alphas_cumprod: (T,), the share of the variance that is signal, by timestep.
        noisy: latents (B, L, h, w) at noise level `depth`.
        predict: the denoiser under its context.
        steps: network evaluations.
        depth: in (0, 1].
        correct: changes the predicted clean latents at a step that is so far, in (0, 1], from the end; the noise
            is adapted so that the noisy latents stay where they are.
    """
    levels = timestep_grid(len(alphas_cumprod), steps, depth)
    alphas = [torch.ones((), device=noisy.device), *(alphas_cumprod[t] for t in levels)]
    for index in reversed(range(steps)):
        alpha = alphas[index + 1]
        v = predict(noisy, torch.full((len(noisy),), levels[index], device=noisy.device))
        clean = alpha.sqrt() * noisy - (1 - alpha).sqrt() * v
        if correct is not None:
            clean = correct(clean, (index + 1) / steps)
        noise = (noisy - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        noisy = alphas[index].sqrt() * clean + (1 - alphas[index]).sqrt() * noise
    return noisy
