"""Fitting of first stages; training of the KL one: sharp reconstructions of images, latents of unit variance."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffinf.diffusion.first_stage import FirstStage, KLStage, PatchComponents, PixelStage
from diffinf.errors import UserError
from diffinf.training.loop import batch_indices, fit, seeded, step_generator, warmup_cosine

FIRST_STAGE_CHECKPOINT = "first_stage.checkpoint"
_LEARNING_RATE = 1e-3
# Small: the latents are normalised afterwards, and the term only keeps them from wandering off (arXiv 2112.10752).
_KL_WEIGHT = 1e-6
_EDGE_WEIGHT = 1.0
_STATISTICS_IMAGES = 2000


class FirstStageSettings(Protocol):
    """The settings of whatever trains on a first stage, as far as they are about it."""

    first_stage: Literal["patches", "kl", "pixels"]
    first_stage_steps: int
    first_stage_channels: list[int]
    patch_size: int
    latent_channels: int
    whitening: float
    batch_size: int


def fit_first_stage(
    images: Tensor,
    config: FirstStageSettings,
    *,
    seed: int,
    device: torch.device,
    directory: Path,
    leads: bool = True,
    section: str = "autoencoder",
) -> tuple[FirstStage, list[dict[str, float]]]:
    """Return the first stage of the settings, fitted to uint8 images (N, C, H, W), and the history of its training.

    A process that does not lead gets the KL stage untrained: the leader's weights are handed to it afterwards.
    `section` is what the settings are called by in messages.

    Raises:
        UserError: the settings and the images do not fit.
        DivergedError: the loss became NaN or infinite.
    """
    channels, side = images.shape[1], images.shape[2]
    if config.first_stage == "pixels":
        return PixelStage(channels), []
    if config.first_stage == "patches":
        most = config.patch_size**2 * channels
        if config.latent_channels > most:
            raise UserError(
                f"{section}.latent_channels: found {config.latent_channels}, but a patch has {most} values; "
                "choose fewer"
            )
        _check_divides(f"{section}.patch_size", config.patch_size, side)
        return PatchComponents.fit(images, config.latent_channels, config.patch_size, config.whitening), []
    try:
        with seeded(seed + 3):
            stage = KLStage(channels, config.latent_channels, config.first_stage_channels)
    except ValueError as error:
        raise UserError(f"{section}.first_stage_channels: {error}") from error
    _check_divides(f"{section}.first_stage_channels", stage.factor, side)
    if not leads:
        return stage.to(device).requires_grad_(False), []
    history = train_kl(
        stage.to(device),
        images,
        steps=config.first_stage_steps,
        batch_size=config.batch_size,
        seed=seed,
        device=device,
        directory=directory,
    )
    return stage, history


def _check_divides(field: str, factor: int, side: int) -> None:
    if side % factor:
        raise UserError(f"{field}: {factor} does not divide the images' side of {side} pixels")


def gradient_difference(images: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference of the two images' gradients (B, C, H, W), a scalar (arXiv 1511.05440).

    An absolute error alone is content with blur: half-way between two greys it costs little. A blurred edge has the
    wrong gradient everywhere near it.
    """
    error = images - target
    return error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()


def train_kl(
    stage: KLStage,
    images: Tensor,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    device: torch.device,
    directory: Path,
) -> list[dict[str, float]]:
    """Train a KL first stage in place on uint8 images (N, C, H, W), normalise its latents; return the history.

    Args:
        stage: untrained, on `device`.
        images: training images; each is mirrored or not.
        steps: optimisation steps.
        batch_size: samples a step.
        seed: all randomness is a function of it.
        device: where `stage` is.
        directory: where the resumable state is written.

    Raises:
        DivergedError: the loss became NaN or infinite.
    """
    stage.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(stage.parameters(), lr=_LEARNING_RATE, weight_decay=1e-4)

    def step(index: int) -> dict[str, float]:
        generator = step_generator(seed, "first stage", index)
        rows = batch_indices(len(images), batch_size, seed + 3, index)
        mirrored = torch.rand(len(rows), 1, 1, 1, generator=generator) < 0.5
        batch = images[rows]
        target = torch.where(mirrored, batch.flip(3), batch).to(device).float() / 127.5 - 1
        mean, log_variance = stage.posterior(target)
        noise = torch.randn(mean.shape, generator=generator).to(device)
        back = stage.vae.decode(mean + (0.5 * log_variance).exp() * noise).sample
        parts = {
            "absolute": F.l1_loss(back, target),
            "edges": gradient_difference(back, target),
            "kl": 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum((1, 2, 3)).mean(),
        }
        loss = parts["absolute"] + _EDGE_WEIGHT * parts["edges"] + _KL_WEIGHT * parts["kl"]
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * warmup_cosine(index, steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(stage.parameters(), 1.0)
        optimizer.step()
        return {"loss": float(loss.detach()), **{name: float(part.detach()) for name, part in parts.items()}}

    history = fit(
        step,
        steps=steps,
        state={"stage": stage, "optimizer": optimizer},
        checkpoint=directory / FIRST_STAGE_CHECKPOINT,
        description="first stage",
    )
    stage.eval().requires_grad_(False)
    _normalise(stage, images, batch_size, device)
    return history


@torch.no_grad()
def _normalise(stage: KLStage, images: Tensor, batch_size: int, device: torch.device) -> None:
    """Set the latents' mean and spread by channel; at most 2,000 images, evenly spaced, are looked at."""
    sample = images[:: -(-len(images) // _STATISTICS_IMAGES)]
    latents = torch.cat(
        [
            stage.posterior(part.to(device).float() / 127.5 - 1)[0].cpu()
            for part in torch.split(sample, batch_size)
        ]
    ).double()
    stage.mean.copy_(latents.mean((0, 2, 3)).view_as(stage.mean))
    stage.std.copy_(latents.std((0, 2, 3)).clamp_min(1e-6).view_as(stage.std))
