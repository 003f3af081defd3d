"""Judges that were trained on the truth and took no part in the repair: what an image shows, and its factors."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffinf.classify.crossfit import fold_assignment, out_of_fold_logits
from diffinf.classify.model import create_classifier, load_classifier, predict, save_classifier, to_input
from diffinf.evaluate.realism import matched_rows, relative_realism
from diffinf.files import load_tensors, read_json, read_table, stage_key, write_json
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


class FactorReader:
    """Reads the factors of rendered faces; cross-fitted by person on true factors, as the oracle is on classes."""

    def __init__(self, workspace: Workspace, values: Floats, directory: Path) -> None:
        """Train it on factors (N, F) of originals and unedited round trips, or read it from `directory`."""
        self.workspace, self.values = workspace, values
        self.mean, self.scale = values.mean(axis=0), values.std(axis=0)
        self.fold = fold_assignment(
            workspace.ids, workspace.labels.numpy(), 2, workspace.seed, workspace.identities
        )
        config = workspace.config.classifier
        key = stage_key("factors", workspace.run.key("repair"), config.steps, values.shape[1])
        done = directory / "key.json"
        if not done.exists() or read_json(done) != key:
            self._train(directory)
            write_json(done, key)
        self.models = [load_classifier(directory / f"fold-{k}", workspace.device)[0] for k in range(2)]

    def _train(self, directory: Path) -> None:
        workspace, config = self.workspace, self.workspace.config.classifier
        rows = workspace.rows_of(read_table(workspace.run.edits)["id"].to_pylist())
        second = workspace.images.clone()
        second[rows] = load_tensors(workspace.run.repair / "pictures.safetensors")["roundtrip"]
        pool = torch.cat([workspace.images, second])
        wanted = torch.from_numpy((self.values - self.mean) / np.where(self.scale > 0, self.scale, 1)).float()
        for k in range(2):
            kept = torch.from_numpy(np.flatnonzero(self.fold != k))
            spec = replace(workspace.spec, name="small_cnn", num_classes=wanted.shape[1], class_names=())
            seed = workspace.seed + 3 + k
            model = create_classifier(spec, seed).to(workspace.device).train()
            optimizer = torch.optim.AdamW(
                model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
            )
            views = torch.cat([kept, kept + len(second)])

            def step(
                index: int,
                model: Any = model,
                optimizer: Any = optimizer,
                views: Tensor = views,
                seed: int = seed,
            ) -> dict[str, float]:
                at = views[batch_indices(len(views), config.batch_size, seed, index)]
                with torch.random.fork_rng():  # dropout takes no generator
                    torch.manual_seed(step_seed(seed, "factor dropout", index))
                    read = model(to_input(pool[at], workspace.device))
                loss = (read - wanted[at % len(second)].to(workspace.device)).square().mean()
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate * warmup_cosine(index, config.steps)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                return {"loss": loss.item()}

            state = {"model": model, "optimizer": optimizer}
            fit(step, steps=config.steps, state=state, description=f"factors, fold {k}")
            save_classifier(directory / f"fold-{k}", model, spec)

    def read(self, images: Tensor, rows: Ints) -> Floats:
        """Factors (M, F) read in uint8 images (M, C, H, W) of training samples `rows` (M,), out of fold."""
        result = np.zeros((len(images), self.values.shape[1]))
        for k, model in enumerate(self.models):
            if (mine := np.flatnonzero(self.fold[rows] == k)).size:
                read = predict(model, images[mine], device=self.workspace.device)[1].double().numpy()
                result[mine] = read * self.scale + self.mean
        return result
