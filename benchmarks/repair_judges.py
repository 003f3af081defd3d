"""Judges that were trained on the truth and took no part in the repair: what an image shows, and its factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from diffinf.classify.crossfit import out_of_fold_logits
from diffinf.classify.model import (
    SMALL_CNN,
    create_classifier,
    load_classifier,
    predict,
    save_classifier,
    to_input,
)
from diffinf.config import RepairConfig
from diffinf.data.rendered.factors import FaceFactors
from diffinf.data.rendered.render import render_faces
from diffinf.data.rendered.sample import sample_faces
from diffinf.data.rendered.tasks import true_labels
from diffinf.diffusion.interface import Autoencoder
from diffinf.evaluate.realism import matched_rows, relative_realism
from diffinf.files import read_json, stage_key, write_json
from diffinf.repair.edit import take_apart
from diffinf.stages.measure import fit_oracle
from diffinf.stages.workspace import Workspace
from diffinf.training.loop import batch_indices, fit, step_seed, warmup_cosine
from repair_measures import Floats, Ints

FEATURES = "the oracle's penultimate layer"
ORACLES = ("oracle", "balanced oracle")


class Oracle:
    """Reads classes; out of fold, plainly, and with the shares of the true classes taken out of its logits.

    The labels that are flagged are distributed otherwise than the truth: an oracle that leans to frequent classes
    reads too few edits to rare ones as what they show.
    """

    def __init__(self, workspace: Workspace, truth: Ints, directory: Path) -> None:
        """Cross-fit it on the truth (N,) of originals and unedited round trips, or read it from `directory`."""
        self.workspace, self.truth = workspace, truth
        self.fitted = fit_oracle(workspace, torch.from_numpy(truth), directory)
        shares = torch.from_numpy(
            np.bincount(truth, minlength=len(workspace.dataset.class_names)) / len(truth)
        )
        # A class that nobody truly shows was never learned, and is not to be read.
        self.prior = torch.where(shares > 0, shares.log(), torch.inf).float()

    def _variants(self, logits: Tensor) -> dict[str, Ints]:
        adjusted = logits - self.prior
        return dict(zip(ORACLES, (logits.argmax(1).numpy(), adjusted.argmax(1).numpy()), strict=True))

    def read(self, images: Tensor, rows: Ints) -> dict[str, Ints]:
        """Classes (M,) read in uint8 images (M, C, H, W) of the training samples `rows` (M,), by each oracle."""
        if not len(images):
            return {name: np.zeros(0, dtype=np.int64) for name in ORACLES}
        fold = self.fitted.fold[rows]
        return self._variants(out_of_fold_logits(self.fitted, images, fold, device=self.workspace.device))

    def quality(self) -> dict[str, Any]:
        """Accuracy and recalls on the originals, out of fold."""
        names, result = self.workspace.dataset.class_names, {}
        for oracle, read in self._variants(self.fitted.logits).items():
            right = read == self.truth
            recall = {
                name: float(right[self.truth == k].mean()) if (self.truth == k).any() else None
                for k, name in enumerate(names)
            }
            known = [value for value in recall.values() if value is not None]
            result[oracle] = {
                "accuracy": float(right.mean()),
                "balanced_accuracy": float(np.mean(known)),
                "recall": recall,
                "n": len(right),
            }
        return result

    @cached_property
    def _held_out(self) -> tuple[list[Floats], Ints]:
        """Features of the test images under the model of each fold, and their true classes."""
        dataset, device = self.workspace.dataset, self.workspace.device
        rows, truth = dataset.rows("test"), dataset.truth_labels()
        assert truth is not None, "the training samples' truth is known"
        if not len(rows):
            return [], truth[rows]
        images = self.workspace.images_of(rows)
        models = self.fitted.models(device)
        return [predict(model, images, device=device)[0].numpy() for model in models], truth[rows]

    def realism(self, images: Tensor, rows: Ints, labels: Ints) -> dict[str, Any] | None:
        """Realism of edits, uint8 (A, C, H, W), of training samples `rows` (A,) that should show `labels` (A,).

        Against held-out images truly of that class, relative to as many real ones. Each edit is seen by the oracle's
        model that never saw its original; edits and references are compared within class and model. None where there
        is too little to compare.
        """
        held_out, truth = self._held_out
        if not len(images) or not held_out:
            return None
        names, folds, classes = self.workspace.dataset.class_names, len(held_out), len(self.prior)
        fold = self.fitted.fold[rows].numpy()
        features = np.zeros((len(images), held_out[0].shape[1]), dtype=np.float32)
        for k, model in enumerate(self.fitted.models(self.workspace.device)):
            if (mine := np.flatnonzero(fold == k)).size:
                features[mine] = predict(model, images[mine], device=self.workspace.device)[0].numpy()
        groups, references = (
            fold * classes + labels,
            np.concatenate([truth + k * classes for k in range(folds)]),
        )
        known = np.concatenate(held_out)
        own, other, real = matched_rows(groups, references)

        def measured(wanted: int | None) -> dict[str, Any] | None:
            parts = [
                part if wanted is None else part[labelled[part] % classes == wanted]
                for part, labelled in ((own, groups), (other, references), (real, references))
            ]
            try:
                found = relative_realism(
                    features[parts[0]],
                    known[parts[1]],
                    known[parts[2]],
                    edited_labels=groups[parts[0]],
                    reference_labels=references[parts[1]],
                    real_sample_labels=references[parts[2]],
                )
            except ValueError:  # nothing to measure against
                return None
            return found.to_dict()["overall"]

        overall = measured(None)
        by_class = {name: measured(k) for k, name in enumerate(names)}
        return {"features": FEATURES, "overall": overall, "by_class": by_class}


@dataclass(frozen=True)
class Lesson:
    """How a `FactorReader` is trained: on how many faces and persons, how many of them as unedited round trips too."""

    faces: int = 20_000
    persons: int = 2500
    roundtrips: int = 4000
    steps: int = 2500
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    seed: int = 1_000_000  # beyond those of datasets


READER = Lesson()


class FactorReader:
    """Reads the factors of rendered faces; trained on faces of other persons, that are rendered for it.

    Of those there are as many as one likes; cross-fitted on the dataset it would have half of that.
    """

    def __init__(
        self, workspace: Workspace, model: Autoencoder, names: Sequence[str], directory: Path
    ) -> None:
        """Train it to read the factors `names` (F,), or read it from `directory`."""
        self.workspace, self.model, self.names = workspace, model, list(names)
        lesson = READER
        key = stage_key(
            "factors", workspace.run.key("train-autoencoder"), self._repair(), asdict(lesson), self.names
        )
        done = directory / "reader.json"
        if not done.exists() or read_json(done)["key"] != key:
            done.unlink(missing_ok=True)
            mean, scale = self._train(lesson, directory)
            write_json(done, {"key": key, "mean": mean.tolist(), "scale": scale.tolist()})
        found = read_json(done)
        self.mean, self.scale = np.array(found["mean"]), np.array(found["scale"])
        self.network = load_classifier(directory, workspace.device)[0]

    def _repair(self) -> dict[str, Any]:
        """The settings that a round trip hangs on."""
        names = ("diffusion_steps", "inversion_steps", "depth")
        return {name: getattr(self.workspace.config.repair, name) for name in names}

    def _train(self, lesson: Lesson, directory: Path) -> tuple[Floats, Floats]:
        """Train and save the network; return mean and spread (F,) of the factors it was trained on."""
        workspace = self.workspace
        factors, _ = sample_faces(lesson.faces, lesson.seed, "expression", identities=lesson.persons)
        images = torch.from_numpy(render_faces(factors, workspace.dataset.image_size))
        truth = true_labels(factors, "expression")[: lesson.roundtrips]
        shown = one_hot(torch.from_numpy(truth), len(workspace.dataset.class_names)).float()
        some = images[: lesson.roundtrips]
        pool = torch.cat([images, roundtrips(self.model, some, shown, workspace.config.repair)])
        values = factor_values(factors, self.names)
        mean, scale = values.mean(axis=0), values.std(axis=0)
        wanted = torch.from_numpy((values - mean) / np.where(scale > 0, scale, 1)).float()
        spec = replace(workspace.spec, name=SMALL_CNN, num_classes=len(self.names), class_names=())
        model = create_classifier(spec, lesson.seed).to(workspace.device).train()
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=lesson.learning_rate, weight_decay=lesson.weight_decay
        )

        def step(index: int) -> dict[str, float]:
            at = batch_indices(len(pool), lesson.batch_size, lesson.seed, index)
            with torch.random.fork_rng():  # dropout takes no generator
                torch.manual_seed(step_seed(lesson.seed, "factor dropout", index))
                read = model(to_input(pool[at], workspace.device))
            loss = (read - wanted[at % len(images)].to(workspace.device)).square().mean()
            for group in optimizer.param_groups:
                group["lr"] = lesson.learning_rate * warmup_cosine(index, lesson.steps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            return {"loss": loss.item()}

        fit(step, steps=lesson.steps, state={"model": model, "optimizer": optimizer}, description="factors")
        save_classifier(directory, model, spec)
        return mean, scale

    def read(self, images: Tensor) -> Floats:
        """Factors (M, F) read in uint8 images (M, C, H, W) of persons that it was not trained on."""
        if not len(images):
            return np.zeros((0, len(self.names)))
        found: Floats = predict(self.network, images, device=self.workspace.device)[1].double().numpy()
        return found * self.scale + self.mean


def factor_values(factors: FaceFactors, names: Sequence[str]) -> Floats:
    """Return the factors `names` (F,) of N faces, (N, F)."""
    return np.stack([getattr(factors, name) for name in names], axis=1).astype(np.float64)


def roundtrips(model: Autoencoder, images: Tensor, shown: Tensor, config: RepairConfig) -> Tensor:
    """Return unedited round trips, uint8 (N, C, H, W), of images that show the classes `shown` (N, K), on the CPU."""
    pairs = zip(torch.split(images, config.batch_size), torch.split(shown, config.batch_size), strict=True)
    parts = [
        take_apart(model, some.to(model.device), classes.to(model.device), config) for some, classes in pairs
    ]
    return torch.cat([part.roundtrip.cpu() for part in parts])
