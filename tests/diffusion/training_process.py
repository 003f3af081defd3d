"""A process of its own that trains a tiny autoencoder: `training_process.py FOLDER`, alone or under torchrun."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from diffinf import progress
from diffinf.config import AutoencoderConfig
from diffinf.diffusion.train import train_autoencoder
from diffusion.tiny_autoencoder import pictures

N = 64
CONFIG = AutoencoderConfig(
    latent_channels=8,
    attribute_size=3,
    appearance_size=5,
    unet_channels=[32, 64],
    steps=8,
    guide_steps=4,
    batch_size=7,  # not a multiple of the processes
    learning_rate=2e-3,
    identity_size=4,
    prior_steps=2,
    validation_share=0.5,
    sheets=1,
)


def train(
    directory: Path, config: AutoencoderConfig = CONFIG, *, persons: bool = True
) -> dict[str, torch.Tensor]:
    """Train into `directory`; return encoder and denoiser in float32."""
    model = train_autoencoder(
        pictures(N, 0),
        torch.eye(2)[torch.arange(N) % 2],
        torch.arange(N) // 4 if persons else None,
        config,
        class_names=("calm", "smile"),
        seed=0,
        device=torch.device("cpu"),
        directory=directory,
    )
    return {
        f"{name}.{key}": values
        for name in ("encoder", "denoiser")
        for key, values in getattr(model, name).state_dict().items()
    }


def main() -> None:
    progress.set_quiet(True)
    out, rank = Path(sys.argv[1]), os.environ.get("RANK", "0")
    for name, persons in (("known", True), ("unknown", False)):
        weights = train(out / name, persons=persons)
        save_file(weights, out / f"{name}-{rank}.safetensors")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # else gloo's threads may abort the interpreter's end


if __name__ == "__main__":
    main()
