"""What the codes were moved by: how well the surrogate predicts flags, and the terms of the objective."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffinf.report import plots
from diffinf.report.files import RunFiles
from diffinf.report.words import count, number, percent

_TERMS = {
    "label": "the attribute head does not read the label",
    "influence": "the surrogate expects high influence",
    "identity": "the identity head sees another person",
    "proximity": "the code is far from where it was",
    "realism": "codes of the label are rarely like this one",
}


def surrogate(files: RunFiles) -> dict[str, Any] | None:
    """The surrogate's figures on samples held out, and each term before and after; None before the repair."""
    bins = np.array(files.surrogate.get("bins") or [], dtype=np.float64)
    terms = [
        {"name": name, "meaning": _TERMS.get(name, ""), **term}
        for name, term in files.terms.items()
        if isinstance(term, dict)
    ]
    if not len(bins) and not terms:
        return None
    return {
        "sentence": _sentence(files.surrogate) if len(bins) else None,
        "chart": plots.calibration(bins) if len(bins) else None,
        "terms": terms,
    }


def _sentence(metrics: dict[str, Any]) -> str:
    held_out = f"On {count(metrics['n'])} training samples held out of its own training"
    if metrics["auroc"] is None:
        return f"{held_out} the surrogate could not be ranked: they are all flagged, or none is."
    figures = f"AUROC {number(metrics['auroc'], 3)}; 0.5 is chance"
    return (
        f"{held_out} the surrogate finds the flagged one of a flagged and an unflagged sample in "
        f"{percent(metrics['auroc'])} of pairs ({figures}); its Brier score is {number(metrics['brier'], 3)}."
    )
