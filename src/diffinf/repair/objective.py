"""The objective of an edit in code space: what the code is moved towards and what holds it back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from diffinf.config import RepairConfig
from diffinf.diffusion.interface import Autoencoder
from diffinf.repair.surrogate import Surrogate

ReadIdentity = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class CodePrior:
    """log p(z | y) of normalised codes: a normal distribution a class with a shared covariance.

    Attributes:
        means: (K, D), each sample counting as much as its label is trusted.
        precision: (D, D).
    """

    means: Tensor
    precision: Tensor

    @classmethod
    def fit(cls, codes: Tensor, labels: Tensor, trust: Tensor, num_classes: int) -> Self:
        """Fit to codes (N, D), labels (N,) and P(label right) (N,)."""
        weight = F.one_hot(labels, num_classes).float() * trust[:, None].float()  # (N, K)
        means = weight.T @ codes / weight.sum(0).clamp_min(1e-6)[:, None]
        trusted = trust >= trust.median()
        residual = (codes - means[labels])[trusted]
        covariance = torch.from_numpy(ledoit_wolf(residual.double().numpy())[0])
        return cls(means, torch.linalg.inv(covariance).float())

    def energy(self, codes: Tensor, labels: Tensor) -> Tensor:
        """Return -log p(z | y) up to a constant, a dimension: (B,)."""
        residual = codes - self.means[labels]
        return 0.5 * (residual @ self.precision * residual).sum(1) / codes.shape[1]


def objective_terms(
    model: Autoencoder,
    surrogate: Surrogate,
    prior: CodePrior,
    code: Tensor,
    start: Tensor,
    labels: Tensor,
    identity_head: ReadIdentity | None = None,
) -> dict[str, Tensor]:
    """Return each term of the edit's objective, (B,) each, unweighted.

    Args:
        model: its attribute and identity heads judge the code.
        surrogate: predicts high influence.
        prior: density of the codes.
        code: normalised codes (B, D) being moved.
        start: normalised codes (B, D) of the images as they are.
        labels: assigned labels (B,).
        identity_head: normalised codes (B, D) to unit vectors (B, I), in the place of the autoencoder's own head.
    """
    logits, identity = model.read_code(code)
    _, identity_start = model.read_code(start)
    if identity_head is not None:
        identity, identity_start = identity_head(code), identity_head(start)
    return {
        "label": F.cross_entropy(logits, labels, reduction="none"),
        # -log(1 - P(high influence)): its gradient does not vanish where the surrogate is sure.
        "influence": F.softplus(surrogate(code, labels)),
        "identity": 1 - (identity * identity_start).sum(1),
        "proximity": (code - start).square().mean(1),
        "realism": prior.energy(code, labels),
    }


def optimise_codes(
    model: Autoencoder,
    surrogate: Surrogate,
    prior: CodePrior,
    start: Tensor,
    labels: Tensor,
    config: RepairConfig,
    *,
    identity_known: bool,
    identity_head: ReadIdentity | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Move normalised codes (B, D) until they agree with `labels`; the denoiser is not touched.

    `identity_known` says whether there is a head that tells persons apart: `identity_head`, where it is given, else the
    autoencoder's own. Without one the identity term does not count.

    Returns:
        The edited codes (B, D), and the terms at the end, (B,) each.
    """
    weights = {
        "label": 1.0,
        "influence": config.influence_weight,
        "identity": config.identity_weight if identity_known else 0.0,
        "proximity": config.proximity_weight,
        "realism": config.realism_weight,
    }
    code = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([code], lr=config.code_learning_rate)
    for _ in range(config.code_steps):
        terms = objective_terms(model, surrogate, prior, code, start, labels, identity_head)
        loss = sum((weights[name] * term).sum() for name, term in terms.items())
        optimizer.zero_grad(set_to_none=True)
        assert isinstance(loss, Tensor)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        return code.detach(), objective_terms(model, surrogate, prior, code, start, labels, identity_head)
