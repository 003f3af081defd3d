"""The repair stage: from flags and autoencoder to edits and what the gate says of each."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from diffinf.classify.crossfit import CrossFit, cross_fit, load_crossfit, out_of_fold_logits, write_material
from diffinf.classify.model import to_input
from diffinf.diffusion.interface import load_autoencoder
from diffinf.influence.self_influence import self_influence
from diffinf.influence.shards import Ranks
from diffinf.repair.batches import REASONS, forget_models, run_batches
from diffinf.repair.gate import influence_limits
from diffinf.repair.objective import CodePrior, optimise_codes
from diffinf.repair.surrogate import train_surrogate
from diffinf.run import files_sha256, make_directory, read_table, save_tensors, write_json, write_table
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
        self.crossfit = load_crossfit(self.run.crossfit)
        # What the image appears to show instead of its label: the negative context of the edit.
        others = self.crossfit.logits.scatter(1, self.labels[:, None], -torch.inf)
        self.negative = others.argmax(1)

    def moved_codes(self, identity: IdentityJudge) -> Tensor:
        """Train the surrogate and move the flagged samples' codes; return the normalised codes (M, D)."""
        with torch.no_grad():
            codes = torch.cat(
                [
                    self.model.code(self.model.to_latents(part)).cpu()
                    for part in torch.split(self.images, self.model.encode_batch)
                ]
            )
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
        prior = CodePrior.fit(codes, self.labels, self.trust, classes)
        with torch.enable_grad():
            moved, terms = optimise_codes(
                self.model.cpu(),
                surrogate,
                prior,
                codes[self.rows],
                self.labels[self.rows],
                self.config,
                identity_known=identity.own_head or distilled is not None,
                identity_head=None if distilled is None else distilled[0],
            )
        write_json(self.run.repair / "terms.json", {name: float(term.mean()) for name, term in terms.items()})
        return moved

    def judge(self, roundtrips: Tensor) -> CrossFit:
        """Cross-fit the judge on originals and round trips, each sample counting as its label is trusted."""
        second_view = self.images.clone()
        second_view[self.rows] = roundtrips
        config = self.workspace.config.classifier
        return cross_fit(
            self.images,
            self.labels,
            self.workspace.ids,
            spec=self.workspace.spec,
            config=config,
            folds=self.config.judge_folds,
            seed=self.workspace.seed + 1,
            directory=self.scratch / "judge",
            device=self.device,
            workers=self.workspace.config.compare.workers,
            extra_images=second_view,
            weights=self.trust,
            identities=self.workspace.identities,
        )

    def influence(self) -> Tensor:
        """Return the self-influence (N,) of every training sample under the scorer that never saw it."""
        result = torch.empty(len(self.labels))
        for k, model in enumerate(self.crossfit.models(self.device)):
            rows = torch.nonzero(self.crossfit.fold == k)[:, 0]
            values = self_influence(
                [(model, 1.0)],
                self.images[rows],
                self.labels[rows],
                to_input=to_input,
                scope=self.workspace.config.influence.scope,
                device=self.device,
                ranks=Ranks(),  # the run's leader repairs alone
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
    settings = {"autoencoder": str(run.autoencoder)}
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
    gate = {
        "judges": str(repair.scratch / "judge"),
        "scorers": str(run.crossfit),
        "scope": workspace.config.influence.scope,
        "influence_limits": [
            x if math.isfinite(x) else None for x in limits.tolist()
        ],  # JSON has no infinity
        "identity_threshold": identity.threshold,
        "identity": identity.figures,
    }
    write_json(repair.scratch / "gate.json", gate)
    write_material(repair.scratch / "material", judge_fold=judge.fold[rows])
    edited = run_batches(
        "edit_job", repair.scratch, len(rows), description="edit and gate", settings=settings, **common
    )
    before = out_of_fold_logits(judge, repair.images[rows], judge.fold[rows], device=repair.device).softmax(1)
    found = {
        **edited,
        "roundtrip": apart["roundtrip"],
        "error": apart["error"],
        "judge_before": before.gather(1, repair.labels[rows][:, None])[:, 0],
        "influence_before": influence[rows],
        "code_before": apart["code"],
        "code_after": moved,
    }
    shown = {name: value for name, value in gate.items() if name not in ("judges", "scorers")}
    unreliable = [workspace.dataset.class_names[int(k)] for k in torch.nonzero(repair.unreliable())[:, 0]]
    write_json(run.repair / "gate.json", {**shown, "unreliable_classes": unreliable})
    _write(repair, found)


def _write(repair: Repair, found: dict[str, Tensor] | None) -> None:
    """Write what became of every flagged sample at the gate; `found` is None when nothing was flagged."""
    workspace, run, rows = repair.workspace, repair.run, repair.rows
    dataset = workspace.dataset
    if found is None:
        empty = repair.images[:0]
        found = {name: torch.empty(0) for name in ("reason", "strength", "judge", "identity", "influence")}
        found |= {name: torch.empty(0) for name in ("error", "judge_before", "influence_before")}
        found |= {"code_similarity": torch.empty(0)}
        found |= {"edited": empty, "roundtrip": empty}
        found |= {name: torch.empty(0, 0) for name in ("code_before", "code_after")}
    blocked = repair.unreliable()[repair.labels[rows]]
    reasons = [
        UNRELIABLE if stop else REASONS[int(code)]
        for stop, code in zip(blocked.tolist(), found["reason"].tolist(), strict=True)
    ]
    ids = workspace.ids[rows.numpy()]
    names = np.array(dataset.class_names)
    identity = [None if np.isnan(value) else value for value in found["identity"].tolist()]
    likeliest = repair.crossfit.logits[rows].argmax(1)
    columns = {
        "id": pa.array(ids, pa.string()),
        "target": pa.array([""] * len(rows), pa.string()),
        "label": pa.array(names[repair.labels[rows].numpy()], pa.string()),
        "appears": pa.array(names[repair.negative[rows].numpy()], pa.string()),
        "likeliest": pa.array(names[likeliest.numpy()], pa.string()),
        "label_trust": pa.array(repair.trust[rows].tolist(), pa.float64()),
        "reason": pa.array(reasons, pa.string()),
        "strength": pa.array(found["strength"].tolist(), pa.float64()),
        "judge_before": pa.array(found["judge_before"].tolist(), pa.float64()),
        "judge_after": pa.array(found["judge"].tolist(), pa.float64()),
        "influence_before": pa.array(found["influence_before"].tolist(), pa.float64()),
        "influence_after": pa.array(found["influence"].tolist(), pa.float64()),
        "identity_similarity": pa.array(identity, pa.float64()),
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


def _models(repair: Repair) -> dict[str, str | None]:
    """Hashes of the weights that took part, by role: the judges themselves do not outlive the stage."""
    run, scratch = repair.run, repair.scratch
    return {
        "autoencoder": files_sha256(run.autoencoder, "**/*.safetensors"),
        "classifier": files_sha256(run.classifier, "model.safetensors"),
        "scorers": files_sha256(run.crossfit, "fold-*/model.safetensors"),
        "judges": files_sha256(scratch / "judge", "fold-*/model.safetensors"),
        "surrogate": files_sha256(run.surrogate, "surrogate.safetensors"),
        "identity_embedder": files_sha256(scratch / "identity", "**/*.safetensors"),
    }
