"""Exponential moving average of weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.optim.swa_utils import AveragedModel


def averaged(module: torch.nn.Module, *, max_decay: float = 0.999, power: float = 0.75) -> AveragedModel:
    """Return a copy of `module` that follows it with decay min(max_decay, 1 - (1 + step)^-power).

    The decay grows with the steps, so that a short training is not dominated by its random start
    (the schedule of IDiff-Face, arXiv 2308.04995).
    """

    def update(
        averages: Sequence[torch.Tensor], currents: Sequence[torch.Tensor], steps: torch.Tensor | int
    ) -> None:
        decay = min(max_decay, 1.0 - (1.0 + float(steps)) ** -power)
        for average, current in zip(averages, currents, strict=True):
            average.lerp_(current, 1.0 - decay)

    return AveragedModel(module, multi_avg_fn=update, use_buffers=True)
