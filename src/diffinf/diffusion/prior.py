"""The latent prior: a small diffusion model of semantic codes (arXiv 2111.15640), so that faces can be drawn anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from diffinf.diffusion.component import Component
from diffinf.diffusion.invert import decode
from diffinf.training.loop import batch_indices, fit, seeded, step_generator, warmup_cosine

PRIOR_CHECKPOINT = "prior.checkpoint"
_LEARNING_RATE = 1e-3
_BATCH_SIZE = 256


class LatentPrior(Component):
    """Noisy normalised codes (B, D) to v: every layer sees the code again, and is scaled by time and class."""

    def __init__(self, code_size: int, num_classes: int, width: int = 96, layers: int = 4) -> None:
        """Build an untrained prior."""
        super().__init__()
        self.register_to_config(code_size=code_size, num_classes=num_classes, width=width, layers=layers)
        self.code_size, self.width = code_size, width
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Linear(num_classes, width, bias=False)
        inputs = [code_size, *[width + code_size] * (layers - 1)]
        self.hidden = nn.ModuleList(nn.Linear(size, width) for size in inputs)
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in inputs)
        self.scales = nn.ModuleList(nn.Linear(width, 2 * width) for _ in inputs)
        self.out = nn.Linear(width + code_size, code_size)

    def forward(self, noisy: Tensor, timestep: Tensor, shares: Tensor) -> Tensor:
        """Return v (B, D) for noisy codes (B, D), timesteps (B,) and shares of the classes (B, K)."""
        context = F.silu(self.time(get_timestep_embedding(timestep, self.width)) + self.label(shares))
        inputs = noisy
        for hidden, norm, scale in zip(self.hidden, self.norms, self.scales, strict=True):
            factor, shift = scale(context).chunk(2, dim=1)
            features = F.silu(norm(hidden(inputs)) * (1 + factor) + shift)
            inputs = torch.cat([features, noisy], dim=1)
        v: Tensor = self.out(inputs)
        return v

    def sample(self, shares: Tensor, scheduler: Any, *, steps: int, generator: torch.Generator) -> Tensor:
        """Return normalised codes (B, D) drawn under shares of the classes (B, K); `generator` is on the CPU."""
        noise = torch.randn(len(shares), self.code_size, generator=generator).to(shares.device)
        return decode(scheduler, noise, lambda noisy, t: self(noisy, t, shares), steps=steps)


def train_prior(
    codes: Tensor,
    shares: Tensor,
    alphas_cumprod: Tensor,
    *,
    steps: int,
    seed: int,
    device: torch.device,
    directory: Path,
) -> tuple[LatentPrior, list[dict[str, float]]]:
    """Train a prior on normalised codes; return it and its history.

    Args:
        codes: normalised codes (N, D) of the training images.
        shares: estimated shares of the classes (N, K).
        alphas_cumprod: (T,), the share of the variance that is signal, by timestep.
        steps: optimisation steps.
        seed: all randomness is a function of it.
        device: where to train.
        directory: where the resumable state is written.

    Raises:
        DivergedError: the loss became NaN or infinite.
    """
    with seeded(seed + 4):
        prior = LatentPrior(codes.shape[1], shares.shape[1])
    prior.to(device).train()
    optimizer = torch.optim.AdamW(prior.parameters(), lr=_LEARNING_RATE, weight_decay=1e-4)

    def step(index: int) -> dict[str, float]:
        generator = step_generator(seed, "prior", index)
        rows = batch_indices(len(codes), _BATCH_SIZE, seed + 4, index)
        clean = codes[rows].to(device)
        t = torch.randint(0, len(alphas_cumprod), (len(rows),), generator=generator).to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        alpha = alphas_cumprod.to(device)[t][:, None]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        loss = F.mse_loss(prior(noisy, t, shares[rows].to(device).float()), target)
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * warmup_cosine(index, steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return {"loss": float(loss.detach())}

    history = fit(
        step,
        steps=steps,
        state={"prior": prior, "optimizer": optimizer},
        checkpoint=directory / PRIOR_CHECKPOINT,
        description="latent prior",
    )
    return prior.eval().requires_grad_(False), history
