"""What is looked at while the autoencoder trains: a held-out loss, sheets of faces, early signs of trouble."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from diffinf.config import AutoencoderConfig
from diffinf.diffusion.autoencoder import DiffusionAutoencoder
from diffinf.diffusion.networks import Denoiser, SemanticEncoder
from diffinf.diffusion.objective import noised
from diffinf.progress import note
from diffinf.training.acceleration import Acceleration
from diffinf.training.health import (
    STUCK_STEPS,
    Finding,
    code_findings,
    diverged,
    latent_findings,
    use_findings,
)
from diffinf.training.loop import DivergedError, step_generator
from diffinf.training.monitor import BANDS, SHEETS, Tell, TrainingMonitor, check_count, held_out, repeats
from diffinf.training.sheets import write_sheet

_FACES, _EDITED_FACES, _CLASSES = 16, 8, 8  # on the sheets
_DECODE_STEPS = 8
_CHUNK = 32  # images at once, at least: without gradients they take little room


def monitoring_evaluations(config: AutoencoderConfig, n: int, classes: int) -> int:
    """Return how often one image goes through the denoiser, without a gradient, for all checks and sheets."""
    held = len(held_out(n, config.validation_share, 0))
    checks = check_count(config.steps) * 2 * held * repeats(held) if held else 0
    faces, edited = min(_FACES, n), min(_EDITED_FACES, n)
    sheet = _DECODE_STEPS * (2 * faces + edited * min(classes, _CLASSES))
    return checks + config.sheets * sheet


class Monitor(TrainingMonitor):
    """Watches the training of an autoencoder.

    Attributes:
        validation: one dict a check: step, v (held-out error, 1 where nothing is predicted), bands (v by noise level,
            shallow to deep), shuffled (v with other images' codes), code_std.
    """

    what, section, losses = "diffusion autoencoder", "autoencoder", ("v", "loss")

    def __init__(
        self,
        model: DiffusionAutoencoder,
        config: AutoencoderConfig,
        acceleration: Acceleration,
        *,
        images: Tensor,
        latents: Tensor,
        shares: Tensor,
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
            latents: of all, (N, L, h, w), on the CPU.
            shares: of all, (N, K).
            held: indices of those held out; none: sheets show faces that are trained on.
            seed: fixes the noise of the checks.
            directory: where the folder of sheets goes.
            tell: hears of checks, sheets and warnings.
        """
        super().__init__(
            acceleration, steps=config.steps, sheets=config.sheets, checked=bool(len(held)), tell=tell
        )
        self.model, self.config = model, config
        self.encoder: SemanticEncoder = model.encoder
        self.denoiser: Denoiser = model.denoiser
        self.seed, self.directory = seed, directory
        shown = held if len(held) else torch.arange(0, len(images), max(1, len(images) // _FACES))
        self.faces = images[shown[:_FACES]]
        self.face_latents = latents[shown[:_FACES]]
        self.face_shares = shares[shown[:_FACES]]
        self.latents, self.shares = latents[held], shares[held]
        self.chunk = max(_CHUNK, config.batch_size)
        self.latent_moments = float(latents.mean()), float(latents.std())

    def watch(self, averaged: nn.ModuleDict) -> None:
        """Look at averaged weights, a module with `encoder` and `denoiser`, from now on."""
        self.encoder = cast(SemanticEncoder, averaged["encoder"])
        self.denoiser = cast(Denoiser, averaged["denoiser"])

    def _first_findings(self) -> list[Finding]:
        return latent_findings(*self.latent_moments)

    def _check(self, step: int) -> None:
        found = {"step": step, **self._held_out_errors()}
        if not math.isfinite(found["v"]):  # of the last step's weights: no loss of a later step will tell
            advice = f"lower autoencoder.learning_rate (now {self.config.learning_rate:g})"
            raise DivergedError(
                diverged("diffusion autoencoder, held-out images", step, {"loss": found["v"]}, advice)
            )
        self.validation.append(found)
        self.tell("validation", **found)
        bands = found["bands"]
        values = {"validation/v": found["v"], "validation/shuffled": found["shuffled"]}
        self.acceleration.log(
            {**values, **{f"validation/band_{index}": value for index, value in enumerate(bands)}}, step
        )
        by_level = " ".join(f"{value:.3f}" for value in bands)
        note(
            f"diffusion autoencoder: step {step}: held-out v loss {found['v']:.3f}; shallow to deep {by_level}"
        )
        findings = code_findings(found["code_std"])
        if step >= max(STUCK_STEPS, self.config.steps // 2):
            findings += use_findings(found["v"], found["shuffled"])
        self._warn(step, findings)

    @torch.no_grad()
    def _held_out_errors(self) -> dict[str, Any]:
        """Return the errors of the held-out images under noise that is the same at every check."""
        count = len(self.latents)
        generator = step_generator(self.seed, "validation", 0)
        own, shuffled = torch.zeros(2, BANDS, dtype=torch.float64)
        counts = torch.zeros(BANDS, dtype=torch.float64)
        codes = torch.cat([self._appearance(part).cpu() for part in torch.split(self.latents, self.chunk)])
        others = codes.roll(max(1, count // 2), 0)
        depth = self.config.max_depth * self.model.spec.timesteps
        for repeat in range(repeats(count)):
            band = (torch.arange(count) + repeat) % BANDS
            place = (band + torch.rand(count, generator=generator)) / BANDS
            timestep = (place * depth).long().clamp_max(round(depth) - 1)
            noise = torch.randn(self.latents.shape, generator=generator)
            counts += torch.bincount(band, minlength=BANDS)
            for total, code in ((own, codes), (shuffled, others)):
                total.index_add_(0, band, self._errors(code, noise, timestep))
        return {
            "v": float(own.sum() / counts.sum()),
            "bands": (own / counts).tolist(),
            "shuffled": float(shuffled.sum() / counts.sum()),
            "code_std": float(codes.std(0).mean()),
        }

    def _errors(self, codes: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Return the mean squared errors of v (H,), float64 on the CPU."""
        parts = []
        for rows in torch.split(torch.arange(len(codes)), self.chunk):
            latents, drawn, level, code, shares = (
                values[rows].to(self.model.device)
                for values in (self.latents, noise, timestep, codes, self.shares)
            )
            noisy, target = noised(self.model.alphas_cumprod, latents, drawn, level)
            v = self._predict(noisy, level, self.denoiser.context(code, shares))
            parts.append((v - target).square().mean((1, 2, 3)).cpu().double())
        return torch.cat(parts)

    def _appearance(self, latents: Tensor) -> Tensor:
        with self.acceleration.autocast():
            code = self.encoder.appearance(self.encoder(latents.to(self.model.device)))
        return code.float()

    def _predict(self, noisy: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        with self.acceleration.autocast():
            v: Tensor = self.denoiser(noisy, timestep, context)
        return v.float()

    @torch.no_grad()
    def _write_sheets(self, step: int) -> None:
        """Write faces over their round trips, and faces over what they become under each label's context."""
        model, depth = self.model, self.config.max_depth
        latents, shares = self.face_latents.to(model.device), self.face_shares.to(model.device)
        code = self._appearance(latents)
        options: dict[str, Any] = {"steps": _DECODE_STEPS, "depth": depth}

        def decode(noisy: Tensor, code: Tensor, shares: Tensor) -> Tensor:
            context = self.denoiser.context(code, shares)
            clean = model.decode_latents(noisy, lambda x, t: self._predict(x, t, context), **options)
            return model.to_images(clean).cpu()

        context = self.denoiser.context(code, shares)
        noisy = model.invert_latents(latents, lambda x, t: self._predict(x, t, context), **options)
        folder = self.directory / SHEETS
        trips = torch.stack([self.faces, decode(noisy, code, shares)])
        write_sheet(folder / f"reconstruction-{step:06d}.png", trips)
        few = slice(_EDITED_FACES)
        rows = [self.faces[few]]
        for label in torch.eye(shares.shape[1], device=model.device)[:_CLASSES]:
            rows.append(decode(noisy[few], code[few], label.expand(len(code[few]), -1)))
        write_sheet(folder / f"samples-{step:06d}.png", torch.stack(rows))
        self.tell("sheets", step=step)
