"""Training of the diffusion autoencoder: encoder and denoiser together, on cached latents of the first stage."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffinf.config import AutoencoderConfig
from diffinf.diffusion.autoencoder import DiffusionAutoencoder, create_autoencoder
from diffinf.diffusion.familiarity import usual_error
from diffinf.diffusion.kl import FIRST_STAGE_CHECKPOINT, fit_first_stage
from diffinf.diffusion.monitor import Monitor
from diffinf.diffusion.objective import Material, Objective, Views, draw_batch
from diffinf.diffusion.prior import PRIOR_CHECKPOINT, train_prior
from diffinf.diffusion.spec import AutoencoderSpec
from diffinf.files import write_json
from diffinf.training.acceleration import Acceleration
from diffinf.training.ema import averaged
from diffinf.training.loop import batch_indices, fit, seeded, step_generator, step_seed, warmup_cosine
from diffinf.training.monitor import Tell, held_out

SHARED = ("first_stage", "encoder", "denoiser")  # what every process trains with
CHECKPOINT = "training.checkpoint"
GUIDE_CHECKPOINT = "guide.checkpoint"


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
    tell: Tell | None = None,
) -> DiffusionAutoencoder:
    """Train on uint8 images (N, C, H, W) and write the result and its metrics to `directory`.

    Processes that torchrun started call this alike: they share each batch of encoder and denoiser, the first trains
    the guide (its batch norms want whole batches) and writes.

    Args:
        images: training images.
        shares: P(true class) (N, K) as estimated from images and annotations, rows summing to 1: labels guide
            the model only as far as they are trusted.
        identities: person indices (N,), or None where the dataset does not know them.
        config: settings.
        class_names: names of the K classes.
        seed: all randomness is a function of it.
        device: where to train.
        directory: where weights, metrics, sheets and, while training, the resumable state are written.
        tell: called with an event's name and its fields on every check, sheet and warning.

    Raises:
        DivergedError: a loss became NaN or infinite.
        UserError: first stage, denoiser and images do not fit, the device does not have the precision, a tracker is
            missing, or there are more processes than samples in a batch.
    """
    acceleration = Acceleration(
        device, precision=config.precision, tracker=config.tracker, directory=directory / "tracker"
    )
    acceleration.share(config.batch_size)
    first_stage, stage_history = fit_first_stage(
        images, config, seed=seed, device=device, directory=directory, leads=acceleration.leads
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
    with seeded(seed):
        model = create_autoencoder(spec, first_stage)
    model.to(device)
    acceleration.agree(nn.ModuleDict({name: getattr(model, name) for name in SHARED}))
    held = held_out(len(images), config.validation_share, seed)
    views = torch.stack([_latents(model, images), _latents(model, images.flip(3))])
    material = Material(views, shares.float(), identities, _others(held, len(images)))
    guide_history = []
    if acceleration.leads:
        guide_history = train_guide(
            model.guide,
            model.first_stage.decode,
            material,
            config,
            seed=seed,
            device=device,
            directory=directory,
            acceleration=acceleration,
        )
    monitor = Monitor(
        model,
        config,
        acceleration,
        images=images,
        latents=views[0],
        shares=shares.float(),
        held=held,
        seed=seed,
        directory=directory,
        tell=tell,
    )
    history = _train_denoiser(
        model, material, config, monitor=monitor, acceleration=acceleration, seed=seed, directory=directory
    )
    codes = _set_statistics(model, views[0])
    if not acceleration.leads:
        return model.freeze()
    metrics: dict[str, Any] = {
        "denoiser": history[-1],
        "guide": guide_history[-1],
        "history": history,
        "validation": monitor.validation,
        "warnings": monitor.warnings,
        "n": len(images),
        "n_held_out": len(held),
    }
    if stage_history:
        metrics["first_stage"] = stage_history[-1]
    if config.prior_steps:
        model.prior, prior_history = train_prior(
            codes,
            shares.float(),
            model.alphas_cumprod,
            steps=config.prior_steps,
            seed=seed,
            device=device,
            directory=directory,
        )
        metrics["prior"] = prior_history[-1]
    model.usual_error = usual_error(model, images[held] if len(held) else images)
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
    acceleration: Acceleration | None = None,
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
        acceleration: precision; none: float32.

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
        precision: AbstractContextManager[None] = nullcontext()
        if acceleration is not None and acceleration.precision != "float16":  # which needs a scale of its own
            precision = acceleration.autocast()
        with seeded(step_seed(seed, "guide dropout", index), device), precision:
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
        advice=f"lower autoencoder.guide_learning_rate (now {config.guide_learning_rate:g})",
    )


def _train_denoiser(
    model: DiffusionAutoencoder,
    material: Material,
    config: AutoencoderConfig,
    *,
    monitor: Monitor,
    acceleration: Acceleration,
    seed: int,
    directory: Path,
) -> list[dict[str, float]]:
    """Train encoder and denoiser in place (the averaged weights end up in `model`); return the history."""
    objective = Objective(model, config, persons=material.persons, seed=seed)
    trained = nn.ModuleDict({"encoder": model.encoder, "denoiser": model.denoiser}).train()
    average = averaged(trained, max_decay=config.ema_decay)
    monitor.watch(cast(nn.ModuleDict, average.module))
    unet = model.denoiser.unet
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=config.learning_rate, weight_decay=1e-4)
    compute, stepper = acceleration.prepare(objective, optimizer)
    part = acceleration.share(config.batch_size)
    # Means over parts of unequal size, weighted so that their mean over the processes is the batch's.
    weight = acceleration.size * (part.stop - part.start) / config.batch_size

    def step(index: int) -> dict[str, float]:
        generator = step_generator(seed, "denoiser", index)
        rows = batch_indices(len(material), config.batch_size, seed, index)
        batch = draw_batch(material, rows, config, model.spec.timesteps, generator, model.device, part)
        parts = compute(batch)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * warmup_cosine(index, config.steps, floor=0.05)
        stepper.zero_grad(set_to_none=True)
        acceleration.backward(weight * parts["loss"] if acceleration.size > 1 else parts["loss"])
        acceleration.clip(trained.parameters(), 1.0)
        stepper.step()
        average.update_parameters(trained)
        scalars = acceleration.means(parts, weight)
        if acceleration.leads and math.isfinite(scalars["loss"]):
            monitor.after(index + 1, scalars)
        return scalars

    state: dict[str, Any] = {
        "trained": trained,
        "heads": objective.heads,
        "average": average,
        "optimizer": optimizer,
        "monitor": monitor,
        **acceleration.state,
    }
    acceleration.start_tracking("diffinf", config.model_dump(mode="json"))
    history = fit(
        step,
        steps=config.steps,
        state=state,
        checkpoint=directory / CHECKPOINT,
        description="diffusion autoencoder",
        advice=f"lower autoencoder.learning_rate (now {config.learning_rate:g})",
        leads=acceleration.leads,
        resumed=acceleration.wait,
    )
    acceleration.finish_tracking()
    if config.gradient_checkpointing:
        unet.disable_gradient_checkpointing()
    trained.load_state_dict(average.module.state_dict())
    return history


def _others(held: Tensor, n: int) -> Tensor:
    """Return the indices below n that are not among `held`."""
    kept = torch.ones(n, dtype=torch.bool)
    kept[held] = False
    return kept.nonzero().squeeze(1)


@torch.no_grad()
def _latents(model: DiffusionAutoencoder, images: Tensor) -> Tensor:
    return torch.cat([model.to_latents(part).cpu() for part in torch.split(images, 256)])


@torch.no_grad()
def _set_statistics(model: DiffusionAutoencoder, latents: Tensor) -> Tensor:
    """Set the statistics of codes and latents; return the normalised codes (N, D), on the CPU."""
    model.freeze()
    codes = torch.cat([model.encoder(part.to(model.device)).cpu() for part in torch.split(latents, 256)])
    model.code_mean.copy_(codes.mean(0))
    model.code_std.copy_(codes.std(0).clamp_min(1e-6))
    model.set_latent_statistics(latents)
    return (codes - model.code_mean.cpu()) / model.code_std.cpu()
