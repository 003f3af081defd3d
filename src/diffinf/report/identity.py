"""Whether it is still the same person, and who says so: the judge of identity in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffinf.report import plots
from diffinf.report.faces import identity_judged
from diffinf.report.files import RunFiles
from diffinf.report.words import count, number, percent

_JUDGES = {
    "persons": "an embedder trained on persons that the dataset names, and asked about others of them",
    "dlib": "dlib's face recogniser, which has seen nothing of this dataset",
}
_NOT_JUDGED = "Identity was not judged in this run: nothing here says whether it is still the same person."


def identity(files: RunFiles) -> dict[str, Any] | None:
    """Who judged identity, how that was calibrated, and on how many images it failed; None before the repair."""
    if files.edits is None:
        return None
    figures = files.gate.get("identity") or {}
    threshold = files.gate.get("identity_threshold")
    if threshold is None:
        sentences = [_NOT_JUDGED, *_too_few_faces(figures)] if not identity_judged(files) else []
        return {"sentences": sentences, "chart": None}
    sentences = [_threshold(figures, float(threshold)), *_failures(figures, files), *_held(figures, files)]
    return {"sentences": sentences, "chart": _chart(figures, float(threshold))}


def _too_few_faces(figures: Mapping[str, Any]) -> list[str]:
    if "failed" not in figures:
        return []
    failed = percent(figures["failed"])
    return [f"dlib was to judge it, but found no face in {failed} of the training images that it was shown."]


def _threshold(figures: Mapping[str, Any], threshold: float) -> str:
    others = "images" if str(figures.get("calibrated_on", "")).endswith("images") else "persons"
    judge = _JUDGES.get(str(figures.get("judge")), _JUDGES["persons"])
    sentence = (
        f"The judge is {judge}. A face passes as the same person from a similarity of {number(threshold)} on"
    )
    if "quantile" in figures:
        beyond = percent(1 - figures["quantile"])
        sentence += f", which {beyond} of {count(figures['pairs_other'])} pairs of different {others} exceed"
    sentence += "."
    if others == "images":
        sentence += " Nobody names the persons here, so some of these pairs may show one person."
    if figures.get("accepted") is not None:
        pairs = count(figures["pairs_same"])
        sentence += f" Of {pairs} pairs of one person {percent(figures['accepted'])} reach it."
    return sentence


def _failures(figures: Mapping[str, Any], files: RunFiles) -> list[str]:
    """On how much the judge failed; one that takes every image for a face never does."""
    if figures.get("judge") != "dlib":
        return []
    edits = files.edits or []
    blind = [edit for edit in edits if edit.get("identity_similarity") is None]
    accepted = sum(edit["status"] == "edited" for edit in edits)
    unjudged = sum(edit["status"] == "edited" for edit in blind)
    lost = sum(edit["reason"] == "identity" for edit in blind)
    return [
        f"It found no face in {percent(figures['failed'])} of the training images that it was calibrated on.",
        f"For {count(unjudged)} of {count(accepted)} accepted edits identity was not judged, since it found no face "
        f"in the original; {count(lost)} edits were refused because it found none in them any more.",
    ]


def _held(figures: Mapping[str, Any], files: RunFiles) -> list[str]:
    """What kept the person while the codes were moved."""
    head = files.identity_head
    if head:
        return [
            "While the codes were moved, a head on the code that this judge has taught kept to the person: it is more "
            f"like the judge's own reading of the same image than of another one in {percent(head['auroc'])} of "
            f"cases ({count(head['held_out'])} images held out; 50 % is chance)."
        ]
    if figures.get("calibrated_on") == "pairs of different images":
        return ["While the codes were moved, nothing kept to the person."]
    if not (files.terms.get("identity") or {}).get("weight"):
        return []
    if (files.config.get("autoencoder") or {}).get("weights") is None:
        return [
            "While the codes were moved, a head on the code kept to the person: the autoencoder's own, trained on the "
            "persons of this dataset."
        ]
    return [
        "While the codes were moved, the autoencoder's own reading of the person was kept to. Its weights were taken "
        "ready-made, so that it need not have seen the persons of this dataset, or any."
    ]


def _chart(figures: Mapping[str, Any], threshold: float) -> str | None:
    if not figures.get("other"):
        return None
    others = str(figures["calibrated_on"]).removeprefix("pairs of ")
    series = {others: figures["other"]}
    if figures.get("same"):
        series["one person"] = figures["same"]
    return plots.similarity_histogram(figures["edges"], series, threshold)
