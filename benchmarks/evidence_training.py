"""Training of the arms for the comparison, and the search of each method's main knob on validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from diffinf.compare.runner import run_arms
from diffinf.config import ClassifierConfig, CompareConfig
from diffinf.evaluate.gain import balanced_accuracy
from diffinf.files import load_tensors, read_json
from diffinf.stages.workspace import Workspace
from evidence_material import read_material
from evidence_results import Trained, read_trained

# The main knob of each method that has one, as many values for all.
GRID: dict[str, tuple[float, ...]] = {
    "gce": (0.3, 0.5, 0.7, 0.9),
    "sce": (0.1, 0.3, 1.0, 3.0),
    "elr": (1.0, 3.0, 5.0, 7.0),
    "aldr-kl": (1.0, 3.0, 10.0, 30.0),
    "co-teaching": (0.1, 0.2, 0.3, 0.4),
    "sam": (0.02, 0.05, 0.1, 0.2),
    "down-weight": (0.1, 0.25, 0.5, 0.75),
}
KNOBS_FILE = Path(__file__).with_name("evidence_knobs.json")


@dataclass(frozen=True)
class Budget:
    """What every arm gets alike.

    Attributes:
        classifier: network and training.
        seeds: trainings of each arm.
        workers: processes at once; None: one a core.
        knobs: main knob by method; a method that is not there has its default.
    """

    classifier: ClassifierConfig
    seeds: int
    workers: int | None = None
    knobs: Mapping[str, float] = field(default_factory=dict)

    def compare(self, arms: Sequence[str]) -> CompareConfig:
        """Settings of the comparison of `arms`."""
        return CompareConfig(arms=list(arms), seeds=self.seeds, workers=self.workers, knobs=dict(self.knobs))


def train_arms(workspace: Workspace, arms: Sequence[str], budget: Budget, folder: Path) -> Trained:
    """Train the arms on what the run left, in `folder`, or go on with it; their predictions of test and validation."""
    table = run_arms(
        **read_material(workspace, arms, folder),
        config=budget.classifier,
        compare=budget.compare(arms),
        directory=folder / "arms",
    )
    return read_trained(folder / "arms", table, workspace.labels.numpy())


def tune(
    workspace: Workspace, methods: Sequence[str], budget: Budget, folder: Path, classes: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Train each method with one seed at each value of its grid: method -> value -> figure on validation.

    The figure is balanced accuracy over `classes`, labels as given. The validation images take the place of the
    test images: of the test split nothing is predicted. A training that diverges has no figure.
    """
    material = read_material(workspace, methods, folder)
    for name in ("images", "labels"):
        material[f"{name}_test"] = material.pop(f"{name}_validation")
    labels = material["labels_test"].numpy()
    figures: dict[str, dict[str, float]] = {method: {} for method in methods}
    for step in range(len(next(iter(GRID.values())))):
        knobs = {method: GRID[method][step] for method in methods}
        places = folder / "tune" / f"{step}"
        compare = replace(budget, seeds=1, knobs=knobs).compare(methods)
        table = run_arms(**material, config=budget.classifier, compare=compare, directory=places)
        for row in table.to_pylist():
            if not row["diverged"]:
                tensors = load_tensors(places / "predictions" / f"{row['arm']}-{row['seed']}.safetensors")
                predictions = tensors["logits"].argmax(1).numpy()
                figures[row["arm"]][f"{knobs[row['arm']]:g}"] = balanced_accuracy(
                    predictions, labels, classes
                )
    return figures


def best_knobs(figures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The value of each method's knob with the best figure; a tie goes to the smaller value."""
    return {
        method: float(max(sorted(values, key=float), key=lambda value: values[value]))
        for method, values in figures.items()
        if values
    }


def read_knobs(path: Path, task: str) -> dict[str, float]:
    """Knobs that were found for a task ("rendered", "photographs"); none where nothing was searched."""
    found = read_json(path) if path.exists() else {}
    return {name: float(value) for name, value in found.get(task, {}).get("knobs", {}).items()}
