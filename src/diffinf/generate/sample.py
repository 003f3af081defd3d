"""Sampling under a positive and a negative context (NegFaceDiff, arXiv 2508.09661)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from diffinf.diffusion.invert import timestep_grid
from diffinf.errors import UserError
from diffinf.generate.contexts import STRATEGIES, Strategy, unit_contexts
from diffinf.generate.identity import IdentityGuidance
from diffinf.generate.model import ContextDenoiser, ContextGenerator
from diffinf.generate.negative import Schedule, negative_guidance
from diffinf.training.loop import step_seed

Sampler = Literal["ddpm", "ddim", "dpm++"]
_BATCH_ON_CPU, _BATCH = 16, 64
_SCHEDULE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")


@dataclass(frozen=True)
class Sampling:
    """How to sample.

    Attributes:
        negative: which negative context; see `choose_negative_contexts`.
        scale: w of the guidance, at its strongest.
        schedule: how w changes over the noise levels.
        sampler: "ddpm" draws noise at every step, "ddim" none (arXiv 2010.02502), "dpm++" none, of second order
            (arXiv 2211.01095).
        steps: network evaluations of an unguided image.
        seed: all randomness is a function of it.
        batch_size: images at once; changes no picture by more than rounding. None: 16 on a CPU, whose caches hold no
            more guided ones, else 64.
    """

    negative: Strategy = "far"
    scale: float = 0.5
    schedule: Schedule = field(default_factory=Schedule)
    sampler: Sampler = "ddim"
    steps: int = 50
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        """Raise a UserError where a value is out of range."""
        if self.negative not in STRATEGIES:
            raise UserError(f"negative: expected one of {', '.join(STRATEGIES)}, found {self.negative!r}")
        if self.sampler not in get_args(Sampler):
            raise UserError(f"sampler: expected ddpm, ddim or dpm++, found {self.sampler!r}")
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise UserError(f"scale: expected a number of at least 0, found {self.scale}")
        for name, value in (("steps", self.steps), ("batch size", self.batch_size)):
            if value is not None and value < 1:
                raise UserError(f"{name}: expected at least 1, found {value}")

    def images_at_once(self, device: torch.device) -> int:
        """Return the batch size on `device`."""
        if self.batch_size is not None:
            return self.batch_size
        return _BATCH_ON_CPU if device.type == "cpu" else _BATCH


def image_seed(seed: int, identity: str, number: int) -> int:
    """Return the seed of an identity's image of that number; it depends on nothing else."""
    return step_seed(seed, f"generated:{identity}", number)


def make_scheduler(model: ContextGenerator, sampler: Sampler, steps: int) -> Any:
    """Return diffusers' scheduler for the noise levels of `model`, set to `steps` steps from pure noise.

    "ddim" is DPM-Solver++ of first order (arXiv 2206.00927): diffusers' own DDIM takes each step for T // steps
    timesteps long, which does not lead to the next timestep where `steps` does not divide T.
    """
    config = model.scheduler.config
    if steps > model.timesteps:
        raise UserError(f"steps: there are {model.timesteps} noise levels, found {steps}; choose fewer")
    shared: dict[str, Any] = {name: config[name] for name in _SCHEDULE}
    shared["trained_betas"] = config.trained_betas

    def solver(order: int) -> DPMSolverMultistepScheduler:
        return DPMSolverMultistepScheduler(**shared, algorithm_type="dpmsolver++", solver_order=order)

    kinds = {
        "ddpm": lambda: DDPMScheduler(**shared, clip_sample=False),
        "ddim": lambda: solver(1),
        "dpm++": lambda: solver(2),
    }
    scheduler = kinds[sampler]()
    # From pure noise, and without the timestep -1 that rounding appends to diffusers' own "trailing" ones.
    scheduler.set_timesteps(timesteps=timestep_grid(model.timesteps, steps, 1.0)[::-1])
    return scheduler


def draw_noise(model: ContextGenerator, seeds: Sequence[int]) -> tuple[list[torch.Generator], Tensor]:
    """Return one generator an image, on the CPU, and the noise (B, L, h, w) that each draws first."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = torch.stack([torch.randn(model.latent_shape, generator=generator) for generator in generators])
    return generators, noise.to(model.device)


@torch.no_grad()
def denoise(
    model: ContextGenerator,
    noise: Tensor,
    positive: Tensor,
    negative: Tensor | None,
    sampling: Sampling,
    generators: list[torch.Generator],
    *,
    denoiser: ContextDenoiser | None = None,
    correct: Callable[[Tensor, Tensor, int], Tensor] | None = None,
) -> Tensor:
    """Return clean latents (B, L, h, w) of pure noise.

    Both branches go through the network in one batch; where the guidance is 0, only the positive one does.

    Args:
        model: what to sample from.
        noise: (B, L, h, w).
        positive: embedded contexts (B, W).
        negative: embedded negative contexts (B, W), or None for no guidance.
        sampling: sampler, steps, scale and schedule.
        generators: one an image, for samplers that draw noise.
        denoiser: other weights than the model's.
        correct: noisy latents, the guided prediction, the timestep -> the prediction to go on with; None: as it is.
    """
    network = model.denoiser if denoiser is None else denoiser
    scheduler = make_scheduler(model, sampling.sampler, sampling.steps)
    options = {} if sampling.sampler == "ddim" else {"generator": generators}
    noisy, both = noise, None if negative is None else torch.cat([positive, negative])
    for t in scheduler.timesteps:
        timestep = t.to(noisy.device)
        w = sampling.schedule.scale(sampling.scale, int(t), model.timesteps)
        if both is None or w == 0:
            output = network(noisy, timestep.expand(len(noisy)), positive)
        else:
            doubled = torch.cat([noisy, noisy])
            wanted, unwanted = network(doubled, timestep.expand(len(doubled)), both).chunk(2)
            output = negative_guidance(wanted, unwanted, w)
        if correct is not None:
            output = correct(noisy, output, int(t))
        noisy = scheduler.step(output, t, noisy, return_dict=False, **options)[0]
    return noisy


@torch.no_grad()
def sample_images(
    model: ContextGenerator,
    contexts: Tensor,
    seeds: Sequence[int],
    sampling: Sampling,
    negatives: Tensor | None = None,
    guidance: IdentityGuidance | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """Return uint8 images (N, C, H, W), one for each context, on the CPU.

    Args:
        model: what to sample from.
        contexts: (N, D).
        seeds: N seeds, see `image_seed`; a picture depends on its seed and contexts alone, up to rounding.
        sampling: how; with `negative` "null" the negative context is the learned empty one, with "none" there is none.
        negatives: (N, D), of the other strategies.
        guidance: by an embedder, beside that of `sampling`; None: none.
        rows: int64 (N,), which of `guidance.contexts` each image belongs to.

    Raises:
        UserError: the contexts do not fit the model, or are not finite or 0.
        ValueError: there is guidance by an embedder, and no rows.
    """
    guided = sampling.negative not in ("none", "null")
    if guided and (negatives is None or negatives.shape != contexts.shape):
        raise UserError(f"negative contexts: {sampling.negative} needs as many as contexts, {len(contexts)}")
    if contexts.ndim != 2 or contexts.shape[1] != model.context_size:
        raise UserError(
            f"contexts: expected shape (N, {model.context_size}) as the model was trained on, found "
            f"{tuple(contexts.shape)}"
        )
    unit = unit_contexts(contexts)[0]
    away = unit_contexts(negatives)[0] if guided and negatives is not None else None
    parts, size = [], sampling.images_at_once(model.device)
    for start in range(0, len(unit), size):
        part = slice(start, start + size)
        generators, noise = draw_noise(model, seeds[part])
        wanted = unit[part].to(model.device)
        positive = model.denoiser.embed(wanted)
        negative = None
        if sampling.negative == "null":
            negative = model.denoiser.embed_empty(len(positive))
        elif away is not None:
            negative = model.denoiser.embed(away[part].to(model.device))
        correct = None
        if guidance is not None:
            if rows is None:
                raise ValueError("rows: guidance by an embedder needs to know whom each image shows")
            own = rows[part].to(model.device)
            correct = partial(guidance.corrected, model, wanted=wanted, rows=own)
        latents = denoise(model, noise, positive, negative, sampling, generators, correct=correct)
        parts.append(model.to_images(latents).cpu())
    return torch.cat(parts)
