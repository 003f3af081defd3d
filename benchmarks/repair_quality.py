"""The part of the benchmark that looks at the edits of the run itself: conversion, identity, drift, realism."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffinf.data.rendered.factors import FACTORS
from diffinf.data.rendered.render import render_faces
from diffinf.data.rendered.tasks import counterfactual
from diffinf.errors import UserError
from diffinf.evaluate.conversion import conversion
from diffinf.features.calibration import calibrate, sample_rows
from diffinf.features.dlib_faces import DlibFaces
from diffinf.features.interface import similarity
from diffinf.files import atomic_path, read_json
from diffinf.repair.policy import LABEL_FITS
from diffinf.stages.refining import spared
from repair_judges import ORACLES, FactorReader, factor_values
from repair_measures import (
    READABLE,
    Bools,
    Floats,
    Ints,
    chosen,
    drift,
    grouped_drift,
    psnr,
    r_squared,
    share,
    spread,
)
from repair_run import rendered_factors
from repair_trials import Flagged, own_roundtrips

DLIB_IMAGES, DLIB_QUANTILE = 1000, 0.99
ROUNDTRIPS, ROUNDTRIP_STEPS = 256, 50
ON_SHEET = 40
SPARES = (0.0, 0.5, 1.0, 1.5, 2.0)
_SHEET_COLUMNS = 8


def accepted(flagged: Flagged) -> Bools:
    """Whether each flagged sample (M,) ended edited."""
    return np.array([row["status"] == "edited" for row in flagged.edits], dtype=np.bool_)


def noise_free(flagged: Flagged) -> Tensor | None:
    """Pictures of the flagged samples without their sensor noise, uint8 (M, C, H, W), where they were rendered."""
    factors = rendered_factors(flagged.workspace)
    if factors is None:
        return None
    still = factors.take(flagged.rows).replace(noise=0)
    return torch.from_numpy(render_faces(still, flagged.workspace.dataset.image_size))


def quality(flagged: Flagged, *, dlib: bool) -> dict[str, Any]:
    """All figures on the edits of the run; `dlib`: judge identity by it where the dataset names no persons."""
    clean = noise_free(flagged)
    found: dict[str, Any] = {
        "n_flagged": int(flagged.counted.sum()),
        "oracles": flagged.oracle.quality(),
        "note": "conversion is that of the run: after the gate, the second look and the policy",
    }
    judged = None
    if flagged.workspace.identities is not None or _gate(flagged)["identity_threshold"] is not None:
        found["identity"] = gate_identity(flagged)
    elif not dlib:
        found["identity"] = {"note": "not judged: --no-dlib"}
    else:
        found["identity"], judged = dlib_identity(flagged)
    found |= conversions(flagged, judged)
    if clean is not None:
        found["roundtrip"] = roundtrips(flagged, clean)
        found["drift"] = factor_drift(flagged)
    mine = accepted(flagged) & flagged.counted
    edited = flagged.pictures["edited"][mine]
    found["realism"] = flagged.oracle.realism(edited, flagged.rows[mine], flagged.labels[mine])
    found["class_counts"] = class_counts(flagged)
    found["sheet"] = sheet(flagged, flagged.out / "sheet.png")
    return found


def conversions(flagged: Flagged, judged: tuple[Floats, float] | None) -> dict[str, Any]:
    """Conversion by each oracle, overall and by assigned class, and the false flags changed.

    Args:
        flagged: the run.
        judged: cosines of original and edit (M,) by dlib, and its threshold, where the gate did not judge: conversion
            with and without them. Where the gate did, conversion counts accepted edits that it could not judge as
            failed, and beside it as the same person.
    """
    names = flagged.workspace.dataset.class_names
    done = accepted(flagged)
    readings = {name: flagged.oracle.read(images, flagged.rows) for name, images in flagged.pictures.items()}
    threshold = _gate(flagged)["identity_threshold"]
    by_run = None
    if threshold is not None:
        cosines = np.array([row["identity_similarity"] for row in flagged.edits], dtype=np.float64)
        by_run = cosines, threshold
        if judged is None and np.isnan(cosines[done]).any():  # whom the gate let pass without a judgement
            judged = np.where(np.isnan(cosines), 1.0, cosines), threshold

    def measured(rows: Bools, oracle: str, identity: tuple[Floats, float] | None) -> dict[str, Any]:
        return conversion(
            wrong=flagged.wrong[rows],
            accepted=done[rows],
            judged_edited=readings["edited"][oracle][rows],
            judged_original=readings["original"][oracle][rows],
            judged_roundtrip=readings["roundtrip"][oracle][rows],
            labels=flagged.labels[rows],
            identity_similarity=None if identity is None else identity[0][rows],
            identity_threshold=None if identity is None else identity[1],
        ).to_dict()

    result: dict[str, Any] = {
        "real_read_as_these_labels": real_recall(flagged),
        "by_spare": by_spare(flagged, readings["edited"], by_run),
    }
    beside = "conversion_with_dlib" if by_run is None else "conversion_unjudged_kept"
    for title, identity in {"conversion": by_run, beside: judged}.items():
        if title == "conversion" or identity is not None:
            result[title] = {
                oracle: {
                    "overall": measured(flagged.counted, oracle, identity),
                    "by_class": {
                        name: measured(flagged.counted & (flagged.labels == k), oracle, identity)
                        for k, name in enumerate(names)
                    },
                }
                for oracle in ORACLES
            }
    result["false_flags_changed"] = share(done[flagged.counted & ~flagged.wrong])
    return result


def _gate(flagged: Flagged) -> dict[str, Any]:
    found: dict[str, Any] = read_json(flagged.run.repair / "gate.json")
    return found


def gate_identity(flagged: Flagged) -> dict[str, Any]:
    """Identity of the accepted edits as the gate judged it."""
    gate = _gate(flagged)
    if gate["identity_threshold"] is None:
        return {"note": "not judged: the settings of the run have no judge of identity"}
    mine = accepted(flagged) & flagged.counted
    cosines = np.array([row["identity_similarity"] for row in flagged.edits], dtype=np.float64)[mine]
    known = np.isfinite(cosines)
    return {
        "judge": gate["identity"]["judge"],
        "threshold": gate["identity_threshold"],
        "pairs_of_one_person_accepted": gate["identity"]["accepted"],
        "above": share(cosines[known] >= gate["identity_threshold"]),
        "not_judged": share(~known),
    }


def dlib_identity(flagged: Flagged) -> tuple[dict[str, Any], tuple[Floats, float] | None]:
    """Identity of the accepted edits by dlib's recogniser, whose threshold is that of pairs of other images.

    An edit whose original shows no face that dlib finds is not judged; one that shows none any more is not the
    person. Also returns cosines (M,), 1 where not judged and NaN where lost, with the threshold.
    """
    try:
        judge = DlibFaces()
    except UserError as error:
        return {"note": f"not judged: {error}"}, None
    workspace = flagged.workspace
    rows = sample_rows(len(workspace.images), DLIB_IMAGES, workspace.seed, None)
    vectors, found = judge.embed(workspace.images[rows])
    known = vectors[found]
    if len(known) < 2:
        return {"note": "not judged: dlib finds no faces here", "not_found": share(~found.numpy())}, None
    calibration = calibrate(known, np.arange(len(known)), DLIB_QUANTILE)
    mine = np.flatnonzero(accepted(flagged) & flagged.counted)
    alike = similarity(judge, flagged.pictures["original"][mine], flagged.pictures["edited"][mine])
    before, above = alike.before.numpy(), (alike.cosine >= calibration.threshold).numpy()
    cosines = np.ones(len(flagged.edits))
    cosines[mine] = np.where(before, alike.cosine.numpy(), 1.0)
    figures = {
        "judge": judge.name,
        "threshold": calibration.threshold,
        "calibrated_on": f"the {DLIB_QUANTILE} quantile of {calibration.pairs_other} pairs of other images",
        "no_face_in_training_images": share(~found.numpy()),
        "above": share(above[before]),
        "not_judged": share(~before),
    }
    return figures, (cosines, calibration.threshold)


def roundtrips(flagged: Flagged, clean: Tensor) -> dict[str, Any]:
    """PSNR of unedited round trips of rendered faces, against the noise-free picture and the one that was given."""
    counted = np.flatnonzero(flagged.counted)
    samples = counted[chosen([flagged.ids[row] for row in counted], ROUNDTRIPS, "psnr:")]
    config, result = flagged.run.config.repair, {}
    plain = {"inversion_steps": None, "diffusion_steps": ROUNDTRIP_STEPS}
    for name, changes in {f"{ROUNDTRIP_STEPS} + {ROUNDTRIP_STEPS} steps": plain, "as set": {}}.items():
        back = own_roundtrips(flagged, samples, config.model_copy(update=changes)).numpy()
        result[name] = {
            kind: {"median": float(np.median(values)), "mean": float(values.mean())}
            for kind, values in (
                ("noise_free", psnr(clean[samples].numpy(), back)),
                ("as given", psnr(flagged.pictures["original"][samples].numpy(), back)),
            )
        }
    return {"depth": config.depth, "n": len(samples), "rows": result}


def real_recall(flagged: Flagged) -> dict[str, float]:
    """How often each oracle would read the wrongly labelled flagged as their label, were they real faces of it."""
    counts = Counter(flagged.labels[flagged.counted & flagged.wrong].tolist())
    names = flagged.workspace.dataset.class_names
    recalls = {oracle: found["recall"] for oracle, found in flagged.oracle.quality().items()}
    return {
        oracle: sum((recall[names[k]] or 0.0) * n for k, n in counts.items()) / max(1, sum(counts.values()))
        for oracle, recall in recalls.items()
    }


def by_spare(
    flagged: Flagged, read: dict[str, Ints], identity: tuple[Floats, float] | None
) -> list[dict[str, Any]]:
    """Conversion and false flags changed by how many originals a second look spares; None without one."""
    passed = np.array([row["reason"] in ("", LABEL_FITS) for row in flagged.edits], dtype=np.bool_)
    if any(row["label_fit"] is None for row in flagged.edits):
        return []
    same = np.ones(len(passed), dtype=np.bool_) if identity is None else identity[0] >= identity[1]
    wrong, right = flagged.counted & flagged.wrong, flagged.counted & ~flagged.wrong
    rows = []
    for factor in SPARES:
        kept = {row["id"] for row in spared(flagged.edits, factor)}
        done = passed & np.array([row["id"] not in kept for row in flagged.edits])
        converted = {
            oracle: share((done & same & (classes == flagged.labels))[wrong])
            for oracle, classes in read.items()
        }
        rows.append({"spare": factor, "conversion": converted, "false_flags_changed": share(done[right])})
    return rows


def factor_drift(flagged: Flagged) -> dict[str, Any]:
    """How far accepted edits move the other factors, as a regressor trained on the truth reads them."""
    factors, workspace = rendered_factors(flagged.workspace), flagged.workspace
    assert factors is not None, "called for rendered faces"
    names = [n for n, f in FACTORS.items() if f.group != "attribute" and n != "noise_seed"]
    groups = [FACTORS[name].group for name in names]
    values = factor_values(factors, names)
    reader = FactorReader(workspace, flagged.model, names, flagged.out / "factors")
    quality = r_squared(values, reader.read(workspace.images))
    scale = np.where(np.array(groups) == "identity", spread(values, workspace.identities), spread(values))
    mine = accepted(flagged) & flagged.counted
    rows: Ints = flagged.rows[mine]
    read = {name: reader.read(images[mine]) for name, images in flagged.pictures.items()}
    true_edit = counterfactual(factors.take(rows), flagged.labels[mine], "expression")
    side = workspace.dataset.image_size
    read["true edit"] = reader.read(torch.from_numpy(render_faces(true_edit, side)))
    readable = quality >= READABLE
    pairs = {
        "edit against round trip": ("roundtrip", "edited"),
        "edit against original": ("original", "edited"),
        "round trip against original": ("original", "roundtrip"),
        "true edit against original": ("original", "true edit"),
    }
    return {
        "n": int(mine.sum()),
        "r_squared": {name: float(quality[k]) for k, name in enumerate(names) if np.isfinite(quality[k])},
        "left_out": [name for k, name in enumerate(names) if not readable[k]],
        "rows": {
            title: grouped_drift(drift(read[first], read[second], scale), readable, names, groups)
            for title, (first, second) in pairs.items()
        },
    }


def class_counts(flagged: Flagged) -> dict[str, dict[str, int]]:
    """Training samples of each class before and after the repair."""
    names = flagged.workspace.dataset.class_names
    before = Counter(names[label] for label in flagged.workspace.labels.tolist())
    after = before.copy()
    for row in flagged.edits:
        if row["status"] in ("relabelled", "dropped"):
            after[row["label"]] -= 1
        if row["status"] == "relabelled":
            after[row["new_label"]] += 1
    return {
        side: {name: found[name] for name in names} for side, found in (("before", before), ("after", after))
    }


def sheet(flagged: Flagged, target: Path) -> str | None:
    """Draw accepted edits that a hash chose, original over edit, as a PNG; its name, or None where there is none."""
    from matplotlib.figure import Figure

    mine = np.flatnonzero(accepted(flagged) & flagged.counted)
    rows = mine[chosen([flagged.ids[row] for row in mine], ON_SHEET, "sheet:")]
    if not len(rows):
        return None
    lines = -(-len(rows) // _SHEET_COLUMNS)
    figure = Figure(figsize=(1.5 * _SHEET_COLUMNS, 3.3 * lines), layout="constrained")
    axes = figure.subplots(2 * lines, _SHEET_COLUMNS, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for place, row in enumerate(rows.tolist()):
        line, column = divmod(place, _SHEET_COLUMNS)
        edit = flagged.edits[row]
        axes[2 * line, column].set_title(f"{edit['appears']} > {edit['label']}", fontsize=8)
        for below, view in enumerate(("original", "edited")):
            picture = flagged.pictures[view][row].permute(1, 2, 0).numpy()
            grey = picture.shape[2] == 1
            axes[2 * line + below, column].imshow(
                picture[:, :, 0] if grey else picture, cmap="gray" if grey else None, vmin=0, vmax=255
            )
    with atomic_path(target) as partial:
        figure.savefig(partial, format="png", dpi=110)
    return target.name
