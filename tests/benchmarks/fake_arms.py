"""Stands in for the training of arms: predictions that are right with a given probability, in the runner's files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from diffinf.files import save_tensors, write_json

CLASSES = 5


def fake_logits(labels: np.ndarray, skill: float, seed: int, classes: int = CLASSES) -> torch.Tensor:
    """Logits (T, K) of which a share `skill`, and some by chance, are right."""
    generator = np.random.default_rng(seed)
    known = generator.random(len(labels)) < skill
    guesses = np.where(known, labels, generator.integers(0, classes, len(labels)))
    return torch.from_numpy(
        3 * np.eye(classes)[guesses] + generator.normal(size=(len(labels), classes))
    ).float()


class FakeArms:
    """Call it as `run_arms`; `calls` are the keyword arguments it got.

    Args:
        skills: arm -> share of test images it knows; others know .5.
        on_validation: the same for validation; by default as on test.
        diverged: arms and seeds that diverge.
        seconds: arm -> seconds of a training; others 2.
    """

    def __init__(
        self,
        skills: Mapping[str, float] | None = None,
        on_validation: Mapping[str, float] | None = None,
        diverged: tuple[tuple[str, int], ...] = (),
        seconds: Mapping[str, float] | None = None,
    ) -> None:
        self.skills, self.on_validation = skills or {}, on_validation or {}
        self.diverged, self.seconds = diverged, seconds or {}
        self.calls: list[dict[str, Any]] = []

    def __call__(self, **given: Any) -> pa.Table:
        self.calls.append(given)
        directory: Path = given["directory"]
        test = given["labels_test"].numpy()
        validation = given.get("labels_validation")
        save_tensors(directory / "test.safetensors", {"labels": given["labels_test"]})
        if validation is not None:
            save_tensors(directory / "validation.safetensors", {"labels": validation})
        rows = []
        for arm in given["compare"].arms:
            for seed in range(given["compare"].seeds):
                lost = (arm, seed) in self.diverged
                rows.append(
                    {"arm": arm, "seed": seed, "seconds": self.seconds.get(arm, 2.0), "diverged": lost}
                )
                if lost:
                    continue
                skill = self.skills.get(arm, 0.5)
                tensors = {"logits": fake_logits(test, skill, seed)}
                if validation is not None:
                    known = self.on_validation.get(arm, skill)
                    tensors["validation_logits"] = fake_logits(validation.numpy(), known, 100 + seed)
                path = directory / "predictions" / f"{arm}-{seed}.safetensors"
                save_tensors(path, tensors)
                write_json(path.with_suffix(".json"), {"key": "k", "seconds": 2.0})
        return pa.Table.from_pylist(rows)


def trainings(arms: FakeArms, names: list[str], directory: Path, seeds: int = 3, n: int = 600) -> pa.Table:
    """Let the fake train `names` on labels of its own; its table."""
    labels = np.random.default_rng(7).integers(0, CLASSES, 2 * n)
    return arms(
        compare=SimpleNamespace(arms=names, seeds=seeds),
        directory=directory,
        labels_test=torch.from_numpy(labels[:n]),
        labels_validation=torch.from_numpy(labels[n:]),
    )
