"""The faces of a report: which samples are shown, and what stands beside each."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffinf.report import pictures, plots
from diffinf.report.files import RunFiles
from diffinf.report.words import number

REASONS = {
    "judge": "the judge does not read the label clearly enough in any edit, at any strength",
    "identity": "the edit is no longer recognisable as the same person",
    "roundtrip": "the autoencoder does not give the picture back well enough to edit it",
    "influence": "the edited picture still pulls harder at a classifier than is usual in its class",
    "class_unreliable": "too few labels of the class are trusted to know what it looks like",
    "label_fits": "an edit passed, but on a second look the picture shows its label well enough as it is",
    "restored": "an edit, a new label or a removal that a person undid with diffinf restore",
}
INSTEAD = {
    "relabelled": "no edit passed and the label is probably wrong: the picture stays, with the likeliest label",
    "dropped": "no edit passed and the label is probably wrong: left out of the refined dataset",
}
_RANDOM, _STRONGEST, _REFUSED_EACH, _SUSPICIOUS, _STRIP = 12, 9, 3, 12, 5


@dataclass(frozen=True)
class Card:
    """One flagged sample with its pictures as data URIs, None where a picture is not there.

    Attributes:
        judge: P(assigned label) by the judge before and after, None where not judged.
        identity: similarity to the original in words; never a number when it was not judged.
        code_similarity: cosine of the semantic codes before and after, None where it was not taken.
        truth: the true label where it is known; ``wrong`` whether the assigned one differs from it.
    """

    id: str
    label: str
    appears: str
    status: str
    reason: str
    score: float | None
    strength: float | None
    judge: tuple[float | None, float | None]
    identity: str
    code_similarity: float | None
    before: str | None
    after: str | None
    difference: str | None
    truth: str | None
    wrong: bool | None


def identity_judged(files: RunFiles) -> bool:
    """Whether any figure of identity was taken in this run."""
    if "identity_judged" in files.summary:
        return bool(files.summary["identity_judged"])
    return any(row.get("identity_similarity") is not None for row in files.edits or [])


def gallery(files: RunFiles) -> dict[str, Any] | None:
    """Accepted edits: a sample by the hash of the id, and the strongest scores; None before the repair."""
    if files.edits is None:
        return None
    accepted = [row for row, edit in enumerate(files.edits) if edit["status"] == "edited"]
    scores = _scores(files)
    drawn = _by_hash(files, accepted)[:_RANDOM]
    strongest = sorted(accepted, key=lambda row: (-scores.get(_id(files, row), -np.inf), _id(files, row)))
    cards = [_card(files, row, scores) for row in drawn]
    return {
        "n": len(accepted),
        "random": cards,
        "strip": [card for card in cards if card.before and card.after][:_STRIP],
        "strongest": [_card(files, row, scores) for row in strongest[:_STRONGEST]],
        "gain": pictures.DIFFERENCE_GAIN,
        "identity_judged": identity_judged(files),
        "has_pictures": bool(files.pictures),
    }


def refused(files: RunFiles) -> dict[str, Any] | None:
    """Flagged samples that stayed as they were, by reason, with some attempts; None before the repair."""
    if files.edits is None:
        return None
    kept = [row for row, edit in enumerate(files.edits) if edit["status"] == "kept"]
    counts = Counter(str(files.edits[row]["reason"]) for row in kept)
    order = [*(reason for reason in REASONS if counts[reason]), *sorted(counts.keys() - REASONS.keys())]
    rows_of = {reason: [row for row in kept if files.edits[row]["reason"] == reason] for reason in order}
    groups = [_group(files, reason, REASONS.get(reason, ""), rows) for reason, rows in rows_of.items()]
    instead = []
    for status, meaning in INSTEAD.items():
        if rows := [row for row, edit in enumerate(files.edits) if edit["status"] == status]:
            instead.append(_group(files, status, meaning, rows))
    chart = (
        plots.count_bars(order, [counts[reason] for reason in order], "flagged samples kept")
        if order
        else None
    )
    return {
        "n": len(kept),
        "groups": groups,
        "chart": chart,
        "instead": instead,
        "class_counts": files.summary.get("class_counts") or {},
        "statuses": _statuses(files),
    }


def _group(files: RunFiles, reason: str, meaning: str, rows: Sequence[int]) -> dict[str, Any]:
    """Some of the samples that share a fate."""
    scores = _scores(files)
    cards = [_card(files, row, scores) for row in _by_hash(files, rows)[:_REFUSED_EACH]]
    return {"reason": reason, "count": len(rows), "meaning": meaning, "cards": cards}


def suspicious(files: RunFiles) -> list[dict[str, Any]]:
    """The samples with the highest score, with a thumbnail where the repair has left one."""
    ranked = sorted(files.scores or [], key=lambda row: (-_finite(row["score"]), str(row["id"])))
    rows_of = {str(edit["id"]): row for row, edit in enumerate(files.edits or [])}
    shown = []
    for score in ranked[:_SUSPICIOUS]:
        name = str(score["id"])
        edit = files.edits[rows_of[name]] if files.edits is not None and name in rows_of else {}
        truth, wrong = _truth(files, name, str(score["label"]))
        shown.append(
            {
                "id": name,
                "picture": _picture(files, "original", rows_of[name]) if name in rows_of else None,
                "label": score["label"],
                "appears": score.get("appears"),
                "distance": score.get("distance"),
                "score": score["score"],
                "trust": score.get("label_trust"),
                "outcome": _outcome(edit, flagged=bool(score["flagged"])),
                "truth": truth,
                "wrong": wrong,
            }
        )
    return shown


def _statuses(files: RunFiles) -> dict[str, int]:
    """Samples by status, and those among the kept that were spared or put back by a person, not refused."""
    edits = files.edits or []
    others = {name: sum(edit["reason"] == name for edit in edits) for name in ("label_fits", "restored")}
    return {**Counter(str(edit["status"]) for edit in edits), **others}


def _outcome(edit: dict[str, Any], *, flagged: bool) -> str:
    if not edit:
        return "flagged" if flagged else "not flagged"
    return f"kept ({edit['reason']})" if edit["status"] == "kept" else str(edit["status"])


def _by_hash(files: RunFiles, rows: Sequence[int]) -> list[int]:
    """Rows in an order that nobody chose, and that is the same whenever the report is made."""
    return sorted(rows, key=lambda row: hashlib.sha256(_id(files, row).encode()).hexdigest())


def _id(files: RunFiles, row: int) -> str:
    return str((files.edits or [])[row]["id"])


def _scores(files: RunFiles) -> dict[str, float]:
    return {str(row["id"]): _finite(row["score"]) for row in files.scores or []}


def _finite(value: float | None) -> float:
    return -np.inf if value is None or np.isnan(value) else float(value)


def _picture(files: RunFiles, name: str, row: int) -> str | None:
    return pictures.picture(files.pictures[name][row]) if name in files.pictures else None


def _truth(files: RunFiles, name: str, label: str) -> tuple[str | None, bool | None]:
    truth = files.truths.get(name, {}).get("truth")
    return (None, None) if truth is None else (str(truth), str(truth) != label)


def _card(files: RunFiles, row: int, scores: dict[str, float]) -> Card:
    edit = (files.edits or [])[row]
    name, label = str(edit["id"]), str(edit["label"])
    truth, wrong = _truth(files, name, label)
    similarity = edit.get("identity_similarity")
    after = difference = None
    if {"original", "edited"} <= files.pictures.keys():
        original, edited = files.pictures["original"][row], files.pictures["edited"][row]
        # A kept sample whose pictures are equal was never attempted, so there is no edit to show.
        if edit["status"] == "edited" or not np.array_equal(original, edited):
            after, difference = pictures.picture(edited), pictures.difference(original, edited)
    return Card(
        id=name,
        label=label,
        appears=str(edit["appears"]),
        status=str(edit["status"]),
        reason=str(edit["reason"]),
        score=scores.get(name),
        strength=edit.get("strength"),
        judge=(edit.get("judge_before"), edit.get("judge_after")),
        identity="identity not judged" if similarity is None else f"identity {number(similarity)}",
        code_similarity=edit.get("code_similarity"),
        before=_picture(files, "original", row),
        after=after,
        difference=difference,
        truth=truth,
        wrong=wrong,
    )
