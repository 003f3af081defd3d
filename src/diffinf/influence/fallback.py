"""Exact per-sample gradients of chosen parameters, for what no rule covers: slow, right for any model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffinf.influence.losses import PerSampleLoss

# Elements that the per-sample gradients may take at once, and the most samples that one pass vectorises over.
_WORKSPACE = 2**24
_SAMPLES = 64


def vectorised_norms(
    model: nn.Module, names: Sequence[str], images: Tensor, labels: Tensor, loss: PerSampleLoss
) -> dict[str, Tensor]:
    """Squared gradient norm of each named parameter, {name: (N,)}, by `torch.func`: vmap over grad."""
    parameters = {name: p.detach() for name, p in model.named_parameters() if name in set(names)}

    def sample_loss(chosen: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        output = torch.func.functional_call(model, chosen, (image.unsqueeze(0),))
        return loss(output, label.unsqueeze(0)).sum()

    def norms(image: Tensor, label: Tensor) -> dict[str, Tensor]:
        gradients = torch.func.grad(sample_loss)(parameters, image, label)
        return {name: gradient.square().sum() for name, gradient in gradients.items()}

    elements = sum(p.numel() for p in parameters.values())
    chunk = max(1, min(_SAMPLES, _WORKSPACE // max(elements, 1)))
    found: dict[str, Tensor] = torch.func.vmap(norms, chunk_size=chunk)(images, labels)
    return {name: value.detach() for name, value in found.items()}


def looped_norms(
    model: nn.Module, names: Sequence[str], images: Tensor, labels: Tensor, loss: PerSampleLoss
) -> dict[str, Tensor]:
    """The same, one sample after the other through autograd: {name: (N,)}. Sets and clears gradient flags."""
    chosen = {name: p for name, p in model.named_parameters() if name in set(names)}
    rows: list[list[Tensor]] = []
    for p in chosen.values():
        p.requires_grad_(True)
    try:
        for i in range(len(images)):
            # Twice the sample, as a batch of two: PyTorch's backward of a batch norm in eval mode is wrong for
            # a batch of one whose gradient arrives with its channels last (seen in 2.15 on CPUs).
            value = loss(model(images[[i, i]]), labels[[i, i]])[0]
            gradients: Sequence[Tensor | None] = [None] * len(chosen)
            if value.requires_grad:
                gradients = torch.autograd.grad(value, list(chosen.values()), allow_unused=True)
            rows.append([value.new_zeros(()) if g is None else g.square().sum() for g in gradients])
    finally:
        for p in chosen.values():
            p.requires_grad_(False)
    return {name: torch.stack([row[i] for row in rows]).detach() for i, name in enumerate(chosen)}
