"""Presets: what to set differently on which machine."""

from __future__ import annotations

from typing import Any, Literal, cast, get_args

from diffinf.errors import UserError

PresetName = Literal["cpu", "cpu-small", "gpu", "gpu-48", "gpu-128", "tiny"]

_ON_GPU: dict[str, Any] = {
    "classifier": {
        "name": "resnet18",
        "steps": 6000,
        "batch_size": 128,
        "learning_rate": 1e-3,
        "folds": 5,
    },
    "compare": {"seeds": 5},
    "generator": {
        "unet_channels": [64, 128, 256],
        "unet_layers": 2,
        "steps": 40_000,
        "batch_size": 256,
        "learning_rate": 3e-4,
        "ema_decay": 0.9999,
    },
}


def preset(name: PresetName) -> dict[str, Any]:
    """Return what a preset sets differently from the fields' defaults (which are those of "cpu").

    "cpu": minutes to tens of minutes on two cores. "cpu-small": its autoencoder for 32-64 px, spelled out, whatever
    becomes of the defaults. "gpu": larger classifiers, more steps. "gpu-48" and "gpu-128": as "gpu", with an
    autoencoder for 48-64 px and for 128 px on one modern GPU. "tiny": seconds, for tests; its figures mean nothing.
    """
    presets: dict[PresetName, dict[str, Any]] = {
        "cpu": {},
        "cpu-small": {
            "autoencoder": {
                "patch_size": 4,
                "latent_channels": 16,
                "unet_channels": [64, 96, 96],
                "unet_layers": 1,
                "steps": 1500,
                "guide_steps": 1000,
                "batch_size": 64,
                "learning_rate": 8e-4,
                "ema_decay": 0.995,
            },
        },
        "gpu": {**_ON_GPU, "autoencoder": {"steps": 40_000, "batch_size": 128}},
        "gpu-48": {
            **_ON_GPU,
            "autoencoder": {
                "latent_channels": 16,
                "appearance_size": 64,
                "unet_channels": [128, 192, 256],
                "unet_layers": 2,
                "steps": 60_000,
                "guide_steps": 4000,
                "batch_size": 256,
                "learning_rate": 2e-4,
                "ema_decay": 0.9999,
            },
        },
        "gpu-128": {
            **_ON_GPU,
            "data": {"image_size": 128},
            "autoencoder": {
                "latent_channels": 16,
                "appearance_size": 128,
                "unet_channels": [128, 256, 448],
                "unet_layers": 2,
                "steps": 150_000,
                "guide_steps": 4000,
                "batch_size": 64,
                "learning_rate": 1e-4,
                "ema_decay": 0.9999,
            },
        },
        "tiny": {
            "data": {"image_size": 32},
            "classifier": {"steps": 40, "batch_size": 32, "checkpoints": 2, "folds": 2},
            "influence": {"batch_size": 64},
            "autoencoder": {
                "steps": 12,
                "guide_steps": 12,
                "first_stage_steps": 12,
                "prior_steps": 4,
                "batch_size": 16,
                "sheets": 1,
            },
            "repair": {
                "surrogate_steps": 20,
                "code_steps": 3,
                "diffusion_steps": 2,
                "strengths": [1.0],
                "trusted_minimum": 1,
            },
            "compare": {"seeds": 1, "workers": 1},
            "generator": {
                "context_size": 8,
                "patch_size": 4,
                "unet_channels": [32],
                "steps": 12,
                "embedder_steps": 12,
                "batch_size": 8,
                "sheets": 1,
            },
        },
    }
    return presets[name]


def check_preset(name: object, source: str) -> PresetName:
    """Return `name` if it is a preset's; else UserError that begins with `source`."""
    names = get_args(PresetName)
    if name not in names:
        raise UserError(f"{source}: expected {', '.join(names[:-1])} or {names[-1]}, found {name!r}")
    return cast(PresetName, name)
