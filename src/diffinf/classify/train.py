"""Training a classifier: resumable, with checkpoints and the logits of every sample over time."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffinf.classify.augment import augment
from diffinf.classify.material import TrainingMaterial, image_digest
from diffinf.classify.methods import Batch, MethodSpec, create_method
from diffinf.classify.model import (
    ClassifierSpec,
    load_classifier,
    load_user_classifier,
    predict,
    save_classifier,
    to_input,
)
from diffinf.config import ClassifierConfig
from diffinf.files import load_tensors, make_directory, read_json, save_tensors, write_json
from diffinf.training.loop import DivergedError, batch_indices, fit, step_generator

__all__ = [
    "DivergedError",
    "image_digest",
    "load_checkpoints",
    "load_dynamics",
    "train_classifier",
    "training_key",
]

_RECORD = "training.json"
_MAX_SNAPSHOTS = 8
_SAVE_EVERY = 200


def train_classifier(
    images: Tensor,
    labels: Tensor,
    *,
    spec: ClassifierSpec,
    config: ClassifierConfig,
    seed: int,
    device: torch.device | str = "cpu",
    weights: Tensor | None = None,
    targets: Tensor | None = None,
    rows: Tensor | None = None,
    method: MethodSpec | None = None,
    directory: Path | None = None,
    record: bool = True,
    progress: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> nn.Module:
    """Train a classifier with AdamW on a warmed-up cosine schedule for `config.steps` steps.

    With a `directory` the training can be killed and called again: on a CPU, with the same number of threads,
    the result is the same to the bit as without the kill. A finished training of the same settings and data
    is loaded. With `config.checkpoint` nothing is trained: the user's classifier is the result.

    Args:
        images: uint8 (M, C, H, W).
        labels: int64 (N,) in 0..K-1; labels[i] belongs to images[rows[i]].
        spec: the network.
        config: its training.
        seed: of initialisation, order, augmentation and dropout.
        device: where to train.
        weights: (N,) weights of the samples' losses, at least 0; they are scaled to mean 1.
        targets: shares of the classes (N, K), rows summing to 1, to learn in the place of the labels.
        rows: int64 (N,) rows of `images`, repeated or left out as you like; None takes each once, so N = M.
        method: a training that bears wrong labels; None: cross-entropy.
        directory: where model, checkpoints, dynamics and the state to resume from go; None keeps all in
            memory.
        record: also write `config.checkpoints` checkpoints and the dynamics: the logits of all N samples
            after each epoch, or at 8 equidistant steps if there are more epochs, without augmentation.
        progress: show a progress bar.
        on_step: called after every step with the number of steps done.

    Returns:
        The classifier on `device`, in evaluation mode.

    Raises:
        DivergedError: the loss became NaN or infinite.
        UserError: only one class is present, or `config.checkpoint` or `spec` does not fit.
        ValueError: shapes do not fit, weights are negative or all zero, or the method does not take targets.
    """
    material = TrainingMaterial.checked(images, labels, weights, rows, spec, targets, method)
    if directory is None:
        if config.checkpoint is not None:
            return load_user_classifier(config.checkpoint, spec, device)
        training = _Training(material, spec, config, seed, device)
        training.run(None, progress, on_step)
        return training.model.eval()
    key = material.key(spec, config, seed, record)
    if (directory / _RECORD).exists() and read_json(directory / _RECORD)["key"] == key:
        return load_classifier(directory, device)[0]
    return _train_into(
        directory,
        key,
        material,
        spec,
        config,
        seed,
        device,
        record=record,
        progress=progress,
        on_step=on_step,
    )


def _train_into(
    directory: Path,
    key: str,
    material: TrainingMaterial,
    spec: ClassifierSpec,
    config: ClassifierConfig,
    seed: int,
    device: torch.device | str,
    *,
    record: bool,
    progress: bool,
    on_step: Callable[[int], None] | None,
) -> nn.Module:
    """Train (or take up the training with the same key) and write the results; the record comes last."""
    make_directory(directory)
    (directory / _RECORD).unlink(missing_ok=True)
    if config.checkpoint is not None:
        model = load_user_classifier(config.checkpoint, spec, device)
        snapshots = _Snapshots(material, [1])
        snapshots.take(1, model, device)
        checkpoints = [{"path": ".", "step": 0, "learning_rate": config.learning_rate}]
    else:
        work = directory / ".work"
        for other in work.glob("*.pt"):
            if other.stem != key[:16]:
                other.unlink()
        training = _Training(material, spec, config, seed, device)
        checkpoints = []
        if record:
            training.record(directory)
            checkpoints = training.checkpoints
        training.run(work / f"{key[:16]}.pt", progress, on_step)
        model, snapshots = training.model.eval(), training.snapshots
    save_classifier(directory, model, spec)
    if record:
        save_tensors(
            directory / "dynamics.safetensors",
            {"logits": torch.stack(snapshots.logits), "steps": torch.tensor(snapshots.steps)},
        )
    write_json(directory / _RECORD, {"key": key, "seed": seed, "checkpoints": checkpoints})
    shutil.rmtree(directory / ".work", ignore_errors=True)
    return model


def load_checkpoints(directory: Path, device: torch.device | str = "cpu") -> list[tuple[nn.Module, float]]:
    """Return the recorded checkpoints, early to late, each with its learning rate, in evaluation mode.

    The learning rate of a checkpoint is the mean over the steps since the one before: the checkpoint stands
    for all of them in the sum over the training (TracIn, arXiv 2002.08484, section 3.3), and the schedule's
    own last value, which is about 0, would silence the last checkpoint.

    Raises:
        UserError: the directory holds no finished training.
    """
    recorded = read_json(directory / _RECORD)["checkpoints"]
    return [
        (load_classifier(directory / entry["path"], device)[0], float(entry["learning_rate"]))
        for entry in recorded
    ]


def load_dynamics(directory: Path) -> Tensor:
    """Return the logits of every training sample over the training, float32 (E, N, K).

    Raises:
        UserError: the directory holds no recorded training.
    """
    return load_tensors(directory / "dynamics.safetensors")["logits"]


def training_key(
    images: Tensor,
    labels: Tensor,
    *,
    spec: ClassifierSpec,
    config: ClassifierConfig,
    seed: int,
    weights: Tensor | None = None,
    targets: Tensor | None = None,
    rows: Tensor | None = None,
    method: MethodSpec | None = None,
    record: bool = True,
) -> str:
    """Return the key of a training: equal for equal settings and data, wherever the images lie in `images`.

    Raises:
        UserError, ValueError: as `train_classifier`, whose arguments these are.
    """
    return TrainingMaterial.checked(images, labels, weights, rows, spec, targets, method).key(
        spec, config, seed, record
    )


@dataclass
class _Snapshots:
    """The samples' logits at given steps; saved with the training's state."""

    material: TrainingMaterial
    at: list[int]
    logits: list[Tensor] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    def take(self, step: int, model: nn.Module, device: torch.device | str) -> None:
        if step in self.at:
            parts = [
                predict(model, self.material.images[rows], device=device)[1]
                for rows in torch.split(self.material.rows, 2048)
            ]
            self.logits.append(torch.cat(parts))
            self.steps.append(step)

    def state_dict(self) -> dict[str, Any]:
        return {"logits": self.logits, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.logits, self.steps = list(state["logits"]), list(state["steps"])


class _Training:
    """One training: network, optimiser, schedule and what is recorded on the way."""

    def __init__(
        self,
        material: TrainingMaterial,
        spec: ClassifierSpec,
        config: ClassifierConfig,
        seed: int,
        device: torch.device | str,
    ) -> None:
        self.material, self.spec, self.config, self.seed = material, spec, config, seed
        self.device = torch.device(device)
        self.method = create_method(material.method, spec, config, seed, self.device, len(material.rows))
        self.network = self.method.network
        self.model = self.network.model
        self.snapshots = _Snapshots(material, [])
        self.checkpoints: list[dict[str, Any]] = []
        self.directory: Path | None = None

    def record(self, directory: Path) -> None:
        """Plan the snapshots and the checkpoints, which go to `directory`."""
        steps = self.config.steps
        epochs = steps * self.config.batch_size / len(self.material.rows)
        count = min(max(1, round(epochs)), _MAX_SNAPSHOTS, steps)
        self.snapshots.at = [round((i + 1) * steps / count) for i in range(count)]
        self.directory = directory
        kept = min(self.config.checkpoints, steps)
        bounds = [round(i * steps / kept) for i in range(kept + 1)]
        self.checkpoints = [
            {
                "path": f"checkpoints/step-{last:06}",
                "step": last,
                "learning_rate": sum(self.network.learning_rate(s) for s in range(first, last))
                / (last - first),
            }
            for first, last in itertools.pairwise(bounds)
        ]

    def run(self, state: Path | None, progress: bool, on_step: Callable[[int], None] | None) -> None:
        """Do all steps, from where the file `state` left off."""

        def step(index: int) -> dict[str, float]:
            loss = self.step(index)
            self.after(index + 1)
            if on_step is not None:
                on_step(index + 1)
            return {"loss": loss}

        fit(
            step,
            steps=self.config.steps,
            state={
                "model": self.model,
                "optimizer": self.network.optimizer,
                "snapshots": self.snapshots,
                **self.method.state(),
            },
            checkpoint=state,
            save_every=_SAVE_EVERY,
            description="train classifier" if progress else None,
        )

    def step(self, index: int) -> float:
        """One optimisation step; everything random in it is a function of (seed, index)."""
        material = self.material
        chosen = batch_indices(len(material.rows), self.config.batch_size, self.seed, index)
        x = to_input(material.images[material.rows[chosen]], self.device)
        if self.config.augment:
            x = augment(x, step_generator(self.seed, "augment", index))
        known = material.labels if material.targets is None else material.targets
        weights = None if material.weights is None else material.weights[chosen].to(self.device)
        return self.method.update(Batch(index, x, known[chosen].to(self.device), chosen, weights))

    def after(self, done: int) -> None:
        """Record what is due after `done` steps."""
        self.snapshots.take(done, self.model, self.device)
        for entry in self.checkpoints:
            if entry["step"] == done and self.directory is not None:
                save_classifier(self.directory / entry["path"], self.model, self.spec)
