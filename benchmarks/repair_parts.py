"""The parts of the benchmark that edit some samples again: editors, terms of the objective, steps."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from diffinf.errors import UserError
from diffinf.features.distil import IdentityHead
from diffinf.files import load_tensors, read_json
from diffinf.repair.editors import EDITORS
from diffinf.repair.surrogate import Surrogate
from diffinf.stages.repairing import Repair
from repair_judges import ORACLES
from repair_measures import paired, psnr
from repair_trials import Flagged, Trial, attempt, converted, figures


def editors(flagged: Flagged, n: int) -> dict[str, Any]:
    """Each editor on the same samples, the other settings as in the run."""
    samples, config = flagged.sample(n), flagged.run.config.repair
    found = {}
    for name in EDITORS:
        trial = attempt(flagged, samples, config.model_copy(update={"editor": name}))
        found[name] = figures(flagged, trial)
    return {"default": config.editor, "editors": found}


TERMS: dict[str, dict[str, Any]] = {
    "as set": {},
    "no influence term": {"influence_weight": 0.0},
    "no identity term": {"identity_weight": 0.0},
    "neither": {"influence_weight": 0.0, "identity_weight": 0.0},
    "codes not moved": {"code_steps": 0},
}


def ablation(flagged: Flagged, n: int) -> dict[str, Any]:
    """The objective of the codes without some of its terms, at equal budget, on the same samples."""
    samples, run = flagged.sample(n), flagged.run
    repair = Repair(flagged.workspace)
    codes = repair.codes()
    surrogate = Surrogate(codes.shape[1], flagged.shown.shape[1])
    surrogate.load_state_dict(load_tensors(run.surrogate / "surrogate.safetensors"))
    head, saved = None, run.surrogate / "identity_head.safetensors"
    if saved.exists():
        weights = load_tensors(saved)
        head = IdentityHead(codes.shape[1], len(weights["linear.bias"]))
        head.load_state_dict(weights)
        head.eval().requires_grad_(False)
    judged = read_json(run.repair / "gate.json")["identity"]
    known = head is not None or (judged is not None and judged["calibrated_on"].endswith("persons"))
    found: dict[str, Any] = {}
    for name, changes in TERMS.items():
        config = run.config.repair.model_copy(update=changes)
        moved = repair.move(
            codes, surrogate.eval().requires_grad_(False), config, identity_known=known, identity_head=head
        )
        trial = attempt(flagged, samples, run.config.repair, moved.code[samples])
        means = {term: float(values[samples].mean()) for term, values in moved.after.items()}
        found[name] = {**figures(flagged, trial), "terms": means}
    return {
        "surrogate": read_json(run.surrogate / "metrics.json"),
        "identity_term": known,
        "terms_before": found["codes not moved"]["terms"],
        "rows": found,
    }


def steps(
    flagged: Flagged,
    n: int,
    counts: list[int],
    reference: tuple[int, int],
    reference_n: int,
    clean: Tensor | None,
) -> dict[str, Any]:
    """Error, cost, conversion and realism by the number of steps.

    Args:
        flagged: the run.
        n: samples.
        counts: steps of the inversion and of the decode.
        reference: steps of inversion and decode to hold them against.
        reference_n: samples of that.
        clean: noise-free pictures (M, C, H, W) of the flagged samples, where they are known.
    """
    samples, base = flagged.sample(n), flagged.run.config.repair
    own = base.inversion_steps or base.diffusion_steps, base.diffusion_steps
    pairs = [(count, count) for count in counts]
    trials: dict[tuple[int, int], Trial] = {}
    rows: list[dict[str, Any]] = []
    for pair in dict.fromkeys([reference, own, *sorted(pairs)]):
        finish = max(1, round(base.finish_steps * pair[1] / base.diffusion_steps))
        config = base.model_copy(
            update={"inversion_steps": pair[0], "diffusion_steps": pair[1], "finish_steps": finish}
        )
        some = samples[:reference_n] if pair == reference else samples
        row: dict[str, Any] = {"inversion": pair[0], "decode": pair[1], "is_setting": pair == own}
        try:
            trials[pair] = attempt(flagged, some, config, timed=True)
        except UserError as error:  # a scheduler that cannot take so many steps
            rows.append({**row, "note": str(error)})
            continue
        row |= figures(flagged, trials[pair]) | _errors(flagged, trials[pair], clean)
        row["realism"] = _realism(flagged, trials[pair], len(some))
        if reference in trials:
            row["minus_reference"] = _against(flagged, trials[pair], trials[reference])
        rows.append(row)
    rows.sort(key=lambda row: row["inversion"] + row["decode"])
    return {"reference": list(reference), "scheduler": _scheduler(flagged.model), "rows": rows}


def _scheduler(model: Any) -> dict[str, Any]:
    scheduler = model.scheduler
    return {"name": type(scheduler).__name__, "order": scheduler.config.get("solver_order", 1)}


def _errors(flagged: Flagged, trial: Trial, clean: Tensor | None) -> dict[str, Any]:
    original = flagged.pictures["original"][trial.samples]
    error = (trial.roundtrip.float() - original.float()).abs().mean((1, 2, 3)) / 127.5
    result = {"error": float(error.mean()), "psnr": _decibels(original, trial.roundtrip)}
    if clean is not None:
        result["psnr_noise_free"] = _decibels(clean[trial.samples], trial.roundtrip)
    return result


def _decibels(reference: Tensor, images: Tensor) -> dict[str, float]:
    values = psnr(reference.numpy(), images.numpy())
    return {"median": float(np.median(values)), "mean": float(np.mean(values))}


def _realism(flagged: Flagged, trial: Trial, most: int) -> dict[str, Any] | None:
    """Realism of the accepted among the first `most` samples, over all classes."""
    rows, mine = trial.samples[:most], trial.accepted[:most]
    found = flagged.oracle.realism(
        trial.found["edited"][:most][mine], flagged.rows[rows][mine], flagged.labels[rows][mine]
    )
    return None if found is None else found["overall"]


def _against(flagged: Flagged, trial: Trial, reference: Trial) -> dict[str, Any]:
    """The trial minus the reference on the reference's samples: conversion, paired, and ratios of realism."""
    most = len(reference.samples)
    wrong = flagged.wrong[reference.samples]
    result: dict[str, Any] = {
        oracle: paired(
            converted(flagged, trial, oracle)[:most][wrong], converted(flagged, reference, oracle)[wrong]
        )
        for oracle in ORACLES
    }
    mine, theirs = _realism(flagged, trial, most), _realism(flagged, reference, most)
    for name in ("precision", "density", "coverage"):
        pair = [None if side is None else side[name]["ratio"] for side in (mine, theirs)]
        known = pair[0] is not None and pair[1] is not None
        result[name] = pair[0]["estimate"] - pair[1]["estimate"] if known else None
    return result
