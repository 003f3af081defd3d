"""What becomes of a flagged sample: edited, kept, relabelled or dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from diffinf.config import Policy

LABEL_FITS = "label_fits"  # the reason of a sample whose original shows its label well enough
TRUSTED = 0.5  # from this P(label right) on there is no evidence that the label is wrong
LEAST_OF_A_CLASS = 2  # training samples that a dataset needs of every class
_INSTEAD: dict[Policy, str | None] = {
    "edit": None,
    "edit-or-relabel": "relabelled",
    "edit-or-drop": "dropped",
}


def decide(
    reasons: Sequence[str],
    labels: Sequence[str],
    likeliest: Sequence[str],
    trust: Sequence[float],
    counts: Counter[str],
    policy: Policy,
) -> list[str]:
    """Return the status of M flagged samples: "edited", "kept", "relabelled" or "dropped".

    A sample whose edit passed is edited. Of the others those are relabelled, or dropped, whose label is probably wrong
    (`trust` below 0.5, and not refused since it fits) and, to be relabelled, looks like another class; all else is
    kept. No class is left with fewer than two training samples: its most trusted ones stay.

    Args:
        reasons: why the gate refused, "" where the edit passed.
        labels: as annotated.
        likeliest: label that the out-of-fold classifiers find likeliest.
        trust: estimated P(label right).
        counts: training samples of each class, flagged or not.
        policy: what to do with what was refused.
    """
    statuses = ["kept" if reason else "edited" for reason in reasons]
    instead = _INSTEAD[policy]
    if instead is None:
        return statuses
    leaving: dict[str, list[int]] = {}
    for row, status in enumerate(statuses):
        stays = reasons[row] == LABEL_FITS or (instead == "relabelled" and likeliest[row] == labels[row])
        if status == "kept" and trust[row] < TRUSTED and not stays:
            leaving.setdefault(labels[row], []).append(row)
    for label, rows in leaving.items():
        most = max(0, counts[label] - LEAST_OF_A_CLASS)
        for row in sorted(rows, key=lambda row: trust[row])[:most]:
            statuses[row] = instead
    return statuses
