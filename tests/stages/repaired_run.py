"""A run whose flagged samples have been edited and judged, written by hand: nothing is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from diffinf.config import DataConfig, RunConfig
from diffinf.data import FaceDataset, open_dataset
from diffinf.files import save_tensors, write_json, write_table
from diffinf.run import Run
from diffinf.stages.tables import write_dataset_tables
from diffinf.stages.workspace import Workspace

# Of the first training samples: what the gate said, and P(label right).
GATE = (("", 0.2), ("judge", 0.1), ("identity", 0.3), ("judge", 0.9), ("", 0.8), ("influence", 0.4))
EDITED, DOUBTED, TRUSTED = (0, 4), (1, 2, 5), 3


def make_run(
    path: Path, folder: Path, data: DataConfig, policy: str = "edit", spare: float = 0
) -> tuple[Run, FaceDataset, list[str]]:
    """Return the run of the dataset at `path`, the dataset, and the flagged ids in the order of `GATE`."""
    dataset = open_dataset(path, data)
    config = RunConfig(dataset=str(path), data=data, device="cpu", repair={"policy": policy, "spare": spare})
    run = Run.create(folder, config, dataset.fingerprint)
    write_dataset_tables(Workspace(run, dataset))
    rows, names = dataset.rows("train"), np.array(dataset.class_names)
    ids, labels = dataset.ids[rows], dataset.labels[rows]
    n, k = len(rows), len(GATE)
    others = names[(labels + 1) % len(names)]
    base = {"id": ids, "target": [""] * n, "label": names[labels]}
    trust = np.concatenate([[value for _, value in GATE], np.full(n - k, 0.95)])
    scores = {
        **base,
        "score": 1 - trust,
        "flagged": np.arange(n) < k,
        "label_trust": trust,
        "appears": others,
    }
    write_table(run.scores, pa.table({a: pa.array(list(b)) for a, b in scores.items()}), names.tolist())
    pictures = torch.randint(0, 256, (k, 1, 16, 16), generator=torch.Generator().manual_seed(0)).byte()
    save_tensors(run.repair / "pictures.safetensors", {"original": pictures, "edited": 255 - pictures})
    attempts = {
        **{name: values[:k] for name, values in base.items()},
        "appears": others[:k],
        "likeliest": others[:k],
        "label_trust": trust[:k],
        "label_fit": np.arange(k) / 100,
        "reason": [reason for reason, _ in GATE],
        "strength": [1.0] * k,
        "identity_similarity": [0.5] * k,
        "source_sha256": [dataset.source_sha256(int(row)) for row in rows[:k]],
    }
    write_table(run.attempts, pa.table({a: pa.array(list(b)) for a, b in attempts.items()}), names.tolist())
    write_json(
        run.repair / "models.json", {"autoencoder": "a" * 64, "judges": "b" * 64, "identity_embedder": None}
    )
    run.stage("repair", "the key of the repair", lambda: None)
    return run, dataset, ids[:k].tolist()
