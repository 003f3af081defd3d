"""Squared norms of per-sample gradients from the two ends of a call: what went in, what came back.

A weight that meets T positions of a sample has the gradient Σ_t δ_t ⊗ a_t (a: activation in, δ: gradient
out). Its squared norm is found without building it, as Σ_{t,t'} ⟨a_t, a_t'⟩⟨δ_t, δ_t'⟩ (Gram form), or by
building it for a few samples at a time (direct form); whichever is cheaper (Goodfellow, arXiv 1510.01799;
Rochette et al., arXiv 1912.06015; Li et al., arXiv 2110.05679).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Elements of workspace allowed at once: small enough to stay near the caches of a CPU, large enough to fill
# a GPU.
_WORKSPACE = {"cpu": 2**22, "cuda": 2**27}
# What moving one element through memory costs, in multiply-adds of a matrix product (measured on x86 with
# oneDNN).
_TOUCH = 12
_WRITE_PER_SAMPLE = 80
# How much faster the library's convolutions multiply than its batched matrix products.
_CONVOLUTION_GAIN = 2


@dataclass(frozen=True)
class Gradient:
    """A per-sample gradient that is small enough to be held: (N, ...)."""

    value: Tensor

    def squared_norm(self) -> Tensor:
        """(N,)."""
        return _wide(self.value).flatten(1).square().sum(1)


@dataclass(frozen=True)
class LookupCall:
    """Rows of a table looked up by `index` (N, T), with gradients `delta` (N, T, D) at the rows."""

    index: Tensor
    delta: Tensor


@dataclass(frozen=True)
class LinearCall:
    """A matrix (d, p) applied to T tokens: `a` (N, T, p), `delta` (N, T, d)."""

    a: Tensor
    delta: Tensor

    @property
    def batch(self) -> int:
        """N."""
        return self.a.shape[0]

    @property
    def positions(self) -> int:
        """T."""
        return self.a.shape[1]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(groups, p, d)."""
        return 1, self.a.shape[2], self.delta.shape[2]

    def factors(self, rows: slice) -> tuple[Tensor, Tensor]:
        """(n, 1, p, T) and (n, 1, d, T)."""
        return self.a[rows].transpose(1, 2).unsqueeze(1), self.delta[rows].transpose(1, 2).unsqueeze(1)

    def gradient(self, rows: slice) -> Tensor:
        """(n, d, p)."""
        return torch.bmm(self.delta[rows].transpose(1, 2), self.a[rows])


@dataclass(frozen=True)
class ConvolutionCall:
    """A convolution's `x` (N, C, H, W) and `delta` (N, D, H', W')."""

    x: Tensor
    delta: Tensor
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def batch(self) -> int:
        """N."""
        return self.x.shape[0]

    @property
    def positions(self) -> int:
        """T = H'·W'."""
        return self.delta.shape[2] * self.delta.shape[3]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(groups, p, d): inputs (channels by kernel) and outputs of one group."""
        p = self.x.shape[1] // self.groups * self.kernel[0] * self.kernel[1]
        return self.groups, p, self.delta.shape[1] // self.groups

    def factors(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Unfolded input (n, groups, p, T) and gradient (n, groups, d, T)."""
        x, groups = self.x[rows], self.groups
        if self.kernel == (1, 1) and self.padding == (0, 0):
            a = x[:, :, :: self.stride[0], :: self.stride[1]].reshape(x.shape[0], groups, -1, self.positions)
        else:
            a = F.unfold(x, self.kernel, self.dilation, self.padding, self.stride)
            a = a.view(x.shape[0], groups, -1, self.positions)
        return a, self.delta[rows].reshape(x.shape[0], groups, -1, self.positions)

    def gradient(self, rows: slice) -> Tensor:
        """(n, D, p): the library's own weight gradient, with the samples as groups of one convolution."""
        groups, p, d = self.shape
        x, delta = self.x[rows], self.delta[rows]
        n = x.shape[0]
        if x.is_cuda and p * d > 64:
            # Grouped convolutions with many groups are slow there unless they are nearly depthwise.
            a, g = self.factors(rows)
            return torch.matmul(g, a.transpose(-1, -2)).reshape(n, groups * d, p)
        like = x.new_empty(1).expand(n * groups * d, p // (self.kernel[0] * self.kernel[1]), *self.kernel)
        gradient: Tensor = torch.ops.aten.convolution_backward(
            delta.reshape(1, -1, *delta.shape[2:]),
            x.reshape(1, -1, *x.shape[2:]),
            like,
            None,
            list(self.stride),
            list(self.padding),
            list(self.dilation),
            False,
            [0, 0],
            n * groups,
            [False, True, False],
        )[1]
        return gradient.view(n, groups * d, p)

    def pixel_norm(self, rows: slice) -> Tensor:
        """Gram form without unfolding, (n,): ⟨a_t, a_t'⟩ is a sum of products of pixels."""
        n, groups = self.x[rows].shape[0], self.groups
        (ph, pw), (height, width) = self.padding, self.delta.shape[2:]
        x = F.pad(self.x[rows], (pw, pw, ph, ph))
        size = (x.shape[2], x.shape[3])
        x = x.reshape(n * groups, -1, size[0] * size[1])
        gram = torch.bmm(x.transpose(1, 2), x).view(n * groups, *size, *size)
        gram = _sum_of_shifts(gram, 1, self.kernel[0], self.dilation[0], self.stride[0], height)
        gram = _sum_of_shifts(gram, 2, self.kernel[1], self.dilation[1], self.stride[1], width)
        delta = self.delta[rows].reshape(n * groups, -1, self.positions)
        other = torch.bmm(delta.transpose(1, 2), delta)
        return _dot(gram.reshape(n, -1), other.view(n, -1))


def _sum_of_shifts(gram: Tensor, axis: int, kernel: int, dilation: int, stride: int, length: int) -> Tensor:
    """Σ_k gram[.. s·i + e·k .., .. s·i' + e·k ..] over one spatial axis and its partner (s: stride, e:
    dilation)."""
    total: Tensor | None = None
    for k in range(kernel):
        at = slice(k * dilation, k * dilation + (length - 1) * stride + 1, stride)
        index = [slice(None)] * 5
        index[axis] = index[axis + 2] = at
        part = gram[tuple(index)]
        if kernel == 1:
            return part
        total = part.clone() if total is None else total.add_(part)
    assert total is not None
    return total


Call = LinearCall | ConvolutionCall
Piece = Gradient | LookupCall | LinearCall | ConvolutionCall


def can_join(pieces: Sequence[Piece]) -> bool:
    """Whether these uses of one parameter have gradients that are laid out alike, so that they add up."""
    first = pieces[0]
    if isinstance(first, Gradient):
        return all(isinstance(p, Gradient) and p.value[0].numel() == first.value[0].numel() for p in pieces)
    if isinstance(first, LookupCall):
        return all(isinstance(p, LookupCall) for p in pieces)
    if isinstance(first, LinearCall):
        return all(isinstance(p, LinearCall) and p.shape == first.shape for p in pieces)
    return all(
        isinstance(p, ConvolutionCall) and p.shape == first.shape and p.kernel == first.kernel for p in pieces
    )


def squared_norm(pieces: Sequence[Piece]) -> Tensor:
    """Squared norm (N,) of the sum of the pieces' gradients; the pieces satisfy `can_join`.

    Several calls of one module are one call with their positions side by side.
    """
    first = pieces[0]
    if isinstance(first, Gradient):
        if len(pieces) == 1:
            return first.squared_norm()
        total = torch.stack([p.value.flatten(1) for p in pieces if isinstance(p, Gradient)]).sum(0)
        return Gradient(total).squared_norm()
    if isinstance(first, LookupCall):
        lookups = [p for p in pieces if isinstance(p, LookupCall)]
        index = torch.cat([p.index for p in lookups], 1)
        return _lookup_norm(index, torch.cat([_wide(p.delta) for p in lookups], 1))
    return _outer_norm([p for p in pieces if isinstance(p, LinearCall | ConvolutionCall)])


def _wide(x: Tensor) -> Tensor:
    """Half precision is summed in float32: a squared norm leaves its range easily."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Row by row (n, m), (n, m) -> (n,). Overwrites `a`."""
    return a.mul_(b).sum(1)


def _in_chunks(batch: int, per_sample: int, device: torch.device, norm: Callable[[slice], Tensor]) -> Tensor:
    step = max(1, _WORKSPACE.get(device.type, _WORKSPACE["cuda"]) // max(per_sample, 1))
    parts = [norm(slice(i, min(i + step, batch))) for i in range(0, batch, step)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _lookup_norm(index: Tensor, delta: Tensor) -> Tensor:
    def norm(rows: slice) -> Tensor:
        same = index[rows].unsqueeze(1) == index[rows].unsqueeze(2)
        gram = torch.bmm(delta[rows], delta[rows].transpose(1, 2))
        return (gram * same).sum((1, 2))

    return _in_chunks(index.shape[0], index.shape[1] ** 2 * 3, delta.device, norm)


def _outer_norm(calls: Sequence[Call]) -> Tensor:
    """The cheapest of the forms, by a count of multiply-adds and memory traffic."""
    groups, p, d = calls[0].shape
    positions = sum(call.positions for call in calls)
    device, batch = calls[0].delta.device, calls[0].batch
    calls = [_widened(call) for call in calls]
    first = calls[0]

    if positions == 1 and groups == 1:
        a, g = first.factors(slice(None))
        return a.flatten(1).square().sum(1) * g.flatten(1).square().sum(1)

    unfolds = isinstance(first, ConvolutionCall) and first.kernel != (1, 1)
    gram_cost = groups * (positions**2 * (p + d + _TOUCH) + positions * p * (_TOUCH if unfolds else 1))
    direct_cost = groups * p * d * (positions + _WRITE_PER_SAMPLE)
    if isinstance(first, ConvolutionCall):
        direct_cost //= _CONVOLUTION_GAIN
    if isinstance(first, ConvolutionCall) and len(calls) == 1 and unfolds:
        pixel_cost, pixel_space = _pixel_cost(first)
        if pixel_cost < min(gram_cost, direct_cost):
            return _in_chunks(batch, pixel_space, device, first.pixel_norm).clamp_min(0)
    if gram_cost <= direct_cost:
        space = groups * positions * (p + d + 2 * positions)
        return _in_chunks(batch, space, device, lambda rows: _gram_norm(calls, rows)).clamp_min(0)
    return _in_chunks(batch, groups * p * d * 2, device, lambda rows: _direct_norm(calls, rows))


def _widened(call: Call) -> Call:
    if call.delta.dtype not in (torch.float16, torch.bfloat16):
        return call
    if isinstance(call, LinearCall):
        return LinearCall(call.a.float(), call.delta.float())
    return ConvolutionCall(
        call.x.float(), call.delta.float(), call.kernel, call.stride, call.padding, call.dilation, call.groups
    )


def _pixel_cost(call: ConvolutionCall) -> tuple[int, int]:
    """Multiply-adds and elements of workspace of `pixel_norm`, a sample."""
    groups, _, d = call.shape
    height, width = call.x.shape[2] + 2 * call.padding[0], call.x.shape[3] + 2 * call.padding[1]
    positions, pixels = call.positions, height * width
    half = (call.delta.shape[2] * width) ** 2
    products = pixels**2 * (call.x.shape[1] // groups) + positions**2 * d
    traffic = call.kernel[0] * half + (call.kernel[1] + 1) * positions**2
    return groups * (products + _TOUCH * traffic), groups * (pixels**2 + half + 2 * positions**2)


def _gram_norm(calls: Sequence[Call], rows: slice) -> Tensor:
    factors = [call.factors(rows) for call in calls]
    a = factors[0][0] if len(calls) == 1 else torch.cat([f[0] for f in factors], -1)
    g = factors[0][1] if len(calls) == 1 else torch.cat([f[1] for f in factors], -1)
    n, t = a.shape[0], a.shape[-1]
    a, g = a.reshape(-1, a.shape[-2], t), g.reshape(-1, g.shape[-2], t)
    inputs, outputs = torch.bmm(a.transpose(1, 2), a), torch.bmm(g.transpose(1, 2), g)
    return _dot(inputs.view(n, -1), outputs.view(n, -1))


def _direct_norm(calls: Sequence[Call], rows: slice) -> Tensor:
    total = calls[0].gradient(rows)
    for call in calls[1:]:
        total = total + call.gradient(rows)
    norm: Tensor = torch.linalg.vector_norm(total.reshape(total.shape[0], -1), dim=1)
    return norm.square()
