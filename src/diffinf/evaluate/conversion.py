"""Repair against known truth: how many wrong labels became right because the image was changed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from diffinf.evaluate.intervals import wilson_interval


@dataclass(frozen=True)
class Conversion:
    """Repair of the flagged samples whose label is truly wrong; shares in 0..1, None where there are none.

    Attributes:
        conversion: share that end accepted AND judged as their label AND above the identity threshold.
        ci: 95 % Wilson interval of it.
        before: share judged as the assigned label as they came, with its interval ``before_ci``.
        roundtrip: the same after an unedited round trip, with its interval ``roundtrip_ci``.
        attempted: share whose edit is judged as the assigned label, whatever the gate said.
        n: the flagged samples whose label is wrong; n_accepted of them were accepted, n_converted converted.
        false_flags: flagged samples whose label was right all along.
        false_flags_changed: those of them that were changed, needlessly.
        identity_judged: whether the identity threshold took part.
    """

    conversion: float | None
    ci: tuple[float, float] | None
    before: float | None
    before_ci: tuple[float, float] | None
    roundtrip: float | None
    roundtrip_ci: tuple[float, float] | None
    attempted: float | None
    n: int
    n_accepted: int
    n_converted: int
    false_flags: int
    false_flags_changed: int
    identity_judged: bool

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON knows them."""
        return asdict(self)


def conversion(
    *,
    wrong: ArrayLike,
    accepted: ArrayLike,
    judged_edited: ArrayLike,
    judged_original: ArrayLike,
    judged_roundtrip: ArrayLike,
    labels: ArrayLike,
    identity_similarity: ArrayLike | None = None,
    identity_threshold: float | None = None,
) -> Conversion:
    """Measure a repair with a judge that was trained on the truth and took no part in the repair.

    All arrays are (M,), one row for each FLAGGED sample.

    Args:
        wrong: bool, the label differs from the truth.
        accepted: bool, the edit passed the gate and replaced the original.
        judged_edited: the class the judge reads in the edited image (any value where none was made).
        judged_original: the class the judge reads in the image as it came.
        judged_roundtrip: the class the judge reads in the unedited round trip.
        labels: the assigned classes, in the same coding as the judge's.
        identity_similarity: cosine similarity of original and edit in -1..1, NaN where not judged (that
            counts as below the threshold); None if identity was not judged at all.
        identity_threshold: the least similarity of the same person; None if identity was not judged.

    Raises:
        ValueError: if the arrays differ in length, or of similarity and threshold only one is given.
    """
    wrong_label, kept = np.asarray(wrong, dtype=bool), np.asarray(accepted, dtype=bool)
    assigned = np.asarray(labels)
    readings = [np.asarray(judged) for judged in (judged_edited, judged_original, judged_roundtrip)]
    same_person = np.ones(assigned.shape, dtype=bool)
    if (identity_similarity is None) != (identity_threshold is None):
        raise ValueError("identity_similarity and identity_threshold are given together or not at all")
    if identity_similarity is not None and identity_threshold is not None:
        same_person = np.asarray(identity_similarity, dtype=np.float64) >= identity_threshold
    shapes = {array.shape for array in (wrong_label, kept, assigned, same_person, *readings)}
    if len(shapes) != 1 or assigned.ndim != 1:
        raise ValueError(
            f"every array must have one row for each flagged sample, got shapes {sorted(shapes)}"
        )

    edited, original, roundtrip = (judged == assigned for judged in readings)
    n = int(wrong_label.sum())
    n_converted = int((wrong_label & kept & edited & same_person).sum())
    share, ci = _share(n_converted, n)
    before, before_ci = _share(int((wrong_label & original).sum()), n)
    unedited, unedited_ci = _share(int((wrong_label & roundtrip).sum()), n)
    return Conversion(
        conversion=share,
        ci=ci,
        before=before,
        before_ci=before_ci,
        roundtrip=unedited,
        roundtrip_ci=unedited_ci,
        attempted=_share(int((wrong_label & edited).sum()), n)[0],
        n=n,
        n_accepted=int((wrong_label & kept).sum()),
        n_converted=n_converted,
        false_flags=int((~wrong_label).sum()),
        false_flags_changed=int((~wrong_label & kept).sum()),
        identity_judged=identity_threshold is not None,
    )


def _share(successes: int, n: int) -> tuple[float | None, tuple[float, float] | None]:
    if not n:
        return None, None
    interval = wilson_interval(successes, n)
    return interval.estimate, interval.ci
