"""Training of the conditional generator, on cached latents of the first stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffinf.config import GeneratorConfig
from diffinf.diffusion.kl import FIRST_STAGE_CHECKPOINT, fit_first_stage
from diffinf.diffusion.objective import noised
from diffinf.errors import UserError
from diffinf.files import write_json
from diffinf.generate.contexts import unit_contexts
from diffinf.generate.model import ContextDenoiser, ContextGenerator, create_generator
from diffinf.generate.monitor import GeneratorMonitor
from diffinf.training.acceleration import Acceleration
from diffinf.training.ema import averaged
from diffinf.training.loop import batch_indices, fit, seeded, step_generator, warmup_cosine
from diffinf.training.monitor import Tell, held_out

CHECKPOINT = "training.checkpoint"


class Material(NamedTuple):
    """What a generator is trained on.

    Attributes:
        views: latents of the images and of their mirror images, (2, N, L, h, w).
        who: int64 (N,), which context each image shows.
        given: contexts (P, D) of unit length; None where they are learned.
    """

    views: Tensor
    who: Tensor
    given: Tensor | None

    def contexts(self, rows: Tensor, denoiser: ContextDenoiser) -> Tensor:
        """Return the contexts (B, D) of the images at `rows` (B,), where the denoiser is."""
        who = self.who[rows.to(self.who.device)]
        if self.given is None:
            return denoiser.contexts()[who.to(denoiser.empty.device)]
        return self.given[who].to(denoiser.empty.device)


class Batch(NamedTuple):
    """Everything random in a step, drawn."""

    clean: Tensor  # (B, L, h, w)
    noise: Tensor  # (B, L, h, w)
    timestep: Tensor  # int64 (B,)
    rows: Tensor  # int64 (B,)
    keep_components: Tensor  # bool (B, D)
    keep: Tensor  # bool (B,)


class Objective(nn.Module):
    """The denoiser under its loss; called with a batch it returns the loss."""

    def __init__(self, model: ContextGenerator, material: Material) -> None:
        """Take the denoiser of `model`."""
        super().__init__()
        self.denoiser: ContextDenoiser = model.denoiser
        self.material, self.alphas_cumprod = material, model.alphas_cumprod
        self.predicts_noise = model.scheduler.config.prediction_type == "epsilon"

    def forward(self, batch: Batch) -> Tensor:
        """Return the mean squared error of the prediction, a scalar."""
        noisy, v = noised(self.alphas_cumprod, batch.clean, batch.noise, batch.timestep)
        contexts = self.material.contexts(batch.rows, self.denoiser)
        embedded = self.denoiser.embed(contexts, batch.keep_components, batch.keep)
        predicted = self.denoiser(noisy, batch.timestep, embedded)
        return F.mse_loss(predicted, batch.noise if self.predicts_noise else v)


def train_generator(
    images: Tensor,
    who: Tensor,
    config: GeneratorConfig,
    *,
    given: Tensor | None = None,
    context_names: Sequence[str] = (),
    seed: int,
    device: torch.device,
    directory: Path,
    tell: Tell | None = None,
    details: dict[str, Any] | None = None,
) -> ContextGenerator:
    """Train on uint8 images (N, C, H, W) and write the result and its metrics to `directory`.

    Processes that torchrun started call this alike: they share each batch, the first writes.

    Args:
        images: training images.
        who: int64 (N,), which context each image shows, in 0..P-1.
        config: settings; where contexts are given, `condition` is "embedding".
        given: contexts (P, D), of any length but 0; None: they are learned, one for each name.
        context_names: the P names of learned contexts.
        seed: all randomness is a function of it.
        device: where to train.
        directory: where weights, metrics, sheets and, while training, the resumable state are written.
        tell: called with an event's name and its fields on every check, sheet and warning.
        details: what generator.json is to say beside the model.

    Raises:
        DivergedError: the loss became NaN or infinite.
        UserError: settings, images and contexts do not fit each other, or this machine.
    """
    count = len(context_names) if given is None else len(given)
    if who.shape != (len(images),) or not len(who) or int(who.min()) < 0 or int(who.max()) >= count:
        raise UserError(
            f"contexts: expected one of 0..{count - 1} for each of {len(images)} images, found {tuple(who.shape)}"
        )
    acceleration = Acceleration(
        device,
        precision=config.precision,
        tracker=config.tracker,
        directory=directory / "tracker",
        section="generator",
    )
    acceleration.share(config.batch_size)
    first_stage, _ = fit_first_stage(
        images,
        _fitting(config, images.shape[1]),
        seed=seed,
        device=device,
        directory=directory,
        leads=acceleration.leads,
        section="generator",
    )
    unit = None if given is None else unit_contexts(given)[0]
    with seeded(seed):
        model = create_generator(
            first_stage,
            image_size=images.shape[2],
            channels=config.unet_channels,
            layers=config.unet_layers,
            context_size=config.context_size if unit is None else unit.shape[1],
            injection=config.injection,
            prediction=config.prediction,
            condition=config.condition,
            context_names=context_names if unit is None else (),
        )
    model.to(device)
    acceleration.agree(nn.ModuleDict({"first_stage": model.first_stage, "denoiser": model.denoiser}))
    material = Material(torch.stack([_latents(model, x) for x in (images, images.flip(3))]), who, unit)
    held = held_out(len(images), config.validation_share, seed)
    monitor = GeneratorMonitor(
        model, config, acceleration, images=images, held=held, seed=seed, directory=directory, tell=tell
    )
    history = _fit(model, material, held, config, monitor, acceleration, seed=seed, directory=directory)
    model.freeze()
    if acceleration.leads:
        metrics = {
            "history": history,
            "validation": monitor.validation,
            "warnings": monitor.warnings,
            "n": len(images),
            "n_held_out": len(held),
            "n_contexts": count,
            "parameters": sum(x.numel() for x in model.denoiser.parameters()),
        }
        write_json(directory / "metrics.json", metrics)
        model.save_pretrained(directory, details=details)
        for name in (CHECKPOINT, FIRST_STAGE_CHECKPOINT):
            (directory / name).unlink(missing_ok=True)
    return model


def _fitting(config: GeneratorConfig, channels: int) -> GeneratorConfig:
    """Return the settings with no more latent channels than a patch of these images has values."""
    most = config.patch_size**2 * channels
    if config.first_stage != "patches" or config.latent_channels <= most:
        return config
    return config.model_copy(update={"latent_channels": most})


def _fit(
    model: ContextGenerator,
    material: Material,
    held: Tensor,
    config: GeneratorConfig,
    monitor: GeneratorMonitor,
    acceleration: Acceleration,
    *,
    seed: int,
    directory: Path,
) -> list[dict[str, float]]:
    """Train the denoiser in place (the averaged weights end up in it); return the history."""
    kept = torch.ones(len(material.who), dtype=torch.bool)
    kept[held] = False
    others = kept.nonzero().squeeze(1)
    objective = Objective(model, material)
    denoiser = objective.denoiser.train()
    average = averaged(denoiser, max_decay=config.ema_decay)
    monitor.watch(cast(ContextDenoiser, average.module), material)
    if config.gradient_checkpointing:
        denoiser.unet.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=config.learning_rate, weight_decay=1e-4)
    compute, stepper = acceleration.prepare(objective, optimizer)
    part = acceleration.share(config.batch_size)
    # Means over parts of unequal size, weighted so that their mean over the processes is the batch's.
    weight = acceleration.size * (part.stop - part.start) / config.batch_size

    def step(index: int) -> dict[str, float]:
        rows = others[batch_indices(len(others), config.batch_size, seed, index)]
        batch = draw_batch(material, rows, config, model, step_generator(seed, "generator", index), part)
        loss = compute(batch)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * warmup_cosine(index, config.steps, floor=0.05)
        stepper.zero_grad(set_to_none=True)
        acceleration.backward(weight * loss if acceleration.size > 1 else loss)
        acceleration.clip(denoiser.parameters(), 1.0)
        stepper.step()
        average.update_parameters(denoiser)
        scalars = acceleration.means({"loss": loss}, weight)
        if acceleration.leads and math.isfinite(scalars["loss"]):
            monitor.after(index + 1, scalars)
        return scalars

    acceleration.start_tracking("diffinf", config.model_dump(mode="json"))
    history = fit(
        step,
        steps=config.steps,
        state={
            "denoiser": denoiser,
            "average": average,
            "optimizer": optimizer,
            "monitor": monitor,
            **acceleration.state,
        },
        checkpoint=directory / CHECKPOINT,
        description="generator",
        advice=f"lower generator.learning_rate (now {config.learning_rate:g})",
        leads=acceleration.leads,
        resumed=acceleration.wait,
    )
    acceleration.finish_tracking()
    if config.gradient_checkpointing:
        denoiser.unet.disable_gradient_checkpointing()
    denoiser.load_state_dict(average.module.state_dict())
    return history


def draw_batch(
    material: Material,
    rows: Tensor,
    config: GeneratorConfig,
    model: ContextGenerator,
    generator: torch.Generator,
    part: slice = slice(None),
) -> Batch:
    """Draw for the images at `rows` (B,) and return what `part` of them gets: the draws do not depend on it."""
    view = (torch.rand(len(rows), generator=generator) < 0.5).long()
    clean = material.views[view, rows]
    noise = torch.randn(clean.shape, generator=generator)
    timestep = torch.randint(0, model.timesteps, (len(rows),), generator=generator)
    components = torch.rand(len(rows), model.context_size, generator=generator) >= config.component_dropout
    keep = torch.rand(len(rows), generator=generator) >= config.context_dropout

    def mine(values: Tensor) -> Tensor:
        return values[part].to(model.device)

    return Batch(
        clean=mine(clean),
        noise=mine(noise),
        timestep=mine(timestep),
        rows=rows[part],
        keep_components=mine(components),
        keep=mine(keep),
    )


@torch.no_grad()
def _latents(model: ContextGenerator, images: Tensor) -> Tensor:
    return torch.cat([model.to_latents(part).cpu() for part in torch.split(images, 256)])
