"""Relative classification accuracy as a torchmetrics metric, for loops and several processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from diffinf.evaluate.intervals import Interval
from diffinf.evaluate.rca import RelativeClassificationAccuracy, confusion, rca_from_confusions


class RelativeClassificationAccuracyMetric(Metric):  # type: ignore[misc]  # torchmetrics is untyped here
    """Accuracy of an oracle on generated images over its accuracy on real ones (arXiv 2601.15560).

    Takes batches of either kind in any order; counts add up over processes. `compute` returns scalars ``rca``,
    ``balanced``, ``generated_accuracy``, ``real_accuracy`` and ``per_class`` (K,), NaN where undefined; `result` the
    same numbers as `diffinf.evaluate.rca.relative_classification_accuracy` gives them, intervals included.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    generated: Tensor
    real: Tensor

    def __init__(self, class_names: Sequence[str], **settings: Any) -> None:
        """Count over the K classes of these names; ``settings`` are torchmetrics' own."""
        super().__init__(**settings)
        self.class_names = tuple(class_names)
        empty = torch.zeros(len(self.class_names), len(self.class_names), dtype=torch.long)
        self.add_state("generated", default=empty.clone(), dist_reduce_fx="sum")
        self.add_state("real", default=empty, dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor, real: bool) -> None:
        """Add a batch.

        Args:
            preds: (B, K) the oracle's logits or probabilities, or (B,) classes read.
            target: (B,) classes asked for, or the true ones of real images.
            real: whether the images are real.

        Raises:
            ValueError: if shapes do not fit or a class is not in 0..K-1.
        """
        k = len(self.class_names)
        if preds.shape != target.shape and preds.shape != (*target.shape, k):
            raise ValueError(
                f"preds must be (B, {k}) or (B,), target (B,), got {preds.shape} and {target.shape}"
            )
        read = preds.argmax(dim=1) if preds.ndim == 2 else preds
        for values in (read, target):
            if values.is_floating_point() or (len(values) and not 0 <= values.min() <= values.max() < k):
                raise ValueError(f"classes must be whole numbers in 0..{k - 1}")
        counts = confusion(target.cpu().numpy(), read.cpu().numpy(), k)
        name = "real" if real else "generated"
        state: Tensor = getattr(self, name)
        setattr(self, name, state + torch.from_numpy(counts).to(state.device))

    def compute(self) -> dict[str, Tensor]:
        """The figures without their intervals; all NaN while no class has both generated and real images."""
        names = ("rca", "balanced", "generated_accuracy", "real_accuracy")
        if not ((self.generated.sum(dim=1) > 0) & (self.real.sum(dim=1) > 0)).any():
            nothing = self._tensor(None)
            return {**dict.fromkeys(names, nothing), "per_class": nothing.repeat(len(self.class_names))}
        found = self.result()
        values: list[Interval | None] = [getattr(found, name) for name in names]
        per_class = [part.rca for part in found.per_class.values()]
        return {
            **{name: self._tensor(value) for name, value in zip(names, values, strict=True)},
            "per_class": torch.stack([self._tensor(value) for value in per_class]),
        }

    def result(self, *, bootstrap: int = 1000, seed: int = 0) -> RelativeClassificationAccuracy:
        """Everything, with intervals, of what this process has seen or was given."""
        return rca_from_confusions(
            self.generated.cpu().numpy(),
            self.real.cpu().numpy(),
            self.class_names,
            bootstrap=bootstrap,
            seed=seed,
        )

    def _tensor(self, value: Interval | None) -> Tensor:
        number = float("nan") if value is None else value.estimate
        return torch.tensor(number, device=self.generated.device)
