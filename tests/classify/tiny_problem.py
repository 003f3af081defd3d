"""A tiny problem: which half of a noisy picture is bright."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffinf.classify.model import ClassifierSpec

SPEC = ClassifierSpec("small_cnn", num_classes=2, in_channels=1, image_size=32, class_names=("top", "bottom"))


@dataclass(frozen=True)
class Problem:
    images: Tensor
    labels: Tensor
    ids: list[str]
    spec: ClassifierSpec = SPEC


def make_problem(n: int, seed: int) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    images = torch.randint(60, 130, (n, 1, 32, 32), generator=generator, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 16 * label : 16 * (label + 1)] += 60
    return Problem(images, labels, [f"face{i:03}" for i in range(n)])
