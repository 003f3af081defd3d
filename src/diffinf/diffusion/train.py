"""Training of the diffusion autoencoder: encoder and denoiser together, on cached latents of the first stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffinf.config import AutoencoderConfig
from diffinf.diffusion.autoencoder import AutoencoderSpec, DiffusionAutoencoder
from diffinf.diffusion.first_stage import FirstStage
from diffinf.run import write_json
from diffinf.training.ema import averaged
from diffinf.training.loop import batch_indices, fit, step_generator, warmup_cosine

CHECKPOINT = "training.checkpoint"


def label_keep_probability(trust: Tensor) -> Tensor:
    """Return how often a sample's label is shown to the denoiser, (N,) in [0, 1], from P(label right).

    A label that is more likely wrong than right is never shown; a coin flip's worth of trust is worth nothing.
    """
    return (2 * trust - 1).clamp(0, 1)


class _Material:
    """What every step draws from: latents of the images and of their mirror images, labels, trust, identities."""

    def __init__(
        self, latents: Tensor, mirrored: Tensor, labels: Tensor, trust: Tensor, identities: Tensor | None
    ) -> None:
        self.views = torch.stack([latents, mirrored])
        self.labels, self.trust, self.identities = labels, trust, identities

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        view = (torch.rand(len(indices), generator=generator) < 0.5).long()
        return self.views[view, indices]


def train_autoencoder(
    images: Tensor,
    labels: Tensor,
    trust: Tensor,
    identities: Tensor | None,
    config: AutoencoderConfig,
    *,
    class_names: tuple[str, ...],
    seed: int,
    device: torch.device,
    directory: Path,
) -> DiffusionAutoencoder:
    """Train on uint8 images (N, C, H, W) and write the result and its metrics to `directory`.

    Args:
        images: training images.
        labels: class indices (N,), as annotated.
        trust: P(label right) (N,) in [0, 1]; labels guide the model only as far as they are trusted.
        identities: person indices (N,), or None where the dataset does not know them.
        config: settings.
        class_names: names of the K classes.
        seed: all randomness is a function of it.
        device: where to train.
        directory: where weights, metrics and, while training, the resumable state are written.

    Raises:
        DivergedError: a loss became NaN or infinite.
    """
    spec = AutoencoderSpec(
        class_names=class_names,
        image_channels=images.shape[1],
        image_size=images.shape[2],
        latent_channels=config.latent_channels,
        code_size=config.code_size,
        unet_channels=tuple(config.unet_channels),
        unet_layers=config.unet_layers,
        identity_size=config.identity_size,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DiffusionAutoencoder(spec)
    model.first_stage = FirstStage.fit(images, config.latent_channels)
    model.to(device)
    material = _Material(_latents(model, images), _latents(model, images.flip(3)), labels, trust, identities)
    history = _train_denoiser(model, material, config, seed=seed, device=device, directory=directory)
    _set_code_statistics(model, material)
    model.eval().requires_grad_(False).save(directory)
    write_json(directory / "metrics.json", {"last": history[-1], "history": history, "n": len(labels)})
    (directory / CHECKPOINT).unlink(missing_ok=True)
    return model


def _train_denoiser(
    model: DiffusionAutoencoder,
    material: _Material,
    config: AutoencoderConfig,
    *,
    seed: int,
    device: torch.device,
    directory: Path,
) -> list[dict[str, float]]:
    """Train encoder and denoiser in place (the averaged weights end up in `model`); return the history."""
    trained = (
        nn.ModuleDict({"encoder": model.encoder, "denoiser": model.denoiser}).train().requires_grad_(True)
    )
    persons = 0 if material.identities is None else int(material.identities.max()) + 1
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        prototypes = nn.Linear(config.identity_size, max(1, persons), bias=False).to(device)
    average = averaged(trained, max_decay=config.ema_decay)
    optimizer = torch.optim.AdamW(
        [*trained.parameters(), *prototypes.parameters()], lr=config.learning_rate, weight_decay=1e-4
    )

    def step(index: int) -> dict[str, float]:
        generator = step_generator(seed, "denoiser", index)
        rows = batch_indices(len(material), config.batch_size, seed, index)
        parts = _losses(model, prototypes if persons else None, material, rows, config, generator, device)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * warmup_cosine(index, config.steps, floor=0.05)
        optimizer.zero_grad(set_to_none=True)
        parts["loss"].backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(trained)
        return {name: float(value.detach()) for name, value in parts.items()}

    state: dict[str, Any] = {
        "trained": trained,
        "prototypes": prototypes,
        "average": average,
        "optimizer": optimizer,
    }
    history = fit(
        step,
        steps=config.steps,
        state=state,
        checkpoint=directory / CHECKPOINT,
        description="diffusion autoencoder",
    )
    trained.load_state_dict(average.module.state_dict())
    return history


def _losses(
    model: DiffusionAutoencoder,
    prototypes: nn.Linear | None,
    material: _Material,
    rows: Tensor,
    config: AutoencoderConfig,
    generator: torch.Generator,
    device: torch.device,
) -> dict[str, Tensor]:
    """Return the loss of one batch and its parts: v error, attribute and identity cross-entropy on the code."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(device)

    clean = material.batch(rows, generator).to(device)  # (B, L, h, w)
    labels, trust = material.labels[rows].to(device), material.trust[rows].to(device).float()
    code = model.encoder(clean)  # (B, D)

    noise = torch.randn(clean.shape, generator=generator).to(device)
    t = torch.randint(0, model.spec.timesteps, (len(rows),), generator=generator).to(device)
    alpha = model.alphas_cumprod[t][:, None, None, None]
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    target = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
    shown = uniform(len(rows)) < label_keep_probability(trust) * (1 - config.label_dropout)
    context = model.denoiser.context(
        code,
        torch.where(shown, labels, torch.full_like(labels, model.denoiser.empty_label)),
        keep_code=uniform(len(rows)) >= config.code_dropout,
    )
    parts = {"v": F.mse_loss(model.denoiser(noisy, t, context), target)}
    attribute = F.cross_entropy(model.encoder.attribute_head(code), labels, reduction="none")
    parts["attribute"] = (trust * attribute).sum() / trust.sum().clamp_min(1e-6)
    loss = parts["v"] + config.attribute_weight * parts["attribute"]
    if prototypes is not None:
        assert material.identities is not None
        persons = material.identities[rows].to(device)
        cosine = model.encoder.identity(code) @ F.normalize(prototypes.weight, dim=1).T
        # CosFace (arXiv 1801.09414): the right person must win by a margin.
        margin = config.identity_margin * F.one_hot(persons, cosine.shape[1])
        parts["identity"] = F.cross_entropy(config.identity_scale * (cosine - margin), persons)
        loss = loss + config.identity_weight * parts["identity"]
    return {"loss": loss, **parts}


@torch.no_grad()
def _latents(model: DiffusionAutoencoder, images: Tensor) -> Tensor:
    return torch.cat([model.to_latents(part).cpu() for part in torch.split(images, 256)])


@torch.no_grad()
def _set_code_statistics(model: DiffusionAutoencoder, material: _Material) -> None:
    model.eval()
    codes = torch.cat(
        [model.encoder(part.to(model.device)).cpu() for part in torch.split(material.views[0], 256)]
    )
    model.code_mean.copy_(codes.mean(0))
    model.code_std.copy_(codes.std(0).clamp_min(1e-6))
