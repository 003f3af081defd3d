"""What is looked at while a generator trains: a held-out loss, sheets of samples, early signs of trouble."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from diffinf.config import GeneratorConfig
from diffinf.diffusion.objective import noised
from diffinf.generate.model import ContextDenoiser, ContextGenerator
from diffinf.generate.sample import Sampling, denoise, draw_noise
from diffinf.progress import note
from diffinf.training.acceleration import Acceleration
from diffinf.training.health import IGNORED, STUCK_STEPS, Finding, diverged, latent_findings
from diffinf.training.loop import DivergedError, step_generator, step_seed
from diffinf.training.monitor import BANDS, SHEETS, Tell, TrainingMonitor, repeats
from diffinf.training.sheets import write_sheet

_FACES, _ROWS, _STEPS, _CHUNK = 8, 4, 10, 64


class Shown(Protocol):
    """What a generator is trained on, as far as the monitor looks at it."""

    @property
    def views(self) -> Tensor:
        """Latents of the images and of their mirror images, (2, N, L, h, w)."""

    def contexts(self, rows: Tensor, denoiser: ContextDenoiser) -> Tensor:
        """Return the contexts (B, D) of the images at `rows` (B,)."""


class GeneratorMonitor(TrainingMonitor):
    """Watches the training of a generator.

    Attributes:
        validation: one dict a check: step, loss (held-out mean squared error), bands (by noise level, shallow to
            deep), shuffled (loss under other images' contexts).
    """

    what, section, losses = "generator", "generator", ("loss",)

    def __init__(
        self,
        model: ContextGenerator,
        config: GeneratorConfig,
        acceleration: Acceleration,
        *,
        images: Tensor,
        held: Tensor,
        seed: int,
        directory: Path,
        tell: Tell | None = None,
    ) -> None:
        """Take what is looked at; `watch` says whose weights.

        Args:
            model: gives shapes, noise schedule and first stage.
            config: settings.
            acceleration: precision and tracker.
            images: all training images, uint8 (N, C, H, W).
            held: indices of those held out.
            seed: fixes the noise of checks and sheets.
            directory: where the folder of sheets goes.
            tell: hears of checks, sheets and warnings.
        """
        super().__init__(
            acceleration, steps=config.steps, sheets=config.sheets, checked=bool(len(held)), tell=tell
        )
        self.model, self.config = model, config
        self.denoiser: ContextDenoiser = model.denoiser
        self.material: Shown | None = None
        self.seed, self.directory = seed, directory
        self.held = held
        spread = torch.arange(0, len(images), max(1, len(images) // _FACES))
        self.shown = (held if len(held) else spread)[:_FACES]
        self.faces = images[self.shown]

    def watch(self, denoiser: ContextDenoiser, material: Shown) -> None:
        """Look at averaged weights from now on, on `material`."""
        self.denoiser, self.material = denoiser, material

    def _first_findings(self) -> list[Finding]:
        assert self.material is not None
        latents = self.material.views[0]
        return latent_findings(float(latents.mean()), float(latents.std()))

    def _check(self, step: int) -> None:
        found = {"step": step, **self._held_out_losses()}
        if not math.isfinite(found["loss"]):  # of the last step's weights: no loss of a later step will tell
            advice = f"lower generator.learning_rate (now {self.config.learning_rate:g})"
            raise DivergedError(diverged("generator, held-out images", step, {"loss": found["loss"]}, advice))
        self.validation.append(found)
        self.tell("validation", **found)
        self.acceleration.log(
            {"validation/loss": found["loss"], "validation/shuffled": found["shuffled"]}, step
        )
        note(
            f"generator: step {step}: held-out loss {found['loss']:.4f}, "
            f"under other contexts {found['shuffled']:.4f}"
        )
        if step >= max(STUCK_STEPS, self.config.steps // 2) and found["shuffled"] <= IGNORED * found["loss"]:
            text = (
                f"the denoiser ignores the context: its held-out loss is {found['loss']:.4g} under the images' own and "
                f"{found['shuffled']:.4g} under those of others; train for more steps, or lower "
                "generator.component_dropout"
            )
            self._warn(step, [Finding("ignored", text)])

    @torch.no_grad()
    def _held_out_losses(self) -> dict[str, Any]:
        """Return the losses of the held-out images under noise that is the same at every check."""
        assert self.material is not None
        count, model = len(self.held), self.model
        clean = self.material.views[0, self.held]
        contexts = self.material.contexts(self.held, self.denoiser)
        # Of different people where the held-out images show more than one.
        others = self.material.contexts(self.held.roll(max(1, count // 2)), self.denoiser)
        generator = step_generator(self.seed, "validation", 0)
        totals, counts = torch.zeros(2, BANDS, dtype=torch.float64), torch.zeros(BANDS, dtype=torch.float64)
        for repeat in range(repeats(count)):
            band = (torch.arange(count) + repeat) % BANDS
            place = (band + torch.rand(count, generator=generator)) / BANDS
            timestep = (place * model.timesteps).long().clamp_max(model.timesteps - 1)
            noise = torch.randn(clean.shape, generator=generator)
            counts += torch.bincount(band, minlength=BANDS)
            for total, context in zip(totals, (contexts, others), strict=True):
                total.index_add_(0, band, self._errors(clean, noise, timestep, context))
        own, shuffled = totals
        return {
            "loss": float(own.sum() / counts.sum()),
            "bands": (own / counts).tolist(),
            "shuffled": float(shuffled.sum() / counts.sum()),
        }

    def _errors(self, clean: Tensor, noise: Tensor, timestep: Tensor, contexts: Tensor) -> Tensor:
        """Return the mean squared errors (H,), float64 on the CPU."""
        parts, model = [], self.model
        for rows in torch.split(torch.arange(len(clean)), _CHUNK):
            x, drawn, level = (values[rows].to(model.device) for values in (clean, noise, timestep))
            noisy, v = noised(model.alphas_cumprod, x, drawn, level)
            with self.acceleration.autocast():
                predicted = self.denoiser(
                    noisy, level, self.denoiser.embed(contexts[rows.to(contexts.device)])
                )
            target = drawn if model.scheduler.config.prediction_type == "epsilon" else v
            parts.append((predicted.float() - target).square().mean((1, 2, 3)).cpu().double())
        return torch.cat(parts)

    @torch.no_grad()
    def _write_sheets(self, step: int) -> None:
        """Write faces over rows of samples under the contexts of these faces."""
        assert self.material is not None
        embedded = self.denoiser.embed(self.material.contexts(self.shown, self.denoiser))
        rows = [self.faces]
        for row in range(_ROWS):
            seeds = [step_seed(self.seed, "sheet", _FACES * row + column) for column in range(len(embedded))]
            generators, noise = draw_noise(self.model, seeds)
            latents = denoise(
                self.model,
                noise,
                embedded,
                None,
                Sampling(negative="none", sampler="ddim", steps=_STEPS),
                generators,
                denoiser=self.denoiser,
            )
            rows.append(self.model.to_images(latents).cpu())
        write_sheet(self.directory / SHEETS / f"samples-{step:06d}.png", torch.stack(rows))
        self.tell("sheets", step=step)
