"""dataset.parquet and quarantine.parquet: the samples of a run, usable and not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from diffinf.files import write_table
from diffinf.run import GROUP
from diffinf.stages.workspace import Workspace


def write_dataset_tables(workspace: Workspace) -> None:
    """Write the samples of a run to dataset.parquet, and those left out to quarantine.parquet."""
    data, run = workspace.dataset, workspace.run
    nobody = pa.nulls(len(data), pa.string())
    samples = {
        "id": pa.array(data.ids, pa.string()),
        "target": pa.array([""] * len(data), pa.string()),
        "label": pa.array(np.array(data.class_names)[data.labels], pa.string()),
        "split": pa.array(data.splits, pa.string()),
        "identity": nobody if data.identities is None else pa.array(data.identities, pa.string()),
    }
    if data.votes is not None:
        samples["agreement"] = pa.array(data.votes.agreement(data.labels), pa.float64(), from_pandas=True)
    for name, values in data.groups.items():
        samples[f"{GROUP}{name}"] = pa.array([value or None for value in values.tolist()], pa.string())
    write_table(run.path / "dataset.parquet", pa.table(samples), data.class_names)
    lost = {
        "id": pa.array([item.id for item in data.quarantine], pa.string()),
        "target": pa.array([""] * len(data.quarantine), pa.string()),
        "path": pa.array([item.path for item in data.quarantine], pa.string()),
        "reason": pa.array([item.reason for item in data.quarantine], pa.string()),
    }
    write_table(run.path / "quarantine.parquet", pa.table(lost), data.class_names)
