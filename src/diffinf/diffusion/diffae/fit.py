"""Fitting an imported DiffAE to a dataset: the heads that a repair needs, on top of frozen weights."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffinf.config import AutoencoderConfig
from diffinf.diffusion.diffae.autoencoder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    DatasetHeads,
    DiffAE,
    check_images,
    read_config,
)
from diffinf.diffusion.familiarity import moments, unlike_set, usual_error
from diffinf.diffusion.train import GUIDE_CHECKPOINT, train_guide
from diffinf.files import make_directory, write_json
from diffinf.progress import progress_bar
from diffinf.training.monitor import Tell

_RIDGE = 1e-3  # of the attribute head: keeps separable classes at finite weights


class _Images:
    """Training images as the latents of a DiffAE: made from bytes batch by batch, since as floats they are large."""

    def __init__(self, images: Tensor, shares: Tensor) -> None:
        self.images, self.shares = images, shares.float()

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        mirrored = torch.rand(len(indices), generator=generator) < 0.5
        images = self.images[indices]
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        return images.float() / 127.5 - 1


def fit_to_dataset(
    source: Path,
    images: Tensor,
    shares: Tensor,
    config: AutoencoderConfig,
    *,
    class_names: tuple[str, ...],
    seed: int,
    device: torch.device,
    directory: Path,
    tell: Tell | None = None,
) -> DiffAE:
    """Fit the heads of an imported DiffAE to a dataset; write weights, heads and metrics to `directory`.

    Args:
        source: folder of the imported DiffAE.
        images: uint8 training images (N, C, H, W) of the network's size.
        shares: P(true class) (N, K), rows summing to 1.
        config: settings; those of the guide are read.
        class_names: names of the K classes.
        seed: all randomness is a function of it.
        device: where to compute.
        directory: receives a copy of the imported weights, so that it is whole by itself.
        tell: called with "warning" and its text where the checkpoint tells the statistics of its codes, and here they
            clearly differ.

    Raises:
        UserError: the folder is damaged, or the images are not of the network's size and channels.
        DivergedError: the guide's loss became NaN or infinite.
    """
    check_images(read_config(source), tuple(images.shape[1:]))
    model = DiffAE.load(source, device)
    make_directory(directory)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(source / name, directory / name)
    codes = _codes(model, images)
    if model.has_statistics:
        trained = (torch.zeros(codes.shape[1]), torch.ones(codes.shape[1]))  # of normalised codes
        if (difference := unlike_set("codes", moments(codes), trained)) is not None:
            if tell is not None:
                tell("warning", text=difference)
            warnings.warn(difference, stacklevel=2)
    else:
        mean, std = codes.mean(0), codes.std(0).clamp_min(1e-6)
        model.set_statistics(mean, std)
        codes = (codes - mean) / std
    model.heads = DatasetHeads(model.config, class_names).to(device)
    loss = fit_attribute(model.heads.attribute, codes, shares)
    history = train_guide(
        model.heads.guide,
        nn.Identity(),
        _Images(images, shares),
        config,
        seed=seed,
        device=device,
        directory=directory,
    )
    model.eval().requires_grad_(False)
    model.usual_error = usual_error(model, images)
    model.save_heads(directory)
    write_json(
        directory / "metrics.json", {"attribute": {"loss": loss}, "guide": history[-1], "n": len(images)}
    )
    (directory / GUIDE_CHECKPOINT).unlink(missing_ok=True)
    return model


@torch.no_grad()
def _codes(model: DiffAE, images: Tensor) -> Tensor:
    """Return the normalised codes (N, D), on the CPU."""
    parts = []
    with progress_bar("semantic codes", len(images)) as advance:
        for part in torch.split(images, model.encode_batch):
            parts.append(model.code(model.to_latents(part)).cpu())
            advance(len(part))
    return torch.cat(parts)


def fit_attribute(head: nn.Linear, codes: Tensor, shares: Tensor) -> float:
    """Fit a linear head in place to predict shares (N, K) from normalised codes (N, D); return its cross-entropy.

    The problem is convex and small: it is solved by L-BFGS from zero, and nothing in it is random.
    """
    codes, shares = codes.to(head.weight.device), shares.to(head.weight.device).float()
    head.requires_grad_(True)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(codes), shares) + _RIDGE * head.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    head.requires_grad_(False)
    with torch.no_grad():
        return float(F.cross_entropy(head(codes), shares))
