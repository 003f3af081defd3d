"""DDIM (arXiv 2010.02502) as DiffAE runs it: from images to x_T and back, over chosen timesteps, nothing clipped.

An image counts as lying at the first timestep's noise level, and the last step up takes the predicted noise itself
for x_T; the last step down takes the predicted clean image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffinf.diffusion.invert import Correction

# (noisy images (B, C, H, W), timesteps (B,)) -> predicted noise (B, C, H, W)
NoisePrediction = Callable[[Tensor, Tensor], Tensor]


def spaced_timesteps(timesteps: int, steps: int, depth: float = 1.0) -> list[int]:
    """Return `steps` ascending timesteps from 0 on, below `depth`·`timesteps`.

    They lie a whole number apart, as the original's DDIM has it (20 of 1000: 0, 50, ..., 950), where such a number
    exists; else as evenly as whole numbers allow.
    """
    count = max(steps, round(depth * timesteps))
    stride = -(-count // steps)
    if -(-count // stride) == steps:
        return list(range(0, count, stride))
    return [index * count // steps for index in range(steps)]


def _clean(noisy: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    return (noisy - (1 - alpha).sqrt() * noise) / alpha.sqrt()


@torch.no_grad()
def ddim_invert(
    images: Tensor,
    predict: NoisePrediction,
    alphas_cumprod: Tensor,
    timesteps: Sequence[int],
    last_alpha: float = 0.0,
) -> Tensor:
    """Return images (B, C, H, W) in [-1, 1] carried up to the noise level `last_alpha`.

    Args:
        images: clean images.
        predict: the network under its code; asked once a timestep.
        alphas_cumprod: (T,), share of the variance that is signal.
        timesteps: ascending.
        last_alpha: where the last step leads; 0 is pure noise, the x_T of arXiv 2111.15640.
    """
    alphas = [*(alphas_cumprod[t] for t in timesteps), alphas_cumprod.new_tensor(last_alpha)]
    for index, t in enumerate(timesteps):
        noise = predict(images, torch.full((len(images),), t, device=images.device))
        clean = _clean(images, noise, alphas[index])
        images = alphas[index + 1].sqrt() * clean + (1 - alphas[index + 1]).sqrt() * noise
    return images


@torch.no_grad()
def ddim_decode(
    noisy: Tensor,
    predict: NoisePrediction,
    alphas_cumprod: Tensor,
    timesteps: Sequence[int],
    correct: Correction | None = None,
) -> Tensor:
    """Return clean images (B, C, H, W) of noisy ones at the last timestep's noise level.

    Args:
        noisy: x_T, or what `ddim_invert` carried up to the last timestep's level.
        predict: the network under its code; asked once a timestep.
        alphas_cumprod: (T,).
        timesteps: ascending; gone through backwards.
        correct: changes the predicted clean images at a step that is so far, in (0, 1], from the end; the noise
            is adapted so that the noisy images stay where they are.
    """
    alphas = [alphas_cumprod.new_ones(()), *(alphas_cumprod[t] for t in timesteps)]
    for index in reversed(range(len(timesteps))):
        noise = predict(noisy, torch.full((len(noisy),), timesteps[index], device=noisy.device))
        alpha = alphas[index + 1]
        clean = _clean(noisy, noise, alpha)
        if correct is not None:
            clean = correct(clean, (index + 1) / len(timesteps))
            noise = (noisy - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        noisy = alphas[index].sqrt() * clean + (1 - alphas[index]).sqrt() * noise
    return noisy
