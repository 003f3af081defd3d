"""Identity by an embedder trained on the persons that the dataset itself names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffinf.training.loop import batch_indices, fit, seeded, step_generator, step_seed, warmup_cosine

ToInput = Callable[[Tensor, torch.device], Tensor]


@dataclass(frozen=True)
class PersonEmbedder:
    """An embedder trained by `train_identity`, on images as they lie on disk.

    Attributes:
        network: images (B, C, H, W) in [-1, 1] to vectors (B, D).
        to_input: uint8 images to the network's input.
        device: where the network is.
    """

    network: nn.Module
    to_input: ToInput
    device: torch.device
    name: str = "persons"
    judges_identity: bool = True

    @torch.no_grad()
    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit vectors (N, D) of uint8 images (N, C, H, W), and True (N,): it takes every image for a face."""
        parts = [
            F.normalize(self.network(self.to_input(part, self.device)), dim=1).cpu()
            for part in torch.split(images, 256)
        ]
        return torch.cat(parts), torch.ones(len(images), dtype=torch.bool)


def train_identity(
    embedder: nn.Module,
    images: Tensor,
    persons: Tensor,
    *,
    to_input: ToInput,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    device: torch.device,
    checkpoint: Path | None = None,
    margin: float = 0.2,
    scale: float = 16.0,
) -> nn.Module:
    """Train `embedder` in place to tell persons apart by a margin softmax (CosFace, arXiv 1801.09414).

    Args:
        embedder: images (B, C, H, W) in [-1, 1] to vectors (B, D).
        images: uint8 (N, C, H, W).
        persons: int64 (N,) in 0..P-1.
        to_input: uint8 images to the embedder's input.
        steps: optimisation steps.
        batch_size: samples a step.
        learning_rate: peak learning rate.
        seed: all randomness is a function of it.
        device: where to train.
        checkpoint: resumable state.
        margin: by how much the right person's cosine must win.
        scale: of the cosines in the softmax.
    """
    embedder.to(device).train()
    count = int(persons.max()) + 1
    with seeded(seed, device):
        width = embedder(to_input(images[:2], device)).shape[1]
        prototypes = nn.Linear(width, count, bias=False).to(device)
    optimizer = torch.optim.AdamW(
        [*embedder.parameters(), *prototypes.parameters()], lr=learning_rate, weight_decay=5e-4
    )

    def step(index: int) -> dict[str, float]:
        rows = batch_indices(len(images), batch_size, seed, index)
        mirrored = torch.rand(len(rows), generator=step_generator(seed, "identity", index)) < 0.5
        batch = images[rows]
        batch = torch.where(mirrored[:, None, None, None], batch.flip(3), batch)
        with seeded(step_seed(seed, "identity dropout", index), device):
            vectors = F.normalize(embedder(to_input(batch, device)), dim=1)
        person = persons[rows].to(device)
        cosine = vectors @ F.normalize(prototypes.weight, dim=1).T
        loss = F.cross_entropy(scale * (cosine - margin * F.one_hot(person, count)), person)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * warmup_cosine(index, steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return {"loss": loss.item()}

    state: dict[str, Any] = {"embedder": embedder, "prototypes": prototypes, "optimizer": optimizer}
    fit(step, steps=steps, state=state, checkpoint=checkpoint, description="identity embedder")
    return embedder.eval().requires_grad_(False)


def hold_out_persons(
    persons: npt.NDArray[np.int64], share: float, seed: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Choose persons to calibrate on.

    Returns:
        bool (N,), True for the samples of held-out persons; and the others' persons renumbered from 0, (M,).
    """
    names = np.unique(persons)
    order = torch.randperm(len(names), generator=step_generator(seed, "held-out persons", 0)).numpy()
    held_out = np.isin(persons, names[order[: max(2, round(share * len(names)))]])
    return held_out, np.unique(persons[~held_out], return_inverse=True)[1]
