"""Per-sample gradient norms by autograd in double precision, and what is compared with them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffinf.influence.ghost import FallbackWarning, GradientNorms

TOLERANCE = 1e-4


def by_autograd(
    model: nn.Module, images: Tensor, labels: Tensor, loss: Callable[..., Tensor] | None = None
) -> dict[str, Tensor]:
    """Each parameter's squared norms (N,), one sample at a time."""
    loss = loss or (lambda z, y: F.cross_entropy(z, y, reduction="none"))
    parameters = dict(model.named_parameters())
    rows = []
    for i in range(len(images)):
        value = loss(model(images[i : i + 1]), labels[i : i + 1]).sum()
        found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
        rows.append([torch.zeros((), dtype=value.dtype) if g is None else g.square().sum() for g in found])
    return {name: torch.stack([row[i] for row in rows]) for i, name in enumerate(parameters)}


def assert_exact(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    fallback: bool | None = False,
    loss: Callable[..., Tensor] | None = None,
) -> GradientNorms:
    """Every parameter's share and the total agree; the fast way is taken exactly when expected (None:
    either)."""
    model.eval()
    wide = copy.deepcopy(model).double()
    truth = by_autograd(wide, images.double() if images.is_floating_point() else images, labels, loss)
    norms = GradientNorms(model, loss=loss)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        found = norms.breakdown(images, labels)
    total = torch.stack(list(truth.values())).sum(0)
    assert list(found) == list(truth)
    for name, expected in truth.items():
        error = (found[name] - expected).abs()
        assert (error <= TOLERANCE * expected + 1e-6 * total).all(), name
    torch.testing.assert_close(norms(images, labels).double(), total, rtol=TOLERANCE, atol=0)
    assert fallback is None or bool(norms.fallback) == fallback, norms.fallback
    return norms


def data(batch: int, *shape: int, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images and class labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, *shape, generator=generator)
    return images, torch.randint(classes, (batch,), generator=generator)


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and statistic away from its initial 0 or 1, where mistakes hide."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
        for name, buffer in model.named_buffers():
            if "running_mean" in name:
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
            elif "running_var" in name:
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model.eval()


class Pool(nn.Module):
    """Mean over positions, then a linear layer."""

    def __init__(self, width: int, classes: int = 5) -> None:
        super().__init__()
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(2).mean(2))
