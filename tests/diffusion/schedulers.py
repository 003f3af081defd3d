"""Schedulers other than the default."""

from __future__ import annotations

from typing import Any

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from diffinf.diffusion.invert import default_scheduler


def ddim(timesteps: int = 1000, **changes: Any) -> DDIMScheduler:
    """diffusers' DDIM on the noise levels of the default scheduler, going down to the clean image itself."""
    settings: dict[str, Any] = {
        "num_train_timesteps": timesteps,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "prediction_type": "v_prediction",
        "clip_sample": False,
        "set_alpha_to_one": True,
        "timestep_spacing": "trailing",
    }
    return DDIMScheduler(**{**settings, **changes})


def dpm(timesteps: int = 1000, **changes: Any) -> DPMSolverMultistepScheduler:
    """The default scheduler with other settings; of second order where nothing is said."""
    return DPMSolverMultistepScheduler.from_config(
        default_scheduler(timesteps).config, **{"solver_order": 2, **changes}
    )
