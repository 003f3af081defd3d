"""What a classifier is trained on: images, labels, weights, checked once and hashed."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from diffinf.classify.methods import LABELS_ONLY, MethodSpec
from diffinf.classify.model import ClassifierSpec
from diffinf.config import ClassifierConfig
from diffinf.errors import UserError
from diffinf.files import stage_key


def image_digest(images: Tensor, rows: Tensor) -> str:
    """Return the sha256 of uint8 images[rows], images (M, C, H, W)."""
    digest = hashlib.sha256(str(tuple(images.shape[1:])).encode())
    for chunk in torch.split(rows, 4096):
        digest.update(images[chunk].contiguous().numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class TrainingMaterial:
    """What is trained on, and how: labels[i], weights[i] and targets[i] belong to images[rows[i]].

    Attributes:
        images: uint8 (M, C, H, W).
        labels: int64 (N,).
        weights: (N,) of mean 1, or None.
        rows: int64 (N,).
        targets: shares of the classes (N, K), or None.
        method: how it is trained on; None: with cross-entropy.
    """

    images: Tensor
    labels: Tensor
    weights: Tensor | None
    rows: Tensor
    targets: Tensor | None = None
    method: MethodSpec | None = None

    @classmethod
    def checked(
        cls,
        images: Tensor,
        labels: Tensor,
        weights: Tensor | None,
        rows: Tensor | None,
        spec: ClassifierSpec,
        targets: Tensor | None = None,
        method: MethodSpec | None = None,
    ) -> TrainingMaterial:
        """Check the arguments of `train_classifier`, which says what is raised."""
        rows = torch.arange(len(images)) if rows is None else rows.to(torch.int64)
        expected = (spec.in_channels, spec.image_size, spec.image_size)
        if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"images must be uint8 (M, {', '.join(map(str, expected))}), got {images.dtype} "
                f"{tuple(images.shape)}"
            )
        if labels.shape != rows.shape or (weights is not None and weights.shape != rows.shape):
            raise ValueError(f"{len(rows)} images need as many labels and weights")
        if not len(rows) or labels.min() < 0 or labels.max() >= spec.num_classes:
            raise ValueError(f"labels must lie in 0..{spec.num_classes - 1}, and there must be some")
        if len(torch.unique(labels)) < 2:
            raise UserError(
                f"all {len(labels)} training samples have one label: a classifier needs at least two "
                "classes; check the label column"
            )
        if weights is not None:
            if not bool(torch.isfinite(weights).all()) or weights.min() < 0 or weights.sum() <= 0:
                raise ValueError("weights must be finite, at least 0, and not all 0")
            weights = (weights.double() / weights.double().mean()).float()
        if targets is not None:
            if method is not None and method.name in LABELS_ONLY:
                raise ValueError(f"{method.name} is trained on labels, not on shares of the classes")
            shape = (len(rows), spec.num_classes)
            shares = (
                tuple(targets.shape) == shape and bool(torch.isfinite(targets).all()) and targets.min() >= 0
            )
            if not shares or (targets.sum(1) - 1).abs().max() > 1e-3:
                raise ValueError(
                    f"targets must be shares of the classes {shape}: at least 0, rows summing to 1"
                )
            targets = targets.float()
        return cls(images, labels.to(torch.int64), weights, rows, targets, method)

    def key(self, spec: ClassifierSpec, config: ClassifierConfig, seed: int, record: bool) -> str:
        """Return the key of the training: equal for equal settings and data."""
        settings = config.model_dump(mode="json", exclude={"folds"})
        weights = [] if self.weights is None else self.weights.tolist()
        targets = [] if self.targets is None else [self.targets.tolist()]
        method = [] if self.method is None else [asdict(self.method)]
        digest = image_digest(self.images, self.rows)
        return stage_key(
            "classifier",
            1,
            asdict(spec),
            settings,
            seed,
            record,
            digest,
            self.labels.tolist(),
            weights,
            *targets,
            *method,
        )
