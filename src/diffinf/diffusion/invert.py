"""Deterministic inversion and decoding (DDIM, arXiv 2010.02502) between clean latents and a chosen noise level.

The arithmetic is diffusers': a scheduler goes down, its inverse goes up. Nothing is clipped: a clipped inversion cannot
be undone.

diffusers' schedulers step by T // steps timesteps and start at the last one. Any number of steps from any depth comes
of respacing (arXiv 2102.09672): the schedule is cut to the noise levels that are visited, so that each step is one
timestep of the schedule that is left, and the network is told the timestep that it was before.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DPMSolverMultistepInverseScheduler,
    DPMSolverMultistepScheduler,
)
from torch import Tensor

from diffinf.errors import UserError

# (noisy latents (B, ...), timesteps (B,)) -> what the model predicts, here v, (B, ...)
Prediction = Callable[[Tensor, Tensor], Tensor]
# (predicted clean latents (B, ...), distance from the end in (0, 1]) -> clean latents
Correction = Callable[[Tensor, float], Tensor]

INVERSES: dict[type[Any], type[Any]] = {
    DDIMScheduler: DDIMInverseScheduler,
    DPMSolverMultistepScheduler: DPMSolverMultistepInverseScheduler,
}
# Settings under which an inversion could not be undone, or levels would not be the trained ones.
_REFUSED = (
    "clip_sample",
    "thresholding",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "use_flow_sigmas",
)


def default_scheduler(timesteps: int = 1000) -> DPMSolverMultistepScheduler:
    """Return DDIM on the linear schedule of DDPM (arXiv 2006.11239), predicting v (arXiv 2202.00512).

    DDIM is DPM-Solver of first order (arXiv 2206.00927). diffusers inverts that one by asking the network at the level
    a step leaves, its DDIM at the level it leads to, where the image has less noise than the network is told: with few
    steps that blurs (docs/method.md has the figures). Higher orders lean on the steps before, which a correction of
    the predicted clean latents invalidates.
    """
    return DPMSolverMultistepScheduler(
        num_train_timesteps=timesteps,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        solver_order=1,
    )


def check_scheduler(scheduler: Any) -> None:
    """Raise a UserError unless a scheduler has an inverse, predicts v, draws no noise and clips nothing."""
    name = type(scheduler).__name__
    if type(scheduler) not in INVERSES:
        known = " or ".join(sorted(kind.__name__ for kind in INVERSES))
        raise UserError(f"scheduler: {name} has no inverse; choose {known}")
    config: Any = scheduler.config
    for setting in _REFUSED:
        if config.get(setting):
            raise UserError(
                f"scheduler: {name} has {setting}={config[setting]}, with which an inversion cannot be undone; "
                f"make it with {setting}=False"
            )
    if str(config.get("algorithm_type", "")).startswith("sde"):
        raise UserError(
            f"scheduler: {name} has algorithm_type={config['algorithm_type']}, which draws noise; "
            "make it with algorithm_type='dpmsolver++'"
        )
    if config.prediction_type != "v_prediction":
        raise UserError(
            f"scheduler: {name} expects prediction_type={config.prediction_type}, the denoiser predicts v; "
            "make it with prediction_type='v_prediction'"
        )


def timestep_grid(timesteps: int, steps: int, depth: float) -> list[int]:
    """Return `steps` ascending timesteps that end at `depth`·`timesteps` - 1 and are evenly spaced from there to 0."""
    last = max(steps, round(depth * timesteps)) - 1
    return [round((index + 1) * (last + 1) / steps) - 1 for index in range(steps)]


def most_steps(scheduler: Any, depth: float) -> int:
    """Return how many steps `invert` and `decode` can take to a `depth` in (0, 1]; 0: not even one."""
    levels = round(depth * len(scheduler.alphas_cumprod))
    # The grid rounds: with more than two steps to three levels, its first is timestep 0 (see `_Respaced`).
    return levels if isinstance(scheduler, DDIMScheduler) else 2 * levels // 3


def _rebuilt(kind: type[Any], settings: dict[str, Any]) -> Any:
    """Make a scheduler of those settings that it has.

    Not with `from_config`: it drops a value whose name is among those that were once left at their default.
    """
    known = inspect.signature(kind).parameters
    return kind(**{name: value for name, value in settings.items() if name in known})


@dataclass(frozen=True)
class _Respaced:
    """A scheduler and its inverse on the visited noise levels alone, and the timesteps these had before."""

    down: Any
    up: Any
    levels: list[int]

    @classmethod
    def of(cls, scheduler: Any, steps: int, depth: float) -> _Respaced:
        check_scheduler(scheduler)
        alphas = scheduler.alphas_cumprod.double()
        levels = timestep_grid(len(alphas), steps, depth)
        settings: dict[str, Any] = {"steps_offset": 0}
        if isinstance(scheduler, DDIMScheduler):
            # Below the first level lies the clean image itself.
            settings |= {"timestep_spacing": "trailing", "set_alpha_to_one": True}
        else:
            # These schedulers work in log signal-to-noise ratios: the clean image is taken to be at timestep 0.
            if levels[0] == 0:
                raise UserError(
                    f"steps: {steps} to depth {depth} are as fine as the noise levels, and "
                    f"{type(scheduler).__name__} takes timestep 0 for the clean image; choose fewer steps, "
                    f"at most {most_steps(scheduler, depth)}"
                )
            levels = [0, *levels]
            settings |= {
                "timestep_spacing": "linspace",
                "final_sigmas_type": "sigma_min",
                "lambda_min_clipped": -math.inf,  # the depth says where to end
            }
        visited = alphas[levels]
        ratios = visited / torch.cat([torch.ones(1, dtype=torch.float64), visited[:-1]])
        settings |= {"num_train_timesteps": len(levels), "trained_betas": (1 - ratios).tolist()}
        # Already in the levels.
        settings["rescale_betas_zero_snr"] = False
        down, up = (
            _rebuilt(kind, {**scheduler.config, **settings})
            for kind in (type(scheduler), INVERSES[type(scheduler)])
        )
        down.set_timesteps(steps)
        up.set_timesteps(steps)
        return cls(down, up, levels)

    def asked(self, predict: Prediction, latents: Tensor, t: Tensor) -> Tensor:
        """Return the prediction for `latents` at timestep `t` of the respaced schedule."""
        timestep = self.levels[int(t)]
        return predict(latents, torch.full((len(latents),), timestep, device=latents.device))


@torch.no_grad()
def invert(scheduler: Any, latents: Tensor, predict: Prediction, *, steps: int, depth: float = 1.0) -> Tensor:
    """Return the stochastic code: `latents` (B, L, h, w) carried up to noise level `depth` in (0, 1].

    Costs `steps` network evaluations. At depth 1 this is the x_T of arXiv 2111.15640. DPM-Solver asks the network at
    the level that a step leaves, the first time at timestep 0, which it takes the clean latents to be at; DDIMScheduler
    at the level that a step leads to.

    Raises:
        UserError: the scheduler cannot be inverted.
    """
    respaced = _Respaced.of(scheduler, steps, depth)
    for t in respaced.up.timesteps:
        v = respaced.asked(predict, latents, t)
        latents = respaced.up.step(v, t, latents, return_dict=False)[0]
    return latents


@torch.no_grad()
def decode(
    scheduler: Any,
    noisy: Tensor,
    predict: Prediction,
    *,
    steps: int,
    depth: float = 1.0,
    correct: Correction | None = None,
) -> Tensor:
    """Return clean latents (B, L, h, w) from latents at noise level `depth`; undoes `invert` up to its error.

    Args:
        scheduler: of diffusers; says what the levels are and how to step.
        noisy: latents (B, L, h, w) at noise level `depth`.
        predict: the denoiser under its context.
        steps: network evaluations.
        depth: in (0, 1].
        correct: changes the predicted clean latents at a step that is so far, in (0, 1], from the end; the noise
            is adapted so that the noisy latents stay where they are.

    Raises:
        UserError: the scheduler cannot be inverted.
    """
    respaced = _Respaced.of(scheduler, steps, depth)
    for index, t in enumerate(respaced.down.timesteps):
        v = respaced.asked(predict, noisy, t)
        if correct is not None:
            alpha = respaced.down.alphas_cumprod[int(t)]
            clean = alpha.sqrt() * noisy - (1 - alpha).sqrt() * v
            corrected = correct(clean, (steps - index) / steps)
            if corrected is not clean:
                # The scheduler takes what the network would have said of these clean latents.
                v = (alpha.sqrt() * noisy - corrected) / (1 - alpha).sqrt()
        noisy = respaced.down.step(v, t, noisy, return_dict=False)[0]
    return noisy
