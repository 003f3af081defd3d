"""A DiffAE that fits into milliseconds, and the checkpoints that would have held it."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffinf.diffusion.diffae.autoencoder import DiffAE
from diffinf.diffusion.diffae.config import DiffAEConfig

CONFIG = DiffAEConfig(
    image_size=32,
    model_channels=32,
    channel_mult=(1, 2),
    encoder_channel_mult=(1, 1, 2),
    embed_channels=48,
    semantic_channels=24,
    num_res_blocks=1,
    attention_resolutions=(16,),
)


def make_diffae(config: DiffAEConfig = CONFIG, *, calm: float = 1.0) -> DiffAE:
    """Return a DiffAE with drawn weights; `calm` scales its predicted noise."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DiffAE(config)
        for module in model.modules():
            if isinstance(module, nn.GroupNorm):
                nn.init.normal_(module.weight, 1, 0.1)
                nn.init.normal_(module.bias, 0, 0.1)
    with torch.no_grad():
        for values in model.network.out[2].parameters():
            values.mul_(calm)
    return model.eval().requires_grad_(False)


def photos(n: int, seed: int, config: DiffAEConfig = CONFIG) -> Tensor:
    """Smooth colour pictures, uint8 (n, C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, config.image_channels, 4, 4, generator=generator) * 200 + 25
    side = (config.image_size, config.image_size)
    return nn.functional.interpolate(coarse, size=side, mode="bicubic").clamp(0, 255).byte()


def state_dict(model: DiffAE, *, before: str = "", ema: bool = True) -> dict[str, Tensor]:
    """What Lightning would have put under "state_dict": plain weights that differ from the averaged ones."""
    weights = model.network.state_dict()
    plain = {f"{before}model.{name}": values + 1 for name, values in weights.items()}
    averaged = {f"{before}ema_model.{name}": values for name, values in weights.items()}
    return {**plain, **averaged} if ema else plain


def checkpoint(path: Path, tensors: dict[str, Tensor], **beside: Any) -> Path:
    """Write a Lightning checkpoint as torch does."""
    torch.save({"epoch": 3, "global_step": 7, "state_dict": tensors, **beside}, path)
    return path


def repacked(
    source: Path, path: Path, pickled: bytes | None = None, *, compression: int = zipfile.ZIP_STORED
) -> Path:
    """Write the archive anew with right checksums, and with another pickle in it if one is given."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", compression) as new:
        for name in old.namelist():
            content = old.read(name) if pickled is None or not name.endswith("data.pkl") else pickled
            new.writestr(name, content)
    return path
