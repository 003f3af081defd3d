"""Generators small enough for tests."""

from __future__ import annotations

import torch
from torch import Tensor

from diffinf.config import GeneratorConfig
from diffinf.diffusion.first_stage import PatchComponents
from diffinf.generate.model import ContextGenerator, create_generator

SIZE = 16


def make_generator(
    injection: str = "norm", prediction: str = "v", learned: int = 0, context_size: int = 6
) -> ContextGenerator:
    """An untrained generator of 16 px whose contexts matter."""
    torch.manual_seed(0)
    model = create_generator(
        PatchComponents.fit(pictures(60)[0], 6, 4),
        image_size=SIZE,
        channels=(32,),
        layers=1,
        context_size=context_size,
        injection=injection,  # type: ignore[arg-type]
        prediction=prediction,  # type: ignore[arg-type]
        condition="identity" if learned else "embedding",
        context_names=[f"p{index}" for index in range(learned)],
    )
    with torch.no_grad():
        model.denoiser.empty.normal_()
        for parameter in model.denoiser.project.parameters():
            parameter.mul_(5)
    return model.freeze()


def pictures(n: int, people: int = 3) -> tuple[Tensor, Tensor]:
    """Noisy pictures, uint8 (n, 3, 16, 16), and who is shown: brighter from person to person."""
    generator = torch.Generator().manual_seed(0)
    who = torch.arange(n) % people
    images = 50 + 70 * who[:, None, None, None] + 25 * torch.randn(n, 3, SIZE, SIZE, generator=generator)
    return images.clamp(0, 255).to(torch.uint8), who


def settings(**values: object) -> GeneratorConfig:
    """Settings of seconds."""
    quick: dict[str, object] = {
        "context_size": 6,
        "patch_size": 4,
        "latent_channels": 6,
        "unet_channels": [32],
        "steps": 10,
        "batch_size": 8,
        "sheets": 1,
    }
    return GeneratorConfig.model_validate({**quick, **values})
