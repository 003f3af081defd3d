"""The gate: an edit replaces its original only if judges that took no part in making it agree.

Checked in this order, the first failure is the reason: round trip, judge, identity, influence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from diffinf.classify.model import load_classifier, predict, to_input
from diffinf.config import RepairConfig
from diffinf.features.dlib_faces import DlibFaces
from diffinf.features.interface import IdentityEmbedder, similarity
from diffinf.features.persons import PersonEmbedder
from diffinf.files import read_json
from diffinf.influence.ghost import Scope, squared_gradient_norms

PASSED = ""
Apply = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class Verdict:
    """What the gate found for B edits.

    Attributes:
        reasons: (B,) "" for an edit that passed, else judge, identity, roundtrip or influence.
        judge: P(label) under the judge, (B,).
        identity: cosine of original and edit, (B,); NaN where identity is not judged, or no face is found any more.
        influence: self-influence of the edit, (B,).
    """

    reasons: list[str]
    judge: Tensor
    identity: Tensor
    influence: Tensor


@dataclass(frozen=True)
class Gate:
    """The judges and their thresholds.

    Attributes:
        judges: one a fold, trained on originals and round trips of the other folds.
        scorers: one a fold of the scoring cross-fit, for the self-influence.
        influence_limits: (K,) largest self-influence of an edit, by class.
        scope: parameters of the self-influence.
        embedder: tells persons apart; None where nothing does. An original in which it finds no face is not judged; an
            edit in which it finds none any more has lost the person.
        identity_threshold: least cosine of original and edit.
        config: the other thresholds.
        device: where the judges are.
        loss: what the scorers were trained by, as `diffinf.influence.losses` calls it.
    """

    judges: list[nn.Module]
    scorers: list[nn.Module]
    influence_limits: Tensor
    scope: Scope
    embedder: IdentityEmbedder | None
    identity_threshold: float
    config: RepairConfig
    device: torch.device
    loss: str = "cross_entropy"

    def __post_init__(self) -> None:
        """Refuse similarities that say nothing about the person."""
        if self.embedder is not None and not self.embedder.judges_identity:
            raise ValueError(f"{self.embedder.name} does not judge identity")

    def check(
        self,
        originals: Tensor,
        edited: Tensor,
        labels: Tensor,
        judge_fold: Tensor,
        score_fold: Tensor,
        roundtrip_error: Tensor,
    ) -> Verdict:
        """Judge edits.

        Args:
            originals: uint8 (B, C, H, W).
            edited: uint8 (B, C, H, W).
            labels: assigned labels (B,).
            judge_fold: (B,) which judge was not trained on the sample.
            score_fold: (B,) which scorer was not trained on it.
            roundtrip_error: mean absolute error in [-1, 1], (B,).
        """
        shares = by_fold(self.judges, judge_fold, lambda model, rows: self._shares(model, edited[rows]))
        own = shares.gather(1, labels[:, None])[:, 0]
        others = shares.scatter(1, labels[:, None], -1.0).max(1).values
        influence = by_fold(
            self.scorers, score_fold, lambda model, rows: self.influence_of(model, edited[rows], labels[rows])
        )
        identity = torch.full((len(edited),), float("nan"))
        lost = torch.zeros(len(edited), dtype=torch.bool)
        if self.embedder is not None:
            alike = similarity(self.embedder, originals, edited)
            identity, lost = alike.cosine, alike.before & ~alike.after
        failed = {
            "roundtrip": roundtrip_error > self.config.roundtrip_limit,
            "judge": own - others <= self.config.judge_margin,
            "identity": lost | (identity < self.identity_threshold),  # False where it is NaN
            "influence": influence > self.influence_limits[labels],
        }
        reasons = [
            next((reason for reason, fails in failed.items() if fails[row]), PASSED)
            for row in range(len(edited))
        ]
        return Verdict(reasons, own, identity, influence)

    def _shares(self, model: nn.Module, images: Tensor) -> Tensor:
        return predict(model, images, device=self.device)[1].softmax(1)

    def influence_of(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return the squared gradient norms (B,) of uint8 images (B, C, H, W) under one model, on the CPU."""
        parts = [
            squared_gradient_norms(
                model,
                to_input(part, self.device),
                part_labels.to(self.device),
                scope=self.scope,
                loss=self.loss,
            ).cpu()
            for part, part_labels in zip(torch.split(images, 256), torch.split(labels, 256), strict=True)
        ]
        return torch.cat(parts).float()


def load_gate(directory: Path, scorers: Path, config: RepairConfig, device: torch.device) -> Gate:
    """Return the gate of a repair.

    Args:
        directory: has gate.json, judge/fold-0, ... and, where persons judge identity, identity/.
        scorers: the scoring cross-fit: fold-0, ...
        config: the thresholds that are settings.
        device: where to judge.
    """
    found = read_json(directory / "gate.json")
    identity = None
    if found["identity_threshold"] is not None:
        identity = identity_embedder(found["identity"]["judge"], directory / "identity", device)
    return Gate(
        judges=_fold_models(directory / "judge", device),
        scorers=_fold_models(scorers, device),
        influence_limits=torch.tensor([math.inf if x is None else x for x in found["influence_limits"]]),
        scope=found["scope"],
        embedder=identity,
        identity_threshold=found["identity_threshold"] or 0.0,
        config=config,
        device=device,
        loss=found.get("loss", "cross_entropy"),
    )


def _fold_models(directory: Path, device: torch.device) -> list[nn.Module]:
    folders = sorted(directory.glob("fold-*"), key=lambda folder: int(folder.name.removeprefix("fold-")))
    return [load_classifier(folder, device)[0] for folder in folders]


def identity_embedder(judge: str, directory: Path, device: torch.device) -> IdentityEmbedder:
    """Return the embedder called `judge`, persons or dlib; that of persons was saved in `directory`.

    Raises:
        UserError: dlib is not installed.
    """
    if judge == DlibFaces.name:
        return DlibFaces()
    return PersonEmbedder(load_classifier(directory, device)[0], to_input, device)


def by_fold(models: list[nn.Module], fold: Tensor, function: Apply) -> Tensor:
    """Apply `function(model, rows)` to the rows of each fold and put the results (B, ...) in order again."""
    result: Tensor | None = None
    for k, model in enumerate(models):
        rows = torch.nonzero(fold == k)[:, 0]
        if not len(rows):
            continue
        part = function(model, rows)
        if result is None:
            result = part.new_zeros((len(fold), *part.shape[1:]))
        result[rows] = part
    assert result is not None, "every sample belongs to a fold"
    return result


def influence_limits(
    influence: Tensor, labels: Tensor, flagged: Tensor, quantile: float, classes: int
) -> Tensor:
    """Return for each class the `quantile` of the self-influence of its unflagged samples, (K,).

    A class without unflagged samples takes the quantile over all unflagged ones.
    """
    calm = ~flagged
    overall = torch.quantile(influence[calm], quantile) if calm.any() else torch.tensor(float("inf"))
    limits = [
        torch.quantile(influence[calm & (labels == k)], quantile) if (calm & (labels == k)).any() else overall
        for k in range(classes)
    ]
    return torch.stack(limits)
