"""The score stage: from what the classifiers said to scores.parquet and flags.json."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from diffinf.classify.crossfit import CrossFit, load_crossfit
from diffinf.classify.train import load_dynamics
from diffinf.files import load_tensors, write_json, write_table
from diffinf.influence.flag import FlagResult, flag
from diffinf.influence.noise import (
    confident_joint,
    error_log_odds,
    expected_precision,
    label_trust,
    ranked_trust,
)
from diffinf.influence.rivals import rival_scores
from diffinf.stages.scores import read_flags, score_table
from diffinf.stages.workspace import Workspace

Floats = npt.NDArray[np.float64]


def score_run(workspace: Workspace) -> None:
    """Score every training sample, flag, and write scores.parquet and flags.json."""
    run, labels = workspace.run, workspace.labels.numpy()
    class_names = workspace.dataset.class_names
    crossfit = load_crossfit(run.crossfit)
    dynamics = load_dynamics(run.classifier)
    probabilities = crossfit.logits.double().softmax(1).numpy()
    influence = load_tensors(run.path / "influence.safetensors")["self_influence"].numpy()
    suspicion = error_log_odds(labels, _fitted(workspace, crossfit, dynamics[-1]))
    suspicion[np.isinf(influence)] = np.inf  # a gradient that overflows is as suspicious as can be
    trust = label_trust(labels, probabilities, confident_joint(labels, probabilities))
    trust = ranked_trust(trust, suspicion)
    result = _flags(workspace, suspicion, float(1 - trust.mean()))
    table = score_table(
        ids=workspace.ids,
        labels=labels,
        appears=probabilities.argmax(1),
        class_names=class_names,
        score=suspicion,
        self_influence=influence,
        flagged=result.flagged,
        threshold=result.threshold,
        label_trust=trust,
        rivals=rival_scores(labels, crossfit.logits, crossfit.features, dynamics),
        fold=crossfit.fold.numpy(),
        agreement=workspace.agreement,
        level=probabilities @ np.arange(len(class_names)) if workspace.dataset.ordered else None,
    )
    write_table(run.scores, table, class_names)
    write_json(run.flags, _account(workspace, result, trust))


def _fitted(workspace: Workspace, crossfit: CrossFit, baseline: Tensor) -> Floats:
    """Mean probabilities, (N, K), of the folds' models that were trained on the sample, and of the baseline.

    A classifier that the user brought is left out: what it was trained on is not known.
    """
    fitted = crossfit.fitted.double()
    if workspace.config.classifier.checkpoint is None:
        others = int(crossfit.fold.max())  # of the folds' models all but one
        fitted = (fitted * others + baseline.double().softmax(1)) / (others + 1)
    return np.asarray(fitted)


def _flags(workspace: Workspace, suspicion: Floats, noise: float) -> FlagResult:
    """Flag by the settings, or as the user's file says; `noise` is the estimated share of wrong labels."""
    config, data = workspace.config.influence, workspace.dataset
    if config.flags is not None:
        elsewhere = data.ids[np.setdiff1d(np.arange(len(data.ids)), workspace.rows)]
        return FlagResult(read_flags(config.flags, workspace.ids, elsewhere), None)
    return flag(
        suspicion,
        workspace.ids,
        method=config.flag,
        share=min(noise, config.max_share) if config.share is None else config.share,
        count=config.count,
        labels=workspace.labels.numpy(),
    )


def _account(workspace: Workspace, result: FlagResult, trust: Floats) -> dict[str, Any]:
    """What flags.json says: how the flags were drawn, and what is estimated without the truth."""
    config, labels = workspace.config.influence, workspace.labels.numpy()
    names = workspace.dataset.class_names
    precision = expected_precision(trust, result.flagged)
    by_class = result.class_thresholds
    return {
        "method": "ids" if config.flags is not None else config.flag,
        "n": len(labels),
        "flagged": int(result.flagged.sum()),
        "threshold": _finite(result.threshold),
        "class_thresholds": None if by_class is None else {names[k]: _finite(v) for k, v in by_class.items()},
        "mixture": None if result.mixture is None else asdict(result.mixture),
        "estimated_noise": float(1 - trust.mean()),
        "estimated_class_noise": {
            name: float(1 - trust[labels == k].mean()) for k, name in enumerate(names) if (labels == k).any()
        },
        "estimated_precision": None if np.isnan(precision) else precision,
    }


def _finite(value: float | None) -> float | None:
    """JSON knows no infinity; only samples whose gradient overflowed are flagged then."""
    return None if value is None or np.isinf(value) else value
