"""The repair stage: from flags and autoencoder to edits.parquet, pictures and the refined dataset."""

from __future__ import annotations

from diffinf.workspace import Workspace


def repair_run(workspace: Workspace) -> None:
    """Write edits.parquet, repair/pictures.safetensors, surrogate/ and refined/."""
    raise NotImplementedError
