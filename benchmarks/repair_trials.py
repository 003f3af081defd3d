"""Edits of flagged samples again under other settings, behind the gate of the run, and what they cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from diffinf.classify.crossfit import load_crossfit
from diffinf.config import RepairConfig
from diffinf.data.dataset import open_dataset
from diffinf.diffusion.interface import Autoencoder, load_autoencoder
from diffinf.errors import UserError
from diffinf.evaluate.conversion import conversion
from diffinf.files import load_tensors, read_json, read_table
from diffinf.repair.attempts import edit_batch
from diffinf.repair.edit import decode_edit, keep_unchanged, take_apart
from diffinf.repair.editors import Wish
from diffinf.repair.gate import Gate, load_gate
from diffinf.run import Run
from diffinf.stages.workspace import Workspace
from repair_judges import ORACLES, Oracle, roundtrips
from repair_measures import Bools, Floats, Ints, chosen, in_half, mean_or_none, share


class Flagged:
    """The flagged samples of a repaired run with their truth; M rows in the order of edits.parquet.

    Attributes:
        rows: (M,) positions among the training samples.
        labels: (M,) as annotated; `wrong` (M,) whether the truth differs.
        shown: (M, K) what each appears to show instead.
        pictures: "original", "roundtrip", "edited", uint8 (M, C, H, W).
        counted: (M,) those that figures are taken on.
    """

    def __init__(self, run: Run, out: Path, half: str = "all") -> None:
        """Read the run; the oracle goes to `out`.

        Raises:
            UserError: the truth is not known, or nothing was flagged.
        """
        config = run.config
        self.run, self.out = run, out
        self.workspace = Workspace(run, open_dataset(config.dataset, config.data, seed=config.seed))
        truth = self.workspace.truth()
        if truth is None:
            raise UserError(
                f"{config.dataset}: no column truth_label; a repair is measured against the truth"
            )
        self.truth, self.edits = truth, read_table(run.edits).to_pylist()
        self.ids = [row["id"] for row in self.edits]
        names = self.workspace.dataset.class_names
        self.rows = self.workspace.rows_of(self.ids)
        self.labels = self.workspace.labels.numpy()[self.rows]
        self.wrong = truth[self.rows] != self.labels
        self.pictures = load_tensors(run.repair / "pictures.safetensors")
        self.counted = in_half(self.ids, half)
        if not self.counted.any():
            raise UserError(f"{run.path}: no flagged sample to measure; flag more, or choose --half all")
        appears = torch.tensor([names.index(row["appears"]) for row in self.edits])
        self.shown = one_hot(appears, len(names)).float()

    @cached_property
    def oracle(self) -> Oracle:
        """The oracle of this dataset."""
        return Oracle(self.workspace, self.truth, self.out / "oracle")

    @cached_property
    def model(self) -> Autoencoder:
        """The run's autoencoder, on the device of the settings."""
        return load_autoencoder(self.run.autoencoder, self.workspace.device)

    @cached_property
    def codes(self) -> dict[str, Tensor]:
        """Codes "before" and "after" the objective moved them, (M, D)."""
        return load_tensors(self.run.repair / "codes.safetensors")

    @cached_property
    def folds(self) -> tuple[Tensor, Tensor]:
        """Which judge and which scorer was not trained on a sample, (M,) each."""
        judges, scorers = (
            load_crossfit(path).fold[self.rows] for path in (self.run.repair / "judge", self.run.crossfit)
        )
        return judges, scorers

    def gate(self, config: RepairConfig) -> Gate:
        """The gate of the run under `config`."""
        return load_gate(self.run.repair, self.run.crossfit, config, self.workspace.device)

    def sample(self, most: int) -> Ints:
        """At most `most` positions among the counted, by the hash of the id."""
        counted = np.flatnonzero(self.counted)
        return counted[chosen([self.ids[row] for row in counted], most)]


@dataclass
class Calls:
    """Rows given to the network by each call, and to the guide; the largest call, to be made again."""

    rows: list[int] = field(default_factory=list)
    guide: int = 0
    largest: tuple[Tensor, Tensor, Tensor] | None = None


@contextmanager
def counted(model: Autoencoder) -> Iterator[Calls]:
    """Count what is asked of `model` inside the block."""
    calls, predict, guide = Calls(), model.predict, model.guide_logits

    def counting(noisy: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        calls.rows.append(len(noisy))
        if calls.largest is None or len(noisy) > len(calls.largest[0]):
            calls.largest = noisy.detach(), timestep, context.detach()
        return predict(noisy, timestep, context)

    def counting_guide(latents: Tensor) -> Tensor:
        calls.guide += len(latents)
        return guide(latents)

    model.predict, model.guide_logits = counting, counting_guide  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        del model.predict, model.guide_logits  # those of the class are visible again


@dataclass(frozen=True)
class Trial:
    """What became of S flagged samples under some settings.

    Attributes:
        samples: (S,) positions among the flagged.
        found: what `edit_batch` returns, (S, ...).
        roundtrip: uint8 (S, C, H, W).
        whole: uint8 (S, C, H, W), the edit at strength 1, whatever the gate says.
        evaluations: (S,) rows given to the network, back-off decodes counted.
        guide: the same for the guide, a sample on average.
        seconds: of taking apart, editing and gating, all samples.
        bare: seconds of the same network evaluations alone, where they were timed.
    """

    samples: Ints
    found: dict[str, Tensor]
    roundtrip: Tensor
    whole: Tensor
    evaluations: Floats
    guide: float
    seconds: float
    bare: float | None

    @property
    def accepted(self) -> Bools:
        """Whether the edit passed the gate, (S,)."""
        return self.found["reason"].numpy() == 0


def attempt(
    flagged: Flagged,
    samples: Ints,
    config: RepairConfig,
    moved: Tensor | None = None,
    *,
    timed: bool = False,
) -> Trial:
    """Take samples apart, edit and gate them under `config`.

    Args:
        flagged: the run.
        samples: (S,) positions among the flagged.
        config: settings of the repair.
        moved: codes (S, D) at full strength; by default those of the run.
        timed: time the same network evaluations alone too.
    """
    gate = flagged.gate(config)
    moved = flagged.codes["after"][samples] if moved is None else moved
    threads = torch.get_num_threads()
    if flagged.workspace.device.type == "cpu":
        torch.set_num_threads(1)  # as the workers of a run
    try:
        parts = [
            _attempt_batch(flagged, gate, samples[start:stop], moved[start:stop], config, timed)
            for start in range(0, len(samples), config.batch_size)
            for stop in (start + config.batch_size,)
        ]
    finally:
        torch.set_num_threads(threads)
    return Trial(
        samples,
        {name: torch.cat([part.found[name] for part in parts]) for name in parts[0].found},
        torch.cat([part.roundtrip for part in parts]),
        torch.cat([part.whole for part in parts]),
        np.concatenate([part.evaluations for part in parts]),
        sum(part.guide * len(part.samples) for part in parts) / len(samples),
        sum(part.seconds for part in parts),
        sum(part.bare or 0.0 for part in parts) if timed else None,
    )


def _attempt_batch(
    flagged: Flagged, gate: Gate, samples: Ints, moved: Tensor, config: RepairConfig, timed: bool
) -> Trial:
    model, device = flagged.model, flagged.workspace.device
    images = flagged.pictures["original"][samples].to(device)
    shown, labels = flagged.shown[samples].to(device), torch.from_numpy(flagged.labels[samples]).to(device)
    wish = Wish(moved.to(device), labels, shown)
    judges, scorers = (fold[samples].to(device) for fold in flagged.folds)
    _bare(model, Calls([len(images)], 0, _example(model, images, shown)))  # the first call is slower
    start = _now(device)
    with counted(model) as before:
        parts = take_apart(model, images, shown, config)
    with counted(model) as during:
        found = edit_batch(model, gate, images, parts, wish, judges, scorers, config)
    seconds = _now(device) - start
    bare = None
    if timed:
        start = _now(device)
        _bare(model, before)
        _bare(model, during)
        bare = _now(device) - start
    attempts = found["attempts"].numpy()
    # Every attempt at any image asks the network for as many rows.
    each = attempts * (sum(during.rows) / attempts.sum()) + sum(before.rows) / len(images)
    decoded = decode_edit(model, parts, wish, 1.0, config)
    whole = keep_unchanged(images, parts.roundtrip, decoded, config).cpu()
    return Trial(
        samples, found, parts.roundtrip.cpu(), whole, each, during.guide / len(images), seconds, bare
    )


def _example(model: Autoencoder, images: Tensor, shown: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        latents = model.to_latents(images)
        context = model.context(model.code(latents), shown)
    return latents, torch.zeros(len(latents), dtype=torch.long, device=latents.device), context


@torch.no_grad()
def _bare(model: Autoencoder, calls: Calls) -> None:
    """Ask the network as often, for as many rows, and do nothing else."""
    if calls.largest is None:
        return
    for rows in calls.rows:
        model.predict(*(argument[:rows] for argument in calls.largest))


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def converted(flagged: Flagged, trial: Trial, oracle: str = ORACLES[0]) -> Bools:
    """Which samples (S,) end accepted and read as their label; the gate has judged identity."""
    read = flagged.oracle.read(trial.found["edited"], flagged.rows[trial.samples])[oracle]
    return trial.accepted & (read == flagged.labels[trial.samples])


def figures(flagged: Flagged, trial: Trial) -> dict[str, Any]:
    """What a row of any table says of a trial; conversion is taken at the gate, without the second look."""
    samples, rows = trial.samples, flagged.rows[trial.samples]
    labels, wrong = flagged.labels[samples], flagged.wrong[samples]
    original = flagged.pictures["original"][samples]
    views = {"original": original, "roundtrip": trial.roundtrip, "edited": trial.found["edited"]}
    read = {name: flagged.oracle.read(images, rows) for name, images in views.items()}
    whole = flagged.oracle.read(trial.whole, rows)
    threshold = read_json(flagged.run.repair / "gate.json")["identity_threshold"]
    change = (trial.found["edited"].float() - original.float()).abs().mean((1, 2, 3)).numpy() / 127.5
    return {
        "conversion": {
            oracle: conversion(
                wrong=wrong,
                accepted=trial.accepted,
                judged_edited=read["edited"][oracle],
                judged_original=read["original"][oracle],
                judged_roundtrip=read["roundtrip"][oracle],
                labels=labels,
                identity_similarity=None if threshold is None else trial.found["identity"].numpy(),
                identity_threshold=threshold,
            ).to_dict()
            for oracle in ORACLES
        },
        "reads_label_at_strength_1": {
            oracle: share(whole[oracle][wrong] == labels[wrong]) for oracle in ORACLES
        },
        "accepted": share(trial.accepted),
        "mean_change": mean_or_none(change[trial.accepted]),
        "evaluations": {"mean": float(trial.evaluations.mean()), "max": float(trial.evaluations.max())},
        "guide_evaluations": trial.guide,
        "seconds_an_image": trial.seconds / len(samples),
        "times_bare_evaluations": None if trial.bare is None else trial.seconds / trial.bare,
        "n": len(samples),
    }


def own_roundtrips(flagged: Flagged, samples: Ints, config: RepairConfig) -> Tensor:
    """Unedited round trips, uint8 (S, C, H, W), of flagged samples under other settings."""
    return roundtrips(flagged.model, flagged.pictures["original"][samples], flagged.shown[samples], config)
