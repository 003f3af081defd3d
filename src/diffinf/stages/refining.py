"""The refine stage: from what the gate said, by the policy, to edits.parquet and the refined dataset.

It is a stage of its own because it costs seconds: another policy, or an original that is asked back, needs no new edit.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from typing import Any

import pyarrow as pa
from PIL import Image
from torch import Tensor

from diffinf import __version__
from diffinf.config import Policy
from diffinf.data.card import MADE_BY
from diffinf.data.dataset import FaceDataset
from diffinf.data.writers import write_refined
from diffinf.files import load_tensors, read_json, read_table, stage_key, write_table
from diffinf.repair.policy import LABEL_FITS, decide
from diffinf.run import Run

RESTORED = "restored"  # the reason of a sample whose original was asked back
REFINED = ("edits.parquet", "refined", "refined.provenance.parquet")


def refine(run: Run, dataset: FaceDataset) -> bool:
    """Write edits.parquet, refined/ and its provenance unless they are as settings and restored ids want them.

    What was there stays until the new is whole. After a kill in between the stage counts as unfinished, and the next
    command finishes it.
    """
    if not all((run.path / output).exists() for output in REFINED):
        run.discard("refine")
    config = run.config.repair
    key = stage_key("refine", run.key("repair"), config.policy, config.spare, restored_ids(run))
    return run.stage("refine", key, lambda: refine_run(run, dataset))


def restored_ids(run: Run) -> list[str]:
    """Ids whose originals were asked back since the repair, sorted."""
    return list(read_json(run.restored)) if run.restored.exists() else []


def decisions(run: Run, policy: Policy | None = None) -> pa.Table:
    """The rows of edits.parquet, but for the column path: what the gate said, what was decided.

    Args:
        run: a repaired run.
        policy: what would be decided under it; None: under that of the settings.

    Raises:
        UserError: nothing has been repaired yet.
    """
    run.key("repair")
    table = read_table(run.attempts)
    rows, back = table.to_pylist(), set(restored_ids(run))
    fitting = spared(rows, run.config.repair.spare)
    for row in fitting:
        row["reason"] = row["reason"] or LABEL_FITS
    stay = {row["id"] for row in fitting}
    statuses = decide(
        [row["reason"] for row in rows],
        [row["label"] for row in rows],
        [row["likeliest"] for row in rows],
        # Whose label fits on a second look is neither relabelled nor dropped, even where no edit passed.
        [1.0 if row["id"] in stay else row["label_trust"] for row in rows],
        Counter(read_table(run.scores)["label"].to_pylist()),
        policy or run.config.repair.policy,
    )
    for row, status in zip(rows, statuses, strict=True):
        returned = row["id"] in back and status != "kept"
        row["status"] = "kept" if returned else status
        row["reason"] = RESTORED if returned else row["reason"]
        row["new_label"] = row["likeliest"] if row["status"] == "relabelled" else None
    for name in ("status", "reason", "new_label"):
        column = pa.array([row[name] for row in rows], pa.string())
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, column)
        else:
            table = table.append_column(name, column)
    first = ("id", "target", "label", "appears", "status", "reason", "new_label", "label_trust")
    others = [name for name in table.column_names if name not in (*first, "likeliest")]
    return table.select([*first, *others])


def spared(rows: list[dict[str, Any]], spare: float) -> list[dict[str, Any]]:
    """Return those flagged samples whose originals show their label best on a second look.

    As many as labels are estimated to be right among them (the sum of `label_trust`), times `spare`. A repair that was
    made without a second look has no `label_fit`: it spares nothing until it runs again.
    """
    count = round(spare * sum(row["label_trust"] for row in rows))
    looked_at = [row for row in rows if row.get("label_fit") is not None]
    return sorted(looked_at, key=lambda row: (-row["label_fit"], row["id"]))[:count]


def refine_run(run: Run, dataset: FaceDataset) -> None:
    """Write the refined dataset with its provenance, then edits.parquet."""
    table = decisions(run)
    rows = table.to_pylist()
    edited = load_tensors(run.repair / "pictures.safetensors")["edited"]
    made_by = {
        "tool": f"diffinf {__version__}",
        "policy": run.config.repair.policy,
        "settings": run.key("repair"),
        "models": read_json(run.repair / "models.json"),
    }
    paths = write_refined(
        dataset,
        {row["id"]: png_bytes(edited[m]) for m, row in enumerate(rows) if row["status"] == "edited"},
        [row["id"] for row in rows if row["status"] == "dropped"],
        {row["id"]: row["new_label"] for row in rows if row["status"] == "relabelled"},
        run.refined,
        replace=True,
        reasons={row["id"]: row["reason"] or f"appeared {row['appears']}" for row in rows},
        made_by=made_by,
    )
    table = table.append_column("path", pa.array([paths.get(row["id"]) for row in rows], pa.string()))
    metadata: dict[Any, Any] = {**(table.schema.metadata or {}), MADE_BY: json.dumps(made_by)}
    write_table(run.edits, table.replace_schema_metadata(metadata), dataset.class_names)


def png_bytes(image: Tensor) -> bytes:
    """Return a uint8 image (C, H, W) as PNG."""
    buffer = io.BytesIO()
    picture(image).save(buffer, format="PNG")
    return buffer.getvalue()


def picture(image: Tensor) -> Image.Image:
    """Return a uint8 image (C, H, W) as a grey or RGB picture."""
    array = image.permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
