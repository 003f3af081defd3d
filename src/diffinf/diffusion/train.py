"""Training of the diffusion autoencoder: encoder and denoiser together, on cached latents of the first stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffinf.classify.model import seeded
from diffinf.config import AutoencoderConfig
from diffinf.diffusion.autoencoder import DiffusionAutoencoder, create_autoencoder
from diffinf.diffusion.kl import FIRST_STAGE_CHECKPOINT, fit_first_stage
from diffinf.diffusion.prior import PRIOR_CHECKPOINT, train_prior
from diffinf.diffusion.spec import AutoencoderSpec
from diffinf.run import write_json
from diffinf.training.ema import averaged
from diffinf.training.loop import batch_indices, fit, step_generator, step_seed, warmup_cosine

CHECKPOINT = "training.checkpoint"
GUIDE_CHECKPOINT = "guide.checkpoint"


class _Reversed(torch.autograd.Function):
    """The identity whose gradient is turned round (arXiv 1409.7495): what helps the adversary hurts the encoder."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


class Views(Protocol):
    """Training images as latents, with estimated shares of the classes (N, K)."""

    shares: Tensor

    def __len__(self) -> int:
        """Return the number of images N."""

    def batch(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Return latents (B, L, h, w) of the images at `indices` (B,), each mirrored or not."""


class _Material:
    """What every step draws from: latents of the images and of their mirror images, shares, identities."""

    def __init__(self, latents: Tensor, mirrored: Tensor, shares: Tensor, identities: Tensor | None) -> None:
        self.views = torch.stack([latents, mirrored])
        self.shares, self.identities = shares, identities

    def __len__(self) -> int:
        return len(self.shares)

    def batch(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        view = (torch.rand(len(indices), generator=generator) < 0.5).long()
        return self.views[view, indices]


def train_autoencoder(
    images: Tensor,
    shares: Tensor,
    identities: Tensor | None,
    config: AutoencoderConfig,
    *,
    class_names: tuple[str, ...],
    seed: int,
    device: torch.device,
    directory: Path,
) -> DiffusionAutoencoder:
    """Train on uint8 images (N, C, H, W) and write the result and its metrics to `directory`.

    Args:
        images: training images.
        shares: P(true class) (N, K) as estimated from images and annotations, rows summing to 1: labels guide
            the model only as far as they are trusted.
        identities: person indices (N,), or None where the dataset does not know them.
        config: settings.
        class_names: names of the K classes.
        seed: all randomness is a function of it.
        device: where to train.
        directory: where weights, metrics and, while training, the resumable state are written.

    Raises:
        DivergedError: a loss became NaN or infinite.
        UserError: first stage, denoiser and images do not fit.
    """
    first_stage, stage_history = fit_first_stage(
        images, config, seed=seed, device=device, directory=directory
    )
    spec = AutoencoderSpec(
        class_names=class_names,
        image_channels=images.shape[1],
        image_size=images.shape[2],
        patch_size=first_stage.factor,
        latent_channels=first_stage.latent_channels,
        attribute_size=config.attribute_size,
        appearance_size=config.appearance_size,
        unet_channels=tuple(config.unet_channels),
        unet_layers=config.unet_layers,
        identity_size=config.identity_size,
        max_depth=config.max_depth,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = create_autoencoder(spec, first_stage)
    model.to(device)
    material = _Material(_latents(model, images), _latents(model, images.flip(3)), shares.float(), identities)
    guide_history = train_guide(
        model.guide,
        model.first_stage.decode,
        material,
        config,
        seed=seed,
        device=device,
        directory=directory,
    )
    history = _train_denoiser(model, material, config, seed=seed, device=device, directory=directory)
    codes = _set_statistics(model, material)
    metrics: dict[str, Any] = {
        "denoiser": history[-1],
        "guide": guide_history[-1],
        "history": history,
        "n": len(images),
    }
    if stage_history:
        metrics["first_stage"] = stage_history[-1]
    if config.prior_steps:
        model.prior, prior_history = train_prior(
            codes,
            material.shares,
            model.alphas_cumprod,
            steps=config.prior_steps,
            seed=seed,
            device=device,
            directory=directory,
        )
        metrics["prior"] = prior_history[-1]
    model.freeze().save_pretrained(directory, dtype=torch.float16)
    write_json(directory / "metrics.json", metrics)
    for name in (CHECKPOINT, GUIDE_CHECKPOINT, FIRST_STAGE_CHECKPOINT, PRIOR_CHECKPOINT):
        (directory / name).unlink(missing_ok=True)
    return model


def train_guide(
    guide: nn.Module,
    to_pixels: Callable[[Tensor], Tensor],
    material: Views,
    config: AutoencoderConfig,
    *,
    seed: int,
    device: torch.device,
    directory: Path,
) -> list[dict[str, float]]:
    """Train a guide in place to read the attribute through noise; return the history.

    Args:
        guide: classifier of images in [-1, 1].
        to_pixels: latents (B, L, h, w) to images (B, C, H, W); the noise is added before.
        material: what it is trained on.
        config: settings.
        seed: all randomness is a function of it.
        device: where `guide` is.
        directory: where the resumable state is written.

    A classifier that has only seen clean images has gradients that no person would call a smile. One that must read
    through noise has to rely on what is large (arXiv 1906.00945), and its gradient draws it.
    """
    guide.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(guide.parameters(), lr=config.guide_learning_rate, weight_decay=0.05)

    def step(index: int) -> dict[str, float]:
        generator = step_generator(seed, "guide", index)
        rows = batch_indices(len(material), config.batch_size, seed + 2, index)
        clean = material.batch(rows, generator)
        spread = config.guide_noise * torch.rand(len(rows), 1, 1, 1, generator=generator)
        noisy = (clean + spread * torch.randn(clean.shape, generator=generator)).to(device)
        shift = torch.randint(-3, 4, (2,), generator=generator).tolist()
        images = to_pixels(noisy).roll(shift, (2, 3))
        with seeded(step_seed(seed, "guide dropout", index), device):
            loss = F.cross_entropy(guide(images), material.shares[rows].to(device))
        for group in optimizer.param_groups:
            group["lr"] = config.guide_learning_rate * warmup_cosine(index, config.guide_steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return {"loss": float(loss.detach())}

    return fit(
        step,
        steps=config.guide_steps,
        state={"guide": guide, "optimizer": optimizer},
        checkpoint=directory / GUIDE_CHECKPOINT,
        description="guide",
    )


def _train_denoiser(
    model: DiffusionAutoencoder,
    material: _Material,
    config: AutoencoderConfig,
    *,
    seed: int,
    device: torch.device,
    directory: Path,
) -> list[dict[str, float]]:
    """Train encoder and denoiser in place (the averaged weights end up in `model`); return the history."""
    trained = (
        nn.ModuleDict({"encoder": model.encoder, "denoiser": model.denoiser}).train().requires_grad_(True)
    )
    persons = 0 if material.identities is None else int(material.identities.max()) + 1
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        heads = nn.ModuleDict(
            {
                "adversary": nn.Sequential(
                    nn.Linear(config.appearance_size, 64), nn.SiLU(), nn.Linear(64, material.shares.shape[1])
                ),
                "persons": nn.Linear(config.identity_size, max(1, persons), bias=False),
            }
        ).to(device)
    average = averaged(trained, max_decay=config.ema_decay)
    optimizer = torch.optim.AdamW(
        [*trained.parameters(), *heads.parameters()], lr=config.learning_rate, weight_decay=1e-4
    )

    def step(index: int) -> dict[str, float]:
        generator = step_generator(seed, "denoiser", index)
        rows = batch_indices(len(material), config.batch_size, seed, index)
        parts = _losses(model, heads, material, rows, config, generator, device)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * warmup_cosine(index, config.steps, floor=0.05)
        optimizer.zero_grad(set_to_none=True)
        parts["loss"].backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(trained)
        return {name: float(value.detach()) for name, value in parts.items()}

    state: dict[str, Any] = {
        "trained": trained,
        "heads": heads,
        "average": average,
        "optimizer": optimizer,
    }
    history = fit(
        step,
        steps=config.steps,
        state=state,
        checkpoint=directory / CHECKPOINT,
        description="diffusion autoencoder",
    )
    trained.load_state_dict(average.module.state_dict())
    return history


def _losses(
    model: DiffusionAutoencoder,
    heads: nn.ModuleDict,
    material: _Material,
    rows: Tensor,
    config: AutoencoderConfig,
    generator: torch.Generator,
    device: torch.device,
) -> dict[str, Tensor]:
    """Return the loss of one batch and its parts: v error; attribute, adversary and identity on the code."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(device)

    clean = material.batch(rows, generator).to(device)  # (B, L, h, w)
    shares = material.shares[rows].to(device)
    code = model.encoder(clean)  # (B, D)
    appearance = model.encoder.appearance(code)

    noise = torch.randn(clean.shape, generator=generator).to(device)
    t = torch.randint(
        0, round(config.max_depth * model.spec.timesteps), (len(rows),), generator=generator
    ).to(device)
    alpha = model.alphas_cumprod[t][:, None, None, None]
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    target = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
    context = model.denoiser.context(
        appearance,
        shares,
        keep_appearance=uniform(len(rows)) >= config.code_dropout,
        keep_label=uniform(len(rows)) >= config.label_dropout,
    )
    parts = {"v": F.mse_loss(model.denoiser(noisy, t, context), target)}
    parts["attribute"] = F.cross_entropy(model.encoder.attribute(code), shares)
    parts["adversary"] = F.cross_entropy(heads["adversary"](_Reversed.apply(appearance)), shares)
    loss = (
        parts["v"]
        + config.attribute_weight * parts["attribute"]
        + config.adversary_weight * parts["adversary"]
    )
    if material.identities is not None:
        persons = material.identities[rows].to(device)
        cosine = model.encoder.identity(code) @ F.normalize(cast(nn.Linear, heads["persons"]).weight, dim=1).T
        # CosFace (arXiv 1801.09414): the right person must win by a margin.
        margin = config.identity_margin * F.one_hot(persons, cosine.shape[1])
        parts["identity"] = F.cross_entropy(config.identity_scale * (cosine - margin), persons)
        loss = loss + config.identity_weight * parts["identity"]
    return {"loss": loss, **parts}


@torch.no_grad()
def _latents(model: DiffusionAutoencoder, images: Tensor) -> Tensor:
    return torch.cat([model.to_latents(part).cpu() for part in torch.split(images, 256)])


@torch.no_grad()
def _set_statistics(model: DiffusionAutoencoder, material: _Material) -> Tensor:
    """Set the statistics of codes and latents; return the normalised codes (N, D), on the CPU."""
    model.freeze()
    latents = material.views[0]
    codes = torch.cat([model.encoder(part.to(model.device)).cpu() for part in torch.split(latents, 256)])
    model.code_mean.copy_(codes.mean(0))
    model.code_std.copy_(codes.std(0).clamp_min(1e-6))
    model.set_latent_statistics(latents)
    return (codes - model.code_mean.cpu()) / model.code_std.cpu()
