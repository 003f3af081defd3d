"""The objective of an edit in code space: what the code is moved towards and what holds it back."""

from __future__ import annotations

import math
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


@dataclass(frozen=True)
class MovedCodes:
    """What `optimise_codes` made of B codes.

    Attributes:
        code: normalised codes (B, D) where they came to rest.
        weights: of each term in the objective.
        before: the unweighted terms at the start, (B,) each.
        after: the same of `code`.
    """

    code: Tensor
    weights: dict[str, float]
    before: dict[str, Tensor]
    after: dict[str, Tensor]

    def summary(self) -> dict[str, dict[str, float]]:
        """Return for each term its "weight" and its mean "before" and "after"."""
        return {
            name: {
                "weight": self.weights[name],
                "before": float(self.before[name].mean()),
                "after": float(self.after[name].mean()),
            }
            for name in self.before
        }


def objective_terms(
    model: Autoencoder,
    surrogate: Surrogate | None,
    prior: CodePrior,
    code: Tensor,
    start: Tensor,
    labels: Tensor,
    identity_head: ReadIdentity | None = None,
) -> dict[str, Tensor]:
    """Return each term of the edit's objective, (B,) each, unweighted.

    Args:
        model: its attribute and identity heads judge the code.
        surrogate: predicts high influence; without one there is no such term.
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
    terms = {"label": F.cross_entropy(logits, labels, reduction="none")}
    if surrogate is not None:
        # -log(1 - P(high influence)): its gradient does not vanish where the surrogate is sure.
        terms["influence"] = F.softplus(surrogate(code, labels))
    return terms | {
        "identity": 1 - (identity * identity_start).sum(1),
        "proximity": (code - start).square().mean(1),
        "realism": prior.energy(code, labels),
    }


def optimise_codes(
    model: Autoencoder,
    surrogate: Surrogate | None,
    prior: CodePrior,
    start: Tensor,
    labels: Tensor,
    config: RepairConfig,
    *,
    identity_known: bool,
    identity_head: ReadIdentity | None = None,
) -> MovedCodes:
    """Move normalised codes (B, D) until they agree with `labels`; the denoiser is not touched.

    Each code stops where it has arrived (`code_stop` of the settings), at the latest after `code_steps`.
    `identity_known` says whether there is a head that tells persons apart: `identity_head`, where it is given, else the
    autoencoder's own. Without one the identity term does not count.
    """
    weights = {
        "label": 1.0,
        "influence": config.influence_weight,
        "identity": config.identity_weight if identity_known else 0.0,
        "proximity": config.proximity_weight,
        "realism": config.realism_weight,
    }

    def terms_of(code: Tensor) -> dict[str, Tensor]:
        return objective_terms(model, surrogate, prior, code, start, labels, identity_head)

    code = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([code], lr=config.code_learning_rate)
    moving = torch.ones(len(start), dtype=torch.bool, device=start.device)
    for _ in range(config.code_steps):
        terms = terms_of(code)
        moving &= ~_arrived(terms, config.code_stop)
        if not moving.any():
            break
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        resting = code.detach()[~moving].clone()
        optimizer.step()
        with torch.no_grad():
            code[~moving] = resting  # Adam's momentum would carry them on
    with torch.no_grad():
        return MovedCodes(code.detach(), weights, terms_of(start), terms_of(code))


def _arrived(terms: dict[str, Tensor], probability: float) -> Tensor:
    """Return bool (B,): where the label is read with `probability` and high influence is less likely than not."""
    arrived = terms["label"] <= -math.log(probability)
    return arrived & (terms["influence"] < math.log(2)) if "influence" in terms else arrived
