"""Squared norms of per-sample gradients that are never all held at once.

A weight that meets T positions of a sample has the gradient Σ_t δ_t ⊗ a_t (a: activation in, δ: gradient
out). Its squared norm is found without building it, as Σ_{t,t'} ⟨a_t, a_t'⟩⟨δ_t, δ_t'⟩ (Gram form, with the
⟨a_t, a_t'⟩ of a convolution from its unfolded input or from products of pixels), or by building it for a few
samples at a time (direct form, by a matrix product or by the library's convolution); whichever is cheapest
(Goodfellow, arXiv 1510.01799; Rochette et al., arXiv 1912.06015; Li et al., arXiv 2110.05679).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffinf.influence.pieces import HALF, Call, ConvolutionCall, Gradient, LinearCall, LookupCall, Piece

# Elements of workspace allowed at once: on a CPU what stays near a core's caches, on a GPU enough to fill it.
_WORKSPACE = {"cpu": 2**19, "cuda": 2**27}
# What moving one element through memory costs, in multiply-adds of a matrix product, what each run of memory
# costs that is copied, and what is added where a run's elements lie apart (measured on x86 with oneDNN and MKL).
_TOUCH = 5
_RUN = 300
_APART = 10
_COPY = 12
# The library's convolutions: how a multiply-add compares, and the price of an element of their result.
_CONVOLUTION = 0.5
_DEPTHWISE = 4.0
_CONVOLUTION_WRITE = 40


def squared_norm(pieces: Sequence[Piece]) -> Tensor:
    """Squared norm (N,) of the sum of the pieces' gradients; the pieces satisfy `can_join`.

    Several calls of one module are one call with their positions side by side.
    """
    first = pieces[0]
    if isinstance(first, Gradient):
        values = [_wide(p.value).flatten(1) for p in pieces if isinstance(p, Gradient)]
        return _squares(values[0] if len(values) == 1 else torch.stack(values).sum(0))
    if isinstance(first, LookupCall):
        lookups = [p for p in pieces if isinstance(p, LookupCall)]
        index = torch.cat([p.index for p in lookups], 1)
        return _lookup_norm(index, torch.cat([_wide(p.delta) for p in lookups], 1))
    return _outer_norm([p.widened() for p in pieces if isinstance(p, LinearCall | ConvolutionCall)])


def _wide(x: Tensor) -> Tensor:
    """Half precision is summed in float32: a squared norm leaves its range easily."""
    return x.float() if x.dtype in HALF else x


def _squares(x: Tensor) -> Tensor:
    """Squared norm of each row (n, m) -> (n,), in one pass."""
    squares: Tensor = torch.linalg.vecdot(x, x)
    return squares


def in_chunks(batch: int, per_sample: int, device: torch.device, norm: Callable[[slice], Tensor]) -> Tensor:
    """Put `norm(rows)` of as many samples at a time as the workspace holds together: (N, ...)."""
    space = _WORKSPACE.get(device.type, _WORKSPACE["cuda"])
    if device.type == "cpu":
        space *= torch.get_num_threads()
    step = max(1, space // max(per_sample, 1))
    parts = [norm(slice(i, min(i + step, batch))) for i in range(0, batch, step)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _lookup_norm(index: Tensor, delta: Tensor) -> Tensor:
    def norm(rows: slice) -> Tensor:
        same = index[rows].unsqueeze(1) == index[rows].unsqueeze(2)
        gram = torch.bmm(delta[rows], delta[rows].transpose(1, 2))
        return (gram * same).sum((1, 2))

    return in_chunks(index.shape[0], index.shape[1] ** 2 * 3, delta.device, norm)


def _outer_norm(calls: Sequence[Call]) -> Tensor:
    """The cheapest of the forms, by a count of multiply-adds and memory traffic."""
    groups, _, _ = calls[0].shape
    if sum(call.positions for call in calls) == 1 and groups == 1:
        a, g = calls[0].factors(slice(None))
        return _squares(a.flatten(1)) * _squares(g.flatten(1))
    form = min(forms := _forms(calls), key=lambda name: forms[name][0])
    found = in_chunks(calls[0].batch, forms[form][1], calls[0].delta.device, lambda r: NORMS[form](calls, r))
    return found if form in ("product", "convolution") else found.clamp_min(0)


def _forms(calls: Sequence[Call]) -> dict[str, tuple[float, int]]:
    """Form -> (cost in multiply-adds, elements of workspace), a sample."""
    groups, p, d = calls[0].shape
    t = sum(call.positions for call in calls)
    unfolding = sum(_unfolding_cost(call) for call in calls)
    unfolded = groups * t * p if unfolding else 0
    forms = {
        "gram": (unfolding + groups * t**2 * (p + d + _TOUCH), unfolded + 2 * groups * t**2),
        "product": (unfolding + groups * p * d * (t + _TOUCH), unfolded + groups * p * d),
    }
    first = calls[0]
    if isinstance(first, ConvolutionCall):
        # Convolutions of many groups are slow on a GPU unless they are nearly depthwise.
        if p * d <= 64 or (first.delta.device.type == "cpu" and (groups > 1 or not first.is_pointwise)):
            convolutions = [call for call in calls if isinstance(call, ConvolutionCall)]
            forms["convolution"] = _convolution_cost(convolutions)
        if len(calls) == 1 and not first.is_pointwise:
            forms["pixel"] = _pixel_cost(first)
    return forms


def _unfolding_cost(call: Call) -> float:
    if isinstance(call, LinearCall) or call.is_pointwise:
        return 0
    groups, p, _ = call.shape
    apart = _APART if call.gathers else 0
    return groups * call.positions * p * (_TOUCH + _RUN / call.run + apart)


def _convolution_cost(calls: Sequence[ConvolutionCall]) -> tuple[float, int]:
    first = calls[0]
    groups, p, d = first.shape
    if first.x.shape[1] == groups > 1:
        fitting = first.stride == (1, 1) and max(first.kernel) <= 3
        rate = _DEPTHWISE if fitting else 2.5 * _DEPTHWISE + p / 2
    else:  # its kernels work on blocks of eight channels
        rate = _CONVOLUTION * (8 if first.x.shape[1] < 8 else 1)
    # They want the positions last.
    arrays = [x for call in calls for x in (call.x, call.delta)]
    moved = sum(x[0].numel() for x in arrays if not x.is_contiguous())
    cost = groups * p * d * (rate * sum(c.positions for c in calls) + _CONVOLUTION_WRITE) + _COPY * moved
    return cost, 2 * groups * p * d + moved


def _pixel_cost(call: ConvolutionCall) -> tuple[float, int]:
    groups, _, d = call.shape
    height, width = call.x.shape[2] + 2 * call.padding[0], call.x.shape[3] + 2 * call.padding[1]
    positions, pixels = call.positions, height * width
    half = (call.delta.shape[2] * width) ** 2
    products = pixels**2 * (call.x.shape[1] // groups) + positions**2 * d
    traffic = call.kernel[0] * half + (call.kernel[1] + 1) * positions**2
    return groups * (products + _COPY * traffic), groups * (pixels**2 + half + 2 * positions**2)


def _by_sample(norms: Tensor, groups: int) -> Tensor:
    """(n·groups,) -> (n,)."""
    return norms if groups == 1 else norms.view(-1, groups).sum(1)


def _factors(calls: Sequence[Call], rows: slice) -> tuple[Tensor, Tensor]:
    if len(calls) == 1:
        return calls[0].factors(rows)
    inputs, gradients = zip(*(call.factors(rows) for call in calls), strict=True)
    return torch.cat(inputs, 1), torch.cat(gradients, 1)


def _gram_norm(calls: Sequence[Call], rows: slice) -> Tensor:
    a, g = _factors(calls, rows)
    inputs, gradients = torch.bmm(a, a.transpose(1, 2)), torch.bmm(g, g.transpose(1, 2))
    return _by_sample(torch.linalg.vecdot(inputs.flatten(1), gradients.flatten(1)), calls[0].shape[0])


def _pixel_norm(calls: Sequence[Call], rows: slice) -> Tensor:
    (call,) = calls
    assert isinstance(call, ConvolutionCall)
    return _by_sample(torch.linalg.vecdot(*call.pixel_grams(rows)), call.groups)


def _product_norm(calls: Sequence[Call], rows: slice) -> Tensor:
    a, g = _factors(calls, rows)
    return _by_sample(_squares(torch.bmm(a.transpose(1, 2), g).flatten(1)), calls[0].shape[0])


def _convolution_norm(calls: Sequence[Call], rows: slice) -> Tensor:
    gradients = [call.gradient(rows) for call in calls if isinstance(call, ConvolutionCall)]
    return _squares(gradients[0] if len(gradients) == 1 else torch.stack(gradients).sum(0))


NORMS: dict[str, Callable[[Sequence[Call], slice], Tensor]] = {
    "gram": _gram_norm,
    "pixel": _pixel_norm,
    "product": _product_norm,
    "convolution": _convolution_norm,
}
"""The forms; each gives (n,) of the rows."""
