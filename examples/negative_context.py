"""Negative context with a plain diffusers model: two functions, and a sampling loop of one's own.

    python examples/negative_context.py OUT.png

The U-Net here is small and untrained, so the picture is noise: put a trained one in its place, conditioned on unit
vectors by cross-attention, as IDiff-Face (arXiv 2308.04995) is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor

from diffinf.generate import choose_negative_contexts, negative_guidance, parse_schedule, random_contexts

CONTEXT_SIZE = 32


def small_unet() -> UNet2DConditionModel:
    """Return an untrained U-Net of 16 px, that looks at one token of a context."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        cross_attention_dim=CONTEXT_SIZE,
    ).eval()


@torch.no_grad()
def generate(
    unet: UNet2DConditionModel,
    contexts: Tensor,
    *,
    scale: float = 0.5,
    strategy: str = "far",
    schedule: str = "constant",
    steps: int = 10,
) -> Tensor:
    """Return one image (N, 3, H, W) in about [-1, 1] for each context (N, D), led away from its negative one."""
    choice = choose_negative_contexts(contexts, strategy)  # type: ignore[arg-type]
    positive, negative = contexts[:, None], contexts[choice.indices][:, None]  # (N, 1, D): one token each
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(steps)
    weights = parse_schedule(schedule)
    side = unet.config.sample_size
    noisy = torch.randn(len(contexts), 3, side, side, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        # Both branches in one batch.
        outputs = unet(noisy.repeat(2, 1, 1, 1), t, torch.cat([positive, negative])).sample
        w = weights.scale(scale, int(t), scheduler.config.num_train_timesteps)
        guided = negative_guidance(*outputs.chunk(2), w)
        noisy = scheduler.step(guided, t, noisy).prev_sample
    return noisy


def main() -> None:
    """Write a row of pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    images = generate(small_unet(), random_contexts(8, CONTEXT_SIZE))
    row = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(2, 0, 3, 1).flatten(1, 2)
    Image.fromarray(row.numpy()).save(out)


if __name__ == "__main__":
    main()
