"""The surrogate: a light network that predicts from code and label whether a sample is of high influence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sklearn.metrics import brier_score_loss, roc_auc_score
from torch import Tensor, nn

from diffinf.training.loop import batch_indices, seeded, step_generator


class Surrogate(nn.Module):
    """g(z, y): logit of P(high influence | semantic code, label), differentiable in the code (arXiv 2603.06399)."""

    def __init__(self, code_size: int, num_classes: int, width: int = 64) -> None:
        """Build an untrained surrogate."""
        super().__init__()
        self.num_classes = num_classes
        self.layers = nn.Sequential(
            nn.Linear(code_size + num_classes, width),
            nn.SiLU(),
            nn.Dropout(0.2),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 1),
        )

    def forward(self, code: Tensor, labels: Tensor) -> Tensor:
        """Return logits (B,) of normalised codes (B, D) and labels (B,)."""
        joined = torch.cat([code, F.one_hot(labels, self.num_classes).float()], dim=1)
        logits: Tensor = self.layers(joined)[:, 0]
        return logits


@dataclass(frozen=True)
class SurrogateMetrics:
    """How well the surrogate predicts the flags of samples it was not trained on.

    Attributes:
        auroc: area under the ROC curve; None when the held-out half has no flag or nothing but flags.
        brier: mean squared error of the probability after undoing the class balance.
        bins: (predicted, observed, n) by tenth of predicted probability: the calibration curve.
        n: held-out samples.
    """

    auroc: float | None
    brier: float
    bins: list[tuple[float, float, int]]
    n: int


def train_surrogate(
    codes: Tensor, labels: Tensor, flagged: Tensor, *, num_classes: int, steps: int, seed: int
) -> tuple[Surrogate, SurrogateMetrics]:
    """Train on one random half of the samples and measure on the other.

    Args:
        codes: normalised semantic codes (N, D).
        labels: class indices (N,).
        flagged: bool (N,).
        num_classes: number of classes K.
        steps: optimisation steps of 128 samples.
        seed: fixes the halves, the start and the batches.
    """
    order = torch.randperm(len(codes), generator=step_generator(seed, "surrogate halves", 0))
    training, held_out = order[: len(order) // 2], order[len(order) // 2 :]
    with seeded(seed):  # dropout draws from the global generator
        model = Surrogate(codes.shape[1], num_classes)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
        rate = flagged[training].float().mean().clamp(1e-3, 1 - 1e-3)
        balance = (1 - rate) / rate  # both kinds weigh the same
        for step in range(steps):
            rows = training[batch_indices(len(training), 128, seed, step)]
            logits = model(codes[rows], labels[rows])
            loss = F.binary_cross_entropy_with_logits(logits, flagged[rows].float(), pos_weight=balance)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    model.eval().requires_grad_(False)
    predicted = torch.sigmoid(model(codes[held_out], labels[held_out]) - balance.log())
    return model, _metrics(predicted, flagged[held_out])


def _metrics(predicted: Tensor, flagged: Tensor) -> SurrogateMetrics:
    truth, shares = flagged.numpy(), predicted.double().numpy()
    both = 0 < truth.sum() < len(truth)
    tenth = (predicted * 10).long().clamp(0, 9)
    bins = [
        (
            float(predicted[tenth == k].mean()),
            float(flagged[tenth == k].float().mean()),
            int((tenth == k).sum()),
        )
        for k in range(10)
        if (tenth == k).any()
    ]
    auroc = float(roc_auc_score(truth, shares)) if both else None
    return SurrogateMetrics(auroc, float(brier_score_loss(truth, shares)), bins, len(truth))
