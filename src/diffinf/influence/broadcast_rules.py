"""Rules, as those in `rules.py`, of functions that spread a parameter over the samples by broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffinf.influence.pieces import Gradient, Parts, Piece


def _sum_to(gradient: Tensor, batch: int, shape: torch.Size) -> Tensor | None:
    """Undo broadcasting of a parameter within each sample: (N·k, ...) -> (N, *parameter elements)."""
    if gradient.shape[0] % batch:
        return None
    padded = (1,) * (gradient.ndim - len(shape)) + tuple(shape)
    if padded[0] != 1:
        return None
    gradient = gradient.reshape(batch, -1, *gradient.shape[1:]).sum(1)
    axes = [i for i in range(1, gradient.ndim) if padded[i] == 1 and gradient.shape[i] != 1]
    return (gradient.sum(axes) if axes else gradient).reshape(batch, -1)


def _broadcast(
    batch: int, output: Tensor, parameter: Tensor, make: Callable[[Tensor], Tensor]
) -> Parts | None:
    if output.ndim == 0 or output.shape[0] % batch or parameter.ndim > output.ndim:
        return None
    if parameter.ndim == output.ndim and parameter.shape[0] != 1:
        return None
    shape = parameter.shape

    def of_parameter(delta: Tensor) -> Piece:
        value = _sum_to(make(delta), batch, shape)
        assert value is not None
        return Gradient(value)

    return [(parameter, of_parameter)]


def multiply(batch: int, output: Tensor, input: Any, other: Any) -> Parts | None:
    """`input · other` with a parameter broadcast over the samples on either side (layer scale)."""
    if not (isinstance(input, Tensor) and isinstance(other, Tensor)):
        return None
    parts: Parts = []
    for parameter, factor in ((other, input), (input, other)):
        found = _broadcast(batch, output, parameter, lambda delta, factor=factor: delta * factor)  # type: ignore[misc]
        parts += found or []
    return parts or None


def add(batch: int, output: Tensor, input: Any, other: Any, *, alpha: float = 1) -> Parts | None:
    """`input + alpha · other` with a parameter broadcast over the samples (position embedding)."""
    parts: Parts = []
    for parameter, scale in ((input, 1), (other, alpha)):
        if isinstance(parameter, Tensor):
            parts += _broadcast(batch, output, parameter, lambda delta, scale=scale: delta * scale) or []  # type: ignore[misc]
    return parts or None


def addcmul(
    batch: int, output: Tensor, input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1
) -> Parts | None:
    """`input + value · tensor1 · tensor2` with parameters as shift and scale (global response norm)."""
    parts = _broadcast(batch, output, input, lambda delta: delta) or []
    parts += _broadcast(batch, output, tensor1, lambda delta: delta * tensor2 * value) or []
    parts += _broadcast(batch, output, tensor2, lambda delta: delta * tensor1 * value) or []
    return parts or None


def expand(batch: int, output: Tensor, input: Tensor, *sizes: Any) -> Parts | None:
    """A parameter repeated for every sample (class token)."""
    return _broadcast(batch, output, input, lambda delta: delta) if output.shape[0] == batch else None
