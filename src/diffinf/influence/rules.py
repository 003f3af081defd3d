"""Which functions of a parameter have a closed form for their per-sample gradient, and what to keep for it.

A rule looks at one call `output = function(*args)` and answers, for each parameter it understands, how the
gradient arriving at the output turns into that call's part of the per-sample gradient (a piece of
`pieces.py`). Arrays that carry the batch may fold more axes behind it (windows, tokens): axis 0 is then a
multiple of the batch size with the sample outermost. A call that does not look like this gets no answer,
and the check against autograd in `ghost.py` catches the calls that only look like it. The rules of what is
broadcast are in `broadcast_rules.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diffinf.influence.broadcast_rules import add, addcmul, expand, multiply
from diffinf.influence.forms import in_chunks
from diffinf.influence.pieces import ConvolutionCall, Gradient, LinearCall, LookupCall, Make, Parts, Piece

Rule = Callable[..., Parts | None]
"""rule(batch size, output, *the call's own arguments); None where the closed form does not apply."""


def _tokens(x: Tensor, batch: int, trailing: int = 1) -> Tensor | None:
    """(N·k, ..., *trailing axes) -> (N, T, *trailing axes), or None if axis 0 cannot hold the batch."""
    if x.ndim <= trailing or x.shape[0] % batch:
        return None
    return x.reshape(batch, -1, *x.shape[x.ndim - trailing :])


def _if_there(parameter: Tensor | None, make: Make) -> Parts:
    return [] if parameter is None else [(parameter, make)]


def linear(
    batch: int, output: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Parts | None:
    """Weight (d, p): sum over tokens of gradient times input; bias: sum of the gradients."""
    if weight.ndim != 2 or (a := _tokens(input, batch)) is None:
        return None

    def of_weight(delta: Tensor) -> Piece:
        return LinearCall(a, delta.reshape(batch, -1, delta.shape[-1]))

    def of_bias(delta: Tensor) -> Piece:
        return Gradient(delta.reshape(batch, -1, delta.shape[-1]).sum(1))

    return [(weight, of_weight), *_if_there(bias, of_bias)]


def matmul(batch: int, output: Tensor, input: Tensor, other: Tensor) -> Parts | None:
    """`input @ other` with a matrix parameter (p, d) on the right."""
    if other.ndim != 2 or (a := _tokens(input, batch)) is None:
        return None
    # The gradient is the transpose of a linear layer's: laid out (p, d) as the parameter is.
    return [(other, lambda delta: LinearCall(delta.reshape(batch, -1, delta.shape[-1]), a))]


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    """An option of a one- or two-dimensional convolution as (rows, columns)."""
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])


def _same_padding(kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int, int, int]:
    """Padding "same" as `F.pad` takes it: the extra one of an even kernel goes after."""
    rows, columns = (d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
    return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2


def _convolution(
    batch: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int] | str,
    dilation: tuple[int, int],
    groups: int,
) -> Parts | None:
    if input.shape[0] != batch:
        return None
    kernel = (weight.shape[2], weight.shape[3])
    if padding == "same":
        input, padding = F.pad(input, _same_padding(kernel, dilation)), (0, 0)
    elif isinstance(padding, str):
        padding = (0, 0)
    pads = padding

    def of_weight(delta: Tensor) -> Piece:
        delta = delta.reshape(batch, delta.shape[1], -1 if delta.ndim == 4 else 1, delta.shape[-1])
        return ConvolutionCall(input, delta, kernel, stride, pads, dilation, groups)

    return [(weight, of_weight), *_if_there(bias, lambda delta: Gradient(delta.flatten(2).sum(2)))]


def conv2d(
    batch: int,
    output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Parts | None:
    """Weight (D, C / groups, kh, kw) of a two-dimensional convolution and its bias (D,)."""
    if input.ndim != 4:
        return None
    pads = padding if isinstance(padding, str) else _pair(padding)
    return _convolution(batch, input, weight, bias, _pair(stride), pads, _pair(dilation), groups)


def conv1d(
    batch: int,
    output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Parts | None:
    """A one-dimensional convolution is a two-dimensional one over a single row."""
    if input.ndim != 3:
        return None
    pads = padding if isinstance(padding, str) else (0, _pair(padding)[1])
    row, step, reach = input.unsqueeze(2), (1, _pair(stride)[1]), (1, _pair(dilation)[1])
    parts = _convolution(batch, row, weight.unsqueeze(2), bias, step, pads, reach, groups)
    return None if parts is None else [(weight, parts[0][1]), *parts[1:]]


def batch_norm(
    batch: int,
    output: Tensor,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Parts | None:
    """Affine parameters (C,) of a batch norm by running statistics; no answer for batch statistics."""
    if training or running_mean is None or running_var is None or input.ndim < 2:
        return None
    mean, variance = running_mean, running_var
    if input.ndim == 2 and input.shape[0] % batch == 0:
        return _affine(batch, lambda: F.batch_norm(input, mean, variance, eps=eps), weight, bias)
    if input.shape[0] != batch:
        return None

    def of_weight(delta: Tensor) -> Piece:
        if input.ndim == 4 and not input.is_contiguous():
            # Channels last: the folding below would transpose both arrays first.
            def spread(rows: slice) -> Tensor:
                return (input[rows] - mean[:, None, None]).mul_(delta[rows]).sum((2, 3))

            whole = in_chunks(batch, input[0].numel(), input.device, spread)
            return Gradient(whole * (variance + eps).rsqrt())
        # The library's fused backward, with the samples laid side by side as channels: one pass over the
        # arrays, and no cancellation where a channel's mean is large against its spread.
        folded = (1, batch * input.shape[1], *input.shape[2:])
        _, gradient, _ = torch.ops.aten.native_batch_norm_backward(
            delta.reshape(folded).contiguous(),
            input.reshape(folded),
            torch.ones_like(mean).repeat(batch),
            mean.repeat(batch),
            variance.repeat(batch),
            None,
            None,
            False,
            eps,
            [False, True, False],
        )
        return Gradient(gradient.view(batch, -1))

    def of_bias(delta: Tensor) -> Piece:
        return Gradient(delta.flatten(2).sum(2))

    return _if_there(weight, of_weight) + _if_there(bias, of_bias)


def _affine(
    batch: int, normalised: Callable[[], Tensor], weight: Tensor | None, bias: Tensor | None
) -> Parts:
    """Scale and shift over the trailing axes: weight · x̂ + bias."""

    def over_tokens(gradient: Tensor, parameter: Tensor) -> Piece:
        return Gradient(gradient.reshape(batch, -1, *parameter.shape).sum(1))

    parts: Parts = []
    if weight is not None:
        parts.append((weight, lambda delta: over_tokens(delta * normalised(), weight)))
    if bias is not None:
        parts.append((bias, lambda delta: over_tokens(delta, bias)))
    return parts


def layer_norm(
    batch: int,
    output: Tensor,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Parts | None:
    """Affine parameters of a layer norm: sums over the tokens."""
    if _tokens(input, batch, len(normalized_shape)) is None:
        return None
    return _affine(batch, lambda: F.layer_norm(input, normalized_shape, eps=eps), weight, bias)


def rms_norm(
    batch: int,
    output: Tensor,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Parts | None:
    """Scale of a root-mean-square norm."""
    if _tokens(input, batch, len(normalized_shape)) is None:
        return None
    return _affine(batch, lambda: F.rms_norm(input, normalized_shape, eps=eps), weight, None)


def group_norm(
    batch: int,
    output: Tensor,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Parts | None:
    """Affine parameters (C,) of a group norm: sums over the positions."""
    if input.shape[0] != batch:
        return None

    def of_weight(delta: Tensor) -> Piece:
        product = delta * F.group_norm(input, num_groups, eps=eps)
        return Gradient(product.reshape(batch, product.shape[1], -1).sum(2))

    def of_bias(delta: Tensor) -> Piece:
        return Gradient(delta.reshape(batch, delta.shape[1], -1).sum(2))

    return _if_there(weight, of_weight) + _if_there(bias, of_bias)


def embedding(
    batch: int,
    output: Tensor,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Parts | None:
    """Table (V, D) looked up by whole numbers; renormalised or frequency-scaled tables get no answer."""
    if max_norm is not None or scale_grad_by_freq or input.ndim == 0 or input.shape[0] % batch:
        return None
    index = input.reshape(batch, -1)
    padding = None if padding_idx is None else padding_idx % weight.shape[0]

    def of_table(delta: Tensor) -> Piece:
        delta = delta.reshape(batch, -1, delta.shape[-1])
        if padding is not None:
            delta = delta.masked_fill((index == padding).unsqueeze(-1), 0.0)
        return LookupCall(index, delta)

    return [(weight, of_table)]


RULES: dict[Any, Rule] = {
    F.linear: linear,
    torch.matmul: matmul,
    torch.Tensor.matmul: matmul,
    torch.Tensor.__matmul__: matmul,
    torch.conv1d: conv1d,
    torch.conv2d: conv2d,
    F.batch_norm: batch_norm,
    F.layer_norm: layer_norm,
    F.rms_norm: rms_norm,
    F.group_norm: group_norm,
    F.embedding: embedding,
    torch.mul: multiply,
    torch.Tensor.mul: multiply,
    torch.Tensor.__mul__: multiply,
    torch.Tensor.__rmul__: multiply,
    torch.add: add,
    torch.Tensor.add: add,
    torch.Tensor.__add__: add,
    torch.Tensor.__radd__: add,
    torch.addcmul: addcmul,
    torch.Tensor.expand: expand,
}

ORDER_KEEPING_VIEWS = frozenset(
    {
        torch.Tensor.reshape,
        torch.reshape,
        torch.Tensor.view,
        torch.Tensor.unsqueeze,
        torch.unsqueeze,
        torch.Tensor.squeeze,
        torch.squeeze,
        torch.Tensor.flatten,
        torch.flatten,
        torch.Tensor.contiguous,
    }
)
"""Same elements, same order: the flat gradient of the view is that of the parameter."""

REORDERING_VIEWS = frozenset(
    {
        torch.Tensor.permute,
        torch.permute,
        torch.Tensor.transpose,
        torch.transpose,
        torch.Tensor.t,
        torch.t,
        inspect.getattr_static(torch.Tensor, "T").__get__,
        inspect.getattr_static(torch.Tensor, "mT").__get__,
    }
)
"""The same elements in another order: the same norm, but not to be added to other uses element by element."""
