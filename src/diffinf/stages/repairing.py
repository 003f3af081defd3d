"""The repair stage: from flags and autoencoder to edits and what the gate says of each."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from diffinf.classify.crossfit import CrossFit, cross_fit, load_crossfit, out_of_fold_logits, write_material
from diffinf.classify.model import to_input
from diffinf.config import RepairConfig
from diffinf.diffusion.interface import load_autoencoder
from diffinf.features.distil import IdentityHead
from diffinf.files import files_sha256, make_directory, read_table, save_tensors, write_json, write_table
from diffinf.influence.self_influence import self_influence
from diffinf.influence.shards import Ranks
from diffinf.repair.attempts import REASONS
from diffinf.repair.batches import forget_models, run_batches
from diffinf.repair.edit import check_noise_levels
from diffinf.repair.gate import influence_limits
from diffinf.repair.objective import CodePrior, MovedCodes, optimise_codes
from diffinf.repair.surrogate import Surrogate, train_surrogate
from diffinf.stages.identifying import IdentityJudge, judge_identity
from diffinf.stages.workspace import Workspace

UNRELIABLE = "class_unreliable"


class Repair:
    """One run of the stage: what its steps share."""

    def __init__(self, workspace: Workspace) -> None:
        """Read scores, autoencoder and cross-fit of the run."""
        self.workspace, self.config = workspace, workspace.config.repair
        self.run, self.device = workspace.run, workspace.device
        self.scratch = self.run.scratch("repair")
        scores = read_table(self.run.scores)
        self.flagged = torch.from_numpy(scores["flagged"].to_numpy().copy())
        self.trust = torch.from_numpy(scores["label_trust"].to_numpy().copy()).float()
        self.rows = torch.nonzero(self.flagged)[:, 0]  # (M,) of the training samples
        self.labels, self.images = workspace.labels, workspace.images
        self.model = load_autoencoder(self.run.autoencoder, self.device)
        check_noise_levels(self.config, self.model.max_depth, self.model.most_steps)
        self.crossfit = load_crossfit(self.run.crossfit)
        self.shares = workspace.class_shares()  # (N, K)
        # What the image appears to show instead of its label: the negative context of the edit.
        others = self.crossfit.logits.scatter(1, self.labels[:, None], -torch.inf)
        self.negative = others.argmax(1)

    @torch.no_grad()
    def codes(self) -> Tensor:
        """Return the normalised codes (N, D) of the training samples, on the CPU."""
        parts = [
            self.model.code(self.model.to_latents(part)).cpu()
            for part in torch.split(self.images, self.model.encode_batch)
        ]
        return torch.cat(parts)

    def moved_codes(self, identity: IdentityJudge) -> Tensor:
        """Train the surrogate and move the flagged samples' codes; return the normalised codes (M, D)."""
        codes = self.codes()
        classes = len(self.workspace.dataset.class_names)
        surrogate, metrics = train_surrogate(
            codes,
            self.labels,
            self.flagged,
            num_classes=classes,
            steps=self.config.surrogate_steps,
            seed=self.workspace.seed,
        )
        save_tensors(self.run.surrogate / "surrogate.safetensors", surrogate.state_dict())
        write_json(self.run.surrogate / "metrics.json", asdict(metrics))
        distilled = identity.distilled_head(codes, self.workspace.seed)
        if distilled is not None:
            save_tensors(self.run.surrogate / "identity_head.safetensors", distilled[0].state_dict())
            write_json(self.run.surrogate / "identity_head.json", asdict(distilled[1]))
        moved = self.move(
            codes,
            surrogate,
            self.config,
            identity_known=identity.own_head or distilled is not None,
            identity_head=None if distilled is None else distilled[0],
        )
        write_json(self.run.repair / "terms.json", moved.summary())
        return moved.code

    def move(
        self,
        codes: Tensor,
        surrogate: Surrogate,
        config: RepairConfig,
        *,
        identity_known: bool,
        identity_head: IdentityHead | None,
    ) -> MovedCodes:
        """Move the flagged among the codes (N, D) by the objective; what `optimise_codes` returns, M rows each."""
        prior = CodePrior.fit(codes, self.labels, self.trust, len(self.workspace.dataset.class_names))
        with torch.enable_grad():
            return optimise_codes(
                self.model.cpu(),
                surrogate,
                prior,
                codes[self.rows],
                self.labels[self.rows],
                config,
                identity_known=identity_known,
                identity_head=identity_head,
            )

    def judge(self, roundtrips: Tensor) -> CrossFit:
        """Cross-fit the judge on originals and round trips, to read what the labels are estimated to have been."""
        second_view = self.images.clone()
        second_view[self.rows] = roundtrips
        seed, directory = self.workspace.seed + 1, self.run.repair / "judge"
        return self._cross_fit("judge", self.images, second_view, self.shares, seed, directory)

    def fit(self, edited: Tensor, accepted: Tensor) -> Tensor:
        """Look at the originals again, knowing the edits: how surely they show their label, (M,).

        A classifier of wrong labels has learned what misled the annotators, such as light or pose. In the repaired
        dataset just such pictures show their label, so that one trained on it has learned less of that. What its folds
        read in the originals is averaged with what the first classifiers do.

        Args:
            edited: uint8 (M, C, H, W), the last attempts.
            accepted: bool (M,), those that passed the gate; of a class that is not edited they count as refused.
        """
        accepted = accepted & ~self.unreliable()[self.labels[self.rows]]
        repaired, shares = self.images.clone(), self.shares.clone()
        changed = self.rows[accepted]
        repaired[changed] = edited[accepted]
        shares[changed] = one_hot(self.labels[changed], shares.shape[1]).float()
        seed, directory = self.workspace.seed + 2, self.scratch / "review"
        review = self._cross_fit("second look", repaired, None, shares, seed, directory)
        fold = review.fold[self.rows]
        logits = out_of_fold_logits(review, self.images[self.rows], fold, device=self.device, tta_flip=True)
        read = (logits.softmax(1) + self.crossfit.fitted[self.rows]) / 2
        return read.gather(1, self.labels[self.rows][:, None])[:, 0]

    def _cross_fit(
        self, what: str, images: Tensor, extra: Tensor | None, targets: Tensor, seed: int, directory: Path
    ) -> CrossFit:
        return cross_fit(
            images,
            self.labels,
            self.workspace.ids,
            spec=self.workspace.spec,
            config=self.workspace.config.classifier,
            folds=self.config.judge_folds,
            seed=seed,
            directory=directory,
            device=self.device,
            workers=self.workspace.config.compare.workers,
            extra_images=extra,
            targets=targets,
            identities=self.workspace.identities,
            description=what,
        )

    def influence(self) -> Tensor:
        """Return the self-influence (N,) of every training sample under the scorer that never saw it."""
        result = torch.empty(len(self.labels))
        models = self.crossfit.models(self.device)
        for k, model in enumerate(models):
            rows = torch.nonzero(self.crossfit.fold == k)[:, 0]
            values = self_influence(
                [(model, 1.0)],
                self.images[rows],
                self.labels[rows],
                to_input=to_input,
                scope=self.workspace.config.influence.scope,
                loss=self.workspace.config.classifier.loss,
                device=self.device,
                ranks=Ranks(),  # the run's leader repairs alone
                description=f"self-influence for the gate, fold {k + 1} of {len(models)}",
            )
            result[rows] = torch.from_numpy(values).float()
        return result

    def unreliable(self) -> Tensor:
        """Return bool (K,): classes with too few samples whose label is more likely right than wrong."""
        trusted = self.labels[self.trust >= 0.5]
        counts = torch.bincount(trusted, minlength=len(self.workspace.dataset.class_names))
        return counts < self.config.trusted_minimum


def repair_run(workspace: Workspace) -> None:
    """Write repair/ (attempts, pictures, codes, hashes of the models) and surrogate/."""
    forget_models()
    repair = Repair(workspace)
    run, rows = repair.run, repair.rows
    if not len(rows):
        make_directory(run.surrogate)  # none was trained
        _write(repair, None)
        return
    workers = workspace.config.compare.workers
    common: dict[str, Any] = {"config": repair.config, "device": repair.device, "workers": workers}
    settings = {"autoencoder": str(run.autoencoder), "repair": str(run.repair), "scorers": str(run.crossfit)}
    identity = judge_identity(workspace, repair.scratch)
    moved = repair.moved_codes(identity)
    material = {
        "images": repair.images[rows],
        "labels": repair.labels[rows],
        "shown": one_hot(repair.negative[rows], len(workspace.dataset.class_names)).float(),
        "score_fold": repair.crossfit.fold[rows],
        "code": moved,
    }
    write_material(repair.scratch / "material", **material)
    apart = run_batches(
        "take_apart_job", repair.scratch, len(rows), description="invert", settings=settings, **common
    )
    judge = repair.judge(apart["roundtrip"])
    influence = repair.influence()
    limits = influence_limits(
        influence,
        repair.labels,
        repair.flagged,
        repair.config.influence_quantile,
        len(workspace.dataset.class_names),
    )
    unreliable = [workspace.dataset.class_names[int(k)] for k in torch.nonzero(repair.unreliable())[:, 0]]
    gate = {
        "scope": workspace.config.influence.scope,
        "loss": workspace.config.classifier.loss,
        "influence_limits": [
            x if math.isfinite(x) else None for x in limits.tolist()
        ],  # JSON has no infinity
        "identity_threshold": identity.threshold,
        "identity": identity.figures,
        "unreliable_classes": unreliable,
    }
    write_json(run.repair / "gate.json", gate)
    write_material(repair.scratch / "material", judge_fold=judge.fold[rows])
    edited = run_batches(
        "edit_job", repair.scratch, len(rows), description="edit and gate", settings=settings, **common
    )
    before = out_of_fold_logits(judge, repair.images[rows], judge.fold[rows], device=repair.device).softmax(1)
    label_fit = torch.full((len(rows),), torch.nan)
    if repair.config.spare:
        label_fit = repair.fit(edited["edited"], edited["reason"] == 0)
    found = {
        **edited,
        "roundtrip": apart["roundtrip"],
        "error": apart["error"],
        "judge_before": before.gather(1, repair.labels[rows][:, None])[:, 0],
        "influence_before": influence[rows],
        "label_fit": label_fit,
        "code_before": apart["code"],
        "code_after": moved,
    }
    _write(repair, found)


def _write(repair: Repair, found: dict[str, Tensor] | None) -> None:
    """Write what became of every flagged sample at the gate; `found` is None when nothing was flagged."""
    workspace, run, rows = repair.workspace, repair.run, repair.rows
    dataset = workspace.dataset
    if found is None:
        empty = repair.images[:0]
        found = {name: torch.empty(0) for name in ("reason", "strength", "judge", "identity", "influence")}
        found |= {name: torch.empty(0) for name in ("error", "judge_before", "influence_before")}
        found |= {name: torch.empty(0) for name in ("code_similarity", "label_fit")}
        found |= {"edited": empty, "roundtrip": empty}
        found |= {name: torch.empty(0, 0) for name in ("code_before", "code_after")}
    blocked = repair.unreliable()[repair.labels[rows]]
    reasons = [
        UNRELIABLE if stop else REASONS[int(code)]
        for stop, code in zip(blocked.tolist(), found["reason"].tolist(), strict=True)
    ]
    ids = workspace.ids[rows.numpy()]
    names = np.array(dataset.class_names)
    likeliest = repair.crossfit.logits[rows].argmax(1)
    columns = {
        "id": pa.array(ids, pa.string()),
        "target": pa.array([""] * len(rows), pa.string()),
        "label": pa.array(names[repair.labels[rows].numpy()], pa.string()),
        "appears": pa.array(names[repair.negative[rows].numpy()], pa.string()),
        "likeliest": pa.array(names[likeliest.numpy()], pa.string()),
        "label_trust": pa.array(repair.trust[rows].tolist(), pa.float64()),
        "label_fit": pa.array(_known(found["label_fit"]), pa.float64()),
        "reason": pa.array(reasons, pa.string()),
        "strength": pa.array(found["strength"].tolist(), pa.float64()),
        "judge_before": pa.array(found["judge_before"].tolist(), pa.float64()),
        "judge_after": pa.array(found["judge"].tolist(), pa.float64()),
        "influence_before": pa.array(found["influence_before"].tolist(), pa.float64()),
        "influence_after": pa.array(found["influence"].tolist(), pa.float64()),
        "identity_similarity": pa.array(_known(found["identity"]), pa.float64()),
        "code_similarity": pa.array(found["code_similarity"].tolist(), pa.float64()),
        "roundtrip_error": pa.array(found["error"].tolist(), pa.float64()),
        "source_sha256": pa.array(
            [dataset.source_sha256(int(workspace.rows[row])) for row in rows.tolist()], pa.string()
        ),
    }
    pictures = {"original": repair.images[rows], "roundtrip": found["roundtrip"], "edited": found["edited"]}
    save_tensors(run.repair / "pictures.safetensors", pictures)
    codes = {"before": found["code_before"], "after": found["code_after"]}
    save_tensors(run.repair / "codes.safetensors", codes, {"ids": json.dumps(ids.tolist())})
    write_json(run.repair / "models.json", _models(repair))
    write_table(run.attempts, pa.table(columns), dataset.class_names)


def _known(values: Tensor) -> list[float | None]:
    """Return values (M,), None for NaN."""
    return [None if np.isnan(value) else value for value in values.tolist()]


def _models(repair: Repair) -> dict[str, str | None]:
    """Hashes of the weights that took part, by role."""
    run = repair.run
    return {
        "autoencoder": files_sha256(run.autoencoder, "**/*.safetensors"),
        "classifier": files_sha256(run.classifier, "model.safetensors"),
        "scorers": files_sha256(run.crossfit, "fold-*/model.safetensors"),
        "judges": files_sha256(run.repair / "judge", "fold-*/model.safetensors"),
        "surrogate": files_sha256(run.surrogate, "surrogate.safetensors"),
        "identity_embedder": files_sha256(run.repair / "identity", "**/*.safetensors"),
    }
