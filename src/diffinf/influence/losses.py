"""Losses of one value a sample, by name: what the gradient norms are taken of.

Each is summed, not averaged, over a sample's outputs: the log-likelihood of the sample, up to a constant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diffinf.classify.losses import squared_earth_mover as earth_mover
from diffinf.errors import UserError

PerSampleLoss = Callable[..., Tensor]
"""`loss(output, labels) -> (N,)`, each value from its own sample alone."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy: logits (N, K), labels (N,) in 0..K-1, or class shares (N, K) -> (N,)."""
    return F.cross_entropy(logits, labels, reduction="none")


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Multi-label cross-entropy: logits (N, A), labels (N, A) in [0, 1], NaN where unknown -> (N,).

    An unknown label adds nothing, to the loss or to its gradient.
    """
    known = ~labels.isnan()
    values = F.binary_cross_entropy_with_logits(
        logits, torch.where(known, labels, 0.0).to(logits.dtype), reduction="none"
    )
    return torch.where(known, values, 0.0).sum(1)


def ordinal(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of ordered classes by their thresholds (CORAL, arXiv 1901.07884, section 3.2).

    Logit k says whether the class is above k: logits (N, K-1), labels (N,) in 0..K-1 -> (N,). Shared weights
    before the K-1 thresholds, as CORAL has them, are the network's business.
    """
    steps = torch.arange(logits.shape[1], device=logits.device)
    above = (labels.unsqueeze(1) > steps).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, above, reduction="none").sum(1)


def squared_error(output: Tensor, targets: Tensor) -> Tensor:
    """Squared error: output (N,), (N, 1) or (N, D), targets (N,) or (N, D) -> (N,)."""
    difference = output.reshape(len(output), -1) - targets.reshape(len(targets), -1).to(output.dtype)
    return difference.square().sum(1)


LOSSES: dict[str, PerSampleLoss] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "earth_mover": earth_mover,
    "ordinal": ordinal,
    "squared_error": squared_error,
}
"""The losses that have a name."""


def per_sample_loss(loss: PerSampleLoss | str | None) -> PerSampleLoss:
    """Return the loss of that name, a callable itself, cross-entropy for None; UserError for another name."""
    if loss is None:
        return cross_entropy
    if not isinstance(loss, str):
        return loss
    if loss not in LOSSES:
        raise UserError(f"loss: there is no {loss!r}; expected {', '.join(LOSSES)} or a function.")
    return LOSSES[loss]


def check_labels(
    loss: PerSampleLoss, output: Any, labels: Tensor, describe: Callable[[int], str] = str
) -> None:
    """Refuse outputs and labels that a named loss cannot take; any other callable looks after itself.

    Args:
        loss: as `per_sample_loss` returns it.
        output: what the model returned for the batch.
        labels: the batch's labels.
        describe: row of the batch -> how the message names that sample.

    Raises:
        UserError: shapes that do not fit, or labels outside the classes or the range; names the first sample.
    """
    if not any(loss is named for named in LOSSES.values()):
        return
    name = getattr(loss, "__name__", "loss").replace("_", "-")
    if not isinstance(output, Tensor) or (output.ndim != 2 and loss is not squared_error):
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(f"{name} takes logits (N, K), the model returned {shape}: pass `loss=`.")
    if loss is squared_error or labels.ndim == 2:
        wide = output.reshape(len(output), -1).shape
        if labels.reshape(len(labels), -1).shape != wide:
            raise UserError(
                f"{name}: labels of shape {tuple(labels.shape)} do not fit outputs of shape "
                f"{tuple(output.shape)}; expected one value for each output."
            )
    elif loss is binary_cross_entropy:
        raise UserError(f"{name}: expected labels (N, {output.shape[1]}), one a logit; got {labels.shape}.")
    _check_values(loss, name, output, labels, describe)


def _check_values(
    loss: PerSampleLoss, name: str, output: Tensor, labels: Tensor, describe: Callable[[int], str]
) -> None:
    if loss in (cross_entropy, earth_mover, ordinal) and labels.ndim == 1:
        if labels.is_floating_point():
            raise UserError(f"{name}: expected whole numbers as class labels, got {labels.dtype}.")
        last = output.shape[1] - 1 + (loss is ordinal)
        wrong, expected = (labels < 0) | (labels > last), f"the model's classes 0..{last}"
    elif loss is binary_cross_entropy:
        wrong, expected = ((labels < 0) | (labels > 1)).any(1), "0..1 (NaN: unknown)"
    elif loss is squared_error:
        wrong, expected = ~labels.reshape(len(labels), -1).isfinite().all(1), "the finite numbers"
    else:
        return
    rows = wrong.nonzero().flatten().tolist()
    if rows:
        raise UserError(
            f"label {labels[rows[0]].tolist()} of {describe(rows[0])} is outside {expected} "
            f"({len(rows)} such labels)."
        )
