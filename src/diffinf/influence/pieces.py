"""What a call leaves behind for its parameter's per-sample gradient: what went in, what came back.

The norms of these pieces, and of several uses of one parameter together, are in `forms.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Gradient:
    """A per-sample gradient that is small enough to be held: (N, ...)."""

    value: Tensor


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

    def widened(self) -> LinearCall:
        """The same, with half precision as float32."""
        return LinearCall(self.a.float(), self.delta.float()) if self.delta.dtype in HALF else self

    def factors(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Input (n, T, p) and gradient (n, T, d)."""
        return self.a[rows], self.delta[rows]


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
        """(groups, p, d): inputs (kernel by channels) and outputs of one group."""
        p = self.x.shape[1] // self.groups * self.kernel[0] * self.kernel[1]
        return self.groups, p, self.delta.shape[1] // self.groups

    @property
    def is_pointwise(self) -> bool:
        """Whether every position sees one pixel, so that nothing has to be unfolded."""
        return self.kernel == (1, 1) and self.padding == (0, 0)

    def widened(self) -> ConvolutionCall:
        """The same, with half precision as float32."""
        if self.delta.dtype not in HALF:
            return self
        return replace(self, x=self.x.float(), delta=self.delta.float())

    def factors(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Unfolded input (n·groups, T, p) and gradient (n·groups, T, d)."""
        x, groups = self.x[rows], self.groups
        delta = _by_position(self.delta[rows], groups)
        if self.is_pointwise:
            return _by_position(x[:, :, :: self.stride[0], :: self.stride[1]], groups), delta
        (ph, pw), (sh, sw), (dh, dw) = self.padding, self.stride, self.dilation
        n, each, out = x.shape[0], x.shape[1] // groups, self.delta.shape[2:]
        if self._row_of_kernel >= out[1]:
            padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, pw, pw, ph, ph)).contiguous()
            row = padded.shape[2] * x.shape[1]
            steps = (padded[0].numel(), each, sh * row, sw * x.shape[1], dh * row, dw * x.shape[1], 1)
            taken = padded.as_strided((n, groups, *out, *self.kernel, each), steps)
            return taken.reshape(n * groups, self.positions, -1), delta
        padded = F.pad(x, (pw, pw, ph, ph)).contiguous()
        row, area = padded.shape[3], padded[0, 0].numel()
        steps = (padded[0].numel(), each * area, dh * row, dw, area, sh * row, sw)
        taken = padded.as_strided((n, groups, *self.kernel, each, *out), steps)
        return taken.reshape(n * groups, -1, self.positions).transpose(1, 2), delta

    @property
    def _row_of_kernel(self) -> int:
        """Elements of a row of the kernel that lie side by side when the channels are last."""
        each = self.x.shape[1] // self.groups
        return each * self.kernel[1] if self.groups == 1 and self.dilation[1] == 1 else each

    @property
    def gathers(self) -> bool:
        """Whether the elements of a run lie apart."""
        return self._row_of_kernel < self.delta.shape[3] and self.stride[1] > 1

    @property
    def run(self) -> int:
        """Elements that unfolding copies at once: a row of the kernel, or a row of the output."""
        return max(self._row_of_kernel, self.delta.shape[3])

    def gradient(self, rows: slice) -> Tensor:
        """(n, D·p): the library's own weight gradient, with the samples as groups of one convolution."""
        groups, p, d = self.shape
        x, delta = self.x[rows], self.delta[rows]
        n = x.shape[0]
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
        return gradient.view(n, -1)

    def pixel_grams(self, rows: slice) -> tuple[Tensor, Tensor]:
        """⟨a_t, a_t'⟩ as a sum of products of pixels, without unfolding, and ⟨δ_t, δ_t'⟩: (n·groups, T·T)."""
        (ph, pw), (height, width) = self.padding, self.delta.shape[2:]
        x = F.pad(self.x[rows].permute(0, 2, 3, 1), (0, 0, pw, pw, ph, ph)).permute(0, 3, 1, 2)
        size = (x.shape[2], x.shape[3])
        x = _by_position(x, self.groups)
        gram = torch.bmm(x, x.transpose(1, 2)).view(-1, *size, *size)
        gram = _sum_of_shifts(gram, 1, self.kernel[0], self.dilation[0], self.stride[0], height)
        gram = _sum_of_shifts(gram, 2, self.kernel[1], self.dilation[1], self.stride[1], width)
        delta = _by_position(self.delta[rows], self.groups)
        other = torch.bmm(delta, delta.transpose(1, 2))
        return gram.flatten(1), other.flatten(1)


def _by_position(y: Tensor, groups: int) -> Tensor:
    """(n, C, H, W) -> (n·groups, H·W, C / groups); no copy where the layout allows."""
    n, channels = y.shape[:2]
    if groups == 1 and y.is_contiguous(memory_format=torch.channels_last):
        return y.permute(0, 2, 3, 1).reshape(n, -1, channels)
    return y.reshape(n * groups, channels // groups, -1).transpose(1, 2)


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
Make = Callable[[Tensor], Piece]
"""Gradient of the summed loss at a call's output -> that call's piece."""
Parts = list[tuple[Tensor, Make]]
"""What a rule answers: parameters of a call, and how the piece of each is made."""


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
