"""The comparison out of its predictions: choice on validation, measures, confirmatory tests, claims, gaps, costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffinf.config import ROBUST_ARMS, split_arm
from diffinf.evaluate.gain import balanced_accuracy, editing_gap_closed, holm, paired_difference
from diffinf.evaluate.measures import adjusted_logits, arm_measures
from diffinf.files import load_tensors, read_json

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

REFERENCES = ("clean", "true-flags", "oracle-edit")  # they know the truth
CONFIRMATORY = ("baseline", "filter", "relabel", "resample")  # and the best robust loss
EDITS_ALONE = "diffinf"  # no policy and no other loss: what it wins is won by its edits
CLAIMS = ("resample", "roundtrip")  # editing helps only if both are beaten
UNCALIBRATED = ("aldr-kl",)  # whose logits are not log probabilities
LEVEL = 0.05
RESAMPLES = 2000
_SCORED = ("filter", "down-weight", "relabel", "resample")
_CROSSFIT, _SCORING, _EDITING = (
    ("crossfit",),
    ("train", "crossfit", "influence", "score"),
    ("train-autoencoder", "repair"),
)


@dataclass(frozen=True)
class Trained:
    """Predictions of all arms.

    Attributes:
        labels: (T,) of the test images, taken as right.
        validation_labels: (V,) as annotated.
        test: arm -> seed -> logits (T, K); a training that diverged has none.
        validation: arm -> seed -> logits (V, K).
        counts: arm -> training samples by label (K,), the mean over its seeds.
        seconds: arm -> of each training.
        diverged: arm -> seeds that diverged.
    """

    labels: Ints
    validation_labels: Ints
    test: dict[str, dict[int, Floats]]
    validation: dict[str, dict[int, Floats]]
    counts: dict[str, Floats]
    seconds: dict[str, list[float]]
    diverged: dict[str, list[int]]

    def adjusted(self) -> Trained:
        """The same with the test logits freed of the label prior that each arm was trained on."""
        freed = {
            arm: {seed: adjusted_logits(logits, self.counts[arm]) for seed, logits in seeds.items()}
            for arm, seeds in self.test.items()
        }
        return replace(self, test=freed)


def read_trained(directory: Path, table: pa.Table, annotated: Ints) -> Trained:
    """Read what `run_arms` left in `directory` of the arms in its `table`.

    `annotated` (N,) are the training labels as given: the label prior of an arm whose record counts none.
    """
    test: dict[str, dict[int, Floats]] = {}
    validation: dict[str, dict[int, Floats]] = {}
    seconds: dict[str, list[float]] = {}
    diverged: dict[str, list[int]] = {}
    counted: dict[str, list[Floats]] = {}
    truth = load_tensors(directory / "test.safetensors")["labels"].numpy()
    given = load_tensors(directory / "validation.safetensors")["labels"].numpy()
    for row in table.to_pylist():
        arm, seed = row["arm"], row["seed"]
        for found in (test, validation):
            found.setdefault(arm, {})
        seconds.setdefault(arm, []).append(row["seconds"])
        diverged.setdefault(arm, [])
        if row["diverged"]:
            diverged[arm].append(seed)
            continue
        path = directory / "predictions" / f"{arm}-{seed}.safetensors"
        tensors = load_tensors(path)
        test[arm][seed] = tensors["logits"].double().numpy()
        validation[arm][seed] = tensors["validation_logits"].double().numpy()
        counts = read_json(path.with_suffix(".json")).get("label_counts")
        classes = test[arm][seed].shape[1]
        counts = np.bincount(annotated, minlength=classes) if counts is None else np.asarray(counts)
        counted.setdefault(arm, []).append(counts.astype(np.float64))
    means = {arm: np.mean(values, axis=0) for arm, values in counted.items()}
    return Trained(truth, given, test, validation, means, seconds, diverged)


def choose(trained: Trained, classes: Sequence[int]) -> dict[str, Any]:
    """The variant of diffinf and the robust loss with the best mean balanced accuracy over `classes` on validation.

    The labels there are as given and the test labels are not read. A tie goes to the arm named first. Candidates are
    `diffinf`, its policies, and it with a robust loss, but not with the paper's flags; and the robust losses.
    """
    scores = {
        arm: float(
            np.mean(
                [balanced_accuracy(y.argmax(1), trained.validation_labels, classes) for y in seeds.values()]
            )
        )
        for arm, seeds in trained.validation.items()
        if seeds
    }

    def best(candidates: list[str]) -> str | None:
        return max(candidates, key=lambda arm: scores[arm], default=None)

    return {
        "diffinf": best([arm for arm in scores if is_variant(arm)]),
        "robust": best([arm for arm in scores if arm in ROBUST_ARMS]),
        "validation": scores,
    }


def is_variant(arm: str) -> bool:
    """Whether an arm is diffinf in one of its variants."""
    base = split_arm(arm)[0]
    return base.startswith("diffinf") and base != "diffinf-paper"


def results(
    trained: Trained,
    classes: Sequence[int],
    names: Sequence[str],
    timings: Mapping[str, float],
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """All figures of the comparison, as JSON knows them.

    Args:
        trained: predictions of all arms.
        classes: the classes of the primary figure.
        names: names of all classes (K,).
        timings: seconds of the stages of the run that scored and edited.
        resamples: number of bootstrap resamples.
    """
    chosen, adjusted = choose(trained, classes), trained.adjusted()
    arms: dict[str, Any] = {}
    for arm in trained.test:
        arms[arm] = {"seeds": sorted(trained.test[arm]), "diverged": trained.diverged[arm]}
        if trained.test[arm]:
            arms[arm] |= {
                "as_trained": _measures(trained, arm, classes, names, resamples),
                "gap_closed": _gap(trained, arm, classes, resamples),
            }
            if split_arm(arm)[1] in UNCALIBRATED:
                arms[arm]["as_trained"]["ece"] = None
            else:
                arms[arm]["adjusted"] = _measures(adjusted, arm, classes, names, resamples)
                arms[arm]["gap_closed_adjusted"] = _gap(adjusted, arm, classes, resamples)
    for arm, cost in costs(trained, timings).items():
        arms[arm]["cost"] = cost
    return {
        "primary": "balanced accuracy over " + ", ".join(names[k] for k in classes),
        "chosen": chosen,
        "arms": arms,
        "tests": _tests(trained, chosen, classes, resamples),
        "adjusted_minus": _differences(adjusted, chosen, classes, resamples),
    }


def _measures(
    trained: Trained, arm: str, classes: Sequence[int], names: Sequence[str], resamples: int
) -> dict[str, Any]:
    logits = np.stack([trained.test[arm][seed] for seed in sorted(trained.test[arm])])
    found = arm_measures(logits, trained.labels, classes=classes, resamples=resamples).to_dict()
    found["recalls"] = dict(zip(names, found["recalls"], strict=True))
    return found


def _paired(trained: Trained, *arms: str) -> list[Floats] | None:
    """Logits (S, T, K) of each arm over the seeds in which none diverged; None where there are none."""
    if any(arm not in trained.test for arm in arms):
        return None
    seeds = sorted(set.intersection(*(set(trained.test[arm]) for arm in arms)))
    return [np.stack([trained.test[arm][seed] for seed in seeds]) for arm in arms] if seeds else None


def _gap(trained: Trained, arm: str, classes: Sequence[int], resamples: int) -> dict[str, Any] | None:
    if (logits := _paired(trained, arm, "baseline", "oracle-edit")) is None:
        return None
    first, baseline, oracle = logits
    labels = trained.labels
    return editing_gap_closed(first, baseline, oracle, labels, classes=classes, resamples=resamples).to_dict()


def on_validation_truth(
    trained: Trained, truth: Ints, classes: Sequence[int], resamples: int = RESAMPLES
) -> dict[str, Any]:
    """The arms on the validation images labelled by the truth (V,), which no choice reads: other pictures to test on.

    Each variant of diffinf is held against the rivals, with Holm's p values over its own tests.
    """
    there = replace(trained, test=trained.validation, labels=truth)
    rivals = (*CONFIRMATORY, *([robust] if (robust := choose(trained, classes)["robust"]) else []))
    found: dict[str, Any] = {"n": len(truth), "arms": {}, "minus": {}}
    for arm in (arm for arm, seeds in there.test.items() if seeds):
        logits = np.stack([there.test[arm][seed] for seed in sorted(there.test[arm])])
        measures = arm_measures(logits, truth, classes=classes, resamples=resamples).to_dict()
        found["arms"][arm] = measures["primary"]
        if is_variant(arm):
            minus = {rival: difference(there, arm, rival, classes, resamples) for rival in rivals}
            made = {rival: row for rival, row in minus.items() if row is not None}
            adjusted = holm({rival: row["p_value"] for rival, row in made.items()})
            found["minus"][arm] = {rival: {**row, "p_holm": adjusted[rival]} for rival, row in made.items()}
    return found


def difference(
    trained: Trained, first: str, second: str, classes: Sequence[int], resamples: int
) -> dict[str, Any] | None:
    """`first` minus `second` in balanced accuracy over `classes`, paired; None where one of them is not there."""
    if (logits := _paired(trained, first, second)) is None:
        return None
    return paired_difference(*logits, trained.labels, classes=classes, resamples=resamples).to_dict()


def _differences(
    trained: Trained, chosen: Mapping[str, Any], classes: Sequence[int], resamples: int
) -> dict[str, dict[str, Any]]:
    """The chosen arm minus each rival, paired; a rival that was not trained is left out."""
    arm, robust = chosen["diffinf"], chosen["robust"]
    if arm is None:
        return {}
    minus = {
        rival: difference(trained, arm, rival, classes, resamples)
        for rival in (*CONFIRMATORY, *([robust] if robust else []))
    }
    return {rival: found for rival, found in minus.items() if found is not None}


def _tests(
    trained: Trained, chosen: Mapping[str, Any], classes: Sequence[int], resamples: int
) -> dict[str, Any] | None:
    """Confirmatory tests of the chosen arm with Holm's p values, and whether the claims hold of the edits alone."""
    arm = chosen["diffinf"]
    if arm is None:
        return None
    made = _differences(trained, chosen, classes, resamples)
    adjusted = holm({rival: found["p_value"] for rival, found in made.items()})
    confirmatory = {
        rival: {**found, "p_holm": adjusted[rival], "won": found["estimate"] > 0 and adjusted[rival] < LEVEL}
        for rival, found in made.items()
    }
    minus = {rival: difference(trained, EDITS_ALONE, rival, classes, resamples) for rival in CLAIMS}
    claims = {rival: found for rival, found in minus.items() if found is not None}
    beaten = [found["estimate"] > 0 and found["p_value"] < LEVEL for found in claims.values()]
    wanted = [*CONFIRMATORY, *([chosen["robust"]] if chosen["robust"] else []), *CLAIMS]
    return {
        "arm": arm,
        "confirmatory": confirmatory,
        "missing": [rival for rival in dict.fromkeys(wanted) if rival not in {**made, **claims}],
        "claims": claims,
        "editing_helps": all(beaten) if len(claims) == len(CLAIMS) else None,
    }


def costs(trained: Trained, timings: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Cost of each arm in trainings of the baseline, by the clock: its training, and what it needs of the run before.

    The training is the median over the seeds, since one that was taken up again counts only its last part. The
    arms that know the truth need nothing beforehand here, and no arm pays for what the user brought (weights).
    """
    if not trained.seconds.get("baseline"):
        return {}
    unit = float(np.median(trained.seconds["baseline"]))
    if not unit:
        return {}
    crossfit, scoring, editing = (
        sum(timings.get(stage, 0.0) for stage in part) for part in (_CROSSFIT, _SCORING, _EDITING)
    )
    found = {}
    for arm, seconds in trained.seconds.items():
        base, training = split_arm(arm)[0], float(np.median(seconds))
        before = crossfit if base == "cleanlab" else scoring if base in _SCORED else 0.0
        before = scoring + editing if _is_edited(base) else before
        found[arm] = {"training": training / unit, "whole": (training + before) / unit}
    return found


def _is_edited(base: str) -> bool:
    return base.startswith("diffinf") or base == "roundtrip"
