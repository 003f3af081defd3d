"""The compare stage: the arms out of the run's files, their training, the retrained classifier."""

from __future__ import annotations

import numpy as np
import torch

from diffinf.compare.runner import run_arms
from diffinf.errors import UserError
from diffinf.run import load_tensors, read_table, write_json
from diffinf.stages.workspace import Workspace


def compare_run(workspace: Workspace) -> None:
    """Write compare.parquet, compare/ and classifier/final/."""
    run, config, dataset = workspace.run, workspace.config, workspace.dataset
    scores, edits = read_table(run.scores), read_table(run.edits)
    code_of = {name: code for code, name in enumerate(dataset.class_names)}
    rows, statuses = workspace.rows_of(edits["id"].to_pylist()), edits["status"].to_pylist()
    having = {
        status: [(m, int(row)) for m, row in enumerate(rows) if statuses[m] == status]
        for status in ("edited", "relabelled", "dropped")
    }
    new_labels = edits["new_label"].to_pylist()
    pictures = load_tensors(run.repair / "pictures.safetensors")
    test = dataset.rows("test")
    run_arms(
        images_train=workspace.images,
        labels_train=workspace.labels,
        ids=workspace.ids,
        flagged=scores["flagged"].to_numpy(),
        appears=np.array([code_of[name] for name in scores["appears"].to_pylist()], dtype=np.int64),
        edited_images={row: pictures["edited"][m] for m, row in having["edited"]},
        relabelled={row: code_of[new_labels[m]] for m, row in having["relabelled"]},
        dropped={row for _, row in having["dropped"]},
        roundtrip_images={int(row): pictures["roundtrip"][m] for m, row in enumerate(rows)},
        images_test=workspace.images_of(test),
        labels_test=torch.from_numpy(dataset.labels[test]),
        spec=workspace.spec,
        config=config.classifier,
        compare=config.compare,
        seed=workspace.seed,
        device=workspace.device,
        directory=run.compare,
        truth=_truth(workspace),
        final_directory=run.classifier / "final",
        table_path=run.comparison,
    )
    write_json(run.compare / "refined.json", {"refine": run.key("refine")})  # what the arms were trained on


def _truth(workspace: Workspace) -> torch.Tensor | None:
    """Return the true labels, (N,), for the one arm that is trained on them as a reference; None without it."""
    if "clean" not in workspace.config.compare.arms:
        return None
    truth = workspace.truth()
    if truth is None:
        raise UserError(
            "compare.arms: the arm clean is trained on the truth, and the dataset has no column truth_label; "
            "leave the arm out"
        )
    return torch.from_numpy(truth)
