"""What encoder and denoiser are trained on and for: material, batches of it, the loss and its parts."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffinf.config import AutoencoderConfig
from diffinf.diffusion.autoencoder import DiffusionAutoencoder
from diffinf.diffusion.networks import Denoiser, SemanticEncoder
from diffinf.training.loop import seeded


class Views(Protocol):
    """Training images as latents, with estimated shares of the classes (N, K)."""

    shares: Tensor

    def __len__(self) -> int:
        """Return the number of images N."""

    def batch(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Return latents (B, L, h, w) of the images at `indices` (B,), each mirrored or not."""


class Material:
    """Latents of images and of their mirror images (2, M, L, h, w), and the shares and persons of N of them."""

    def __init__(
        self, views: Tensor, shares: Tensor, identities: Tensor | None, rows: Tensor | None = None
    ) -> None:
        """Take the images at `rows` (N,) of all M, by default each once; shares (M, K), persons (M,) are of all."""
        self.views, self.rows = views, torch.arange(views.shape[1]) if rows is None else rows
        self.shares = shares[self.rows]
        self.identities = None if identities is None else identities[self.rows]
        self.persons = 0 if identities is None else int(identities.max()) + 1

    def __len__(self) -> int:
        """Return the number of images N."""
        return len(self.rows)

    def batch(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Return latents (B, L, h, w) of the images at `indices` (B,), each mirrored or not."""
        view = (torch.rand(len(indices), generator=generator) < 0.5).long()
        return self.views[view, self.rows[indices]]


class Batch(NamedTuple):
    """Everything random in a step, drawn."""

    clean: Tensor  # (B, L, h, w)
    noise: Tensor  # (B, L, h, w)
    timestep: Tensor  # int64 (B,)
    shares: Tensor  # (B, K)
    keep_appearance: Tensor  # bool (B,)
    keep_label: Tensor  # bool (B,)
    persons: Tensor | None  # int64 (B,)


def draw_batch(
    material: Material,
    indices: Tensor,
    config: AutoencoderConfig,
    timesteps: int,
    generator: torch.Generator,
    device: torch.device,
    part: slice = slice(None),
) -> Batch:
    """Draw for the images at `indices` (B,) and return what `part` of them gets: the draws do not depend on it."""
    clean = material.batch(indices, generator)
    noise = torch.randn(clean.shape, generator=generator)
    timestep = torch.randint(0, round(config.max_depth * timesteps), (len(indices),), generator=generator)
    keep_appearance = torch.rand(len(indices), generator=generator) >= config.code_dropout
    keep_label = torch.rand(len(indices), generator=generator) >= config.label_dropout

    def mine(values: Tensor) -> Tensor:
        return values[part].to(device)

    return Batch(
        clean=mine(clean),
        noise=mine(noise),
        timestep=mine(timestep),
        shares=mine(material.shares[indices]),
        keep_appearance=mine(keep_appearance),
        keep_label=mine(keep_label),
        persons=None if material.identities is None else mine(material.identities[indices]),
    )


def noised(alphas_cumprod: Tensor, clean: Tensor, noise: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
    """Return latents (B, L, h, w) at their noise levels and v (2202.00512), the target there."""
    alpha = alphas_cumprod[timestep][:, None, None, None]
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    return noisy, alpha.sqrt() * noise - (1 - alpha).sqrt() * clean


class Reversed(torch.autograd.Function):
    """The identity whose gradient is turned round (arXiv 1409.7495): what helps the adversary hurts the encoder."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return `x`."""
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the gradient's negative."""
        return -gradients[0]


class Objective(nn.Module):
    """Encoder, denoiser and the heads that only training needs; called with a batch it returns the losses."""

    def __init__(
        self, model: DiffusionAutoencoder, config: AutoencoderConfig, *, persons: int, seed: int
    ) -> None:
        """Put heads to the parts of `model`; `persons` is their number, 0 where nobody knows them."""
        super().__init__()
        self.encoder: SemanticEncoder = model.encoder
        self.denoiser: Denoiser = model.denoiser
        with seeded(seed + 1):
            self.heads = nn.ModuleDict(
                {
                    "adversary": nn.Sequential(
                        nn.Linear(config.appearance_size, 64),
                        nn.SiLU(),
                        nn.Linear(64, len(model.spec.class_names)),
                    ),
                    "persons": nn.Linear(config.identity_size, max(1, persons), bias=False),
                }
            ).to(model.device)
        if not persons:  # processes that average gradients must not wait for one that never comes
            self.heads["persons"].requires_grad_(False)
            self.encoder.identity_head.requires_grad_(False)
        self.alphas_cumprod = model.alphas_cumprod
        self.config = config

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of a batch and its parts: v error; attribute, adversary and identity on the code."""
        config, denoiser = self.config, self.denoiser
        code = self.encoder(batch.clean)  # (B, D)
        appearance = self.encoder.appearance(code)
        noisy, target = noised(self.alphas_cumprod, batch.clean, batch.noise, batch.timestep)
        context = denoiser.context(
            appearance,
            batch.shares,
            keep_appearance=batch.keep_appearance,
            keep_label=batch.keep_label,
        )
        parts = {"v": F.mse_loss(denoiser(noisy, batch.timestep, context), target)}
        parts["attribute"] = F.cross_entropy(self.encoder.attribute(code), batch.shares)
        parts["adversary"] = F.cross_entropy(
            self.heads["adversary"](Reversed.apply(appearance)), batch.shares
        )
        loss = (
            parts["v"]
            + config.attribute_weight * parts["attribute"]
            + config.adversary_weight * parts["adversary"]
        )
        if batch.persons is not None:
            centres = F.normalize(cast(nn.Linear, self.heads["persons"]).weight, dim=1)
            cosine = self.encoder.identity(code) @ centres.T
            # CosFace (arXiv 1801.09414): the right person must win by a margin.
            margin = config.identity_margin * F.one_hot(batch.persons, cosine.shape[1])
            parts["identity"] = F.cross_entropy(config.identity_scale * (cosine - margin), batch.persons)
            loss = loss + config.identity_weight * parts["identity"]
        return {"loss": loss, **parts}
