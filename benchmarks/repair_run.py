"""The repaired datasets that benchmarks share: rendered faces or photographs, and the settings of their runs."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffinf.config import RunConfig, make_config
from diffinf.data.rendered.factors import FACTORS, FaceFactors
from diffinf.data.rendered.write import FILE_NAME, render_dataset
from diffinf.demo import RENDERED_REPAIR
from diffinf.files import file_sha256
from diffinf.stages.workspace import Workspace, default_preset
from fer_data import prepare

FER_ROWS = 8000


def faces_seed(text: str) -> int:
    """The seed of rendered faces, below those of the faces that judges are trained on."""
    if not text.isdecimal() or int(text) >= 300_000:
        raise argparse.ArgumentTypeError(f"{text}: expected 0 to 299,999")
    return int(text)


def dataset(options: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """Render or prepare the dataset, unless it is there; the file, and what the report says of it."""
    if options.rendered:
        seed = options.faces_seed
        faces = options.out / (f"faces-{seed}.parquet" if seed else FILE_NAME)
        if not faces.exists():
            render_dataset(faces, preset="bench-1", seed=seed)
        return faces, {"rendered": f"bench-1, seed {seed}", "sha256": file_sha256(faces)}
    faces = options.out / "8k.parquet"
    prepared = prepare(options.data, faces, FER_ROWS)
    source = {"file": options.data.name, "sha256": file_sha256(options.data)}
    return faces, {**source, "prepared_sha256": file_sha256(faces), **asdict(prepared)}


def settings(options: argparse.Namespace, faces: Path) -> RunConfig:
    """The settings of the run: the preset's, with longer trainings, under what --set says."""
    name = options.preset or default_preset()
    values: dict[str, Any] = {"seed": 0, "data": {"id": "id", "split": "split"}}
    if not options.rendered:
        values["compare"] = {"allow_overlap": True}  # FER2013 has two pictures twice, across the split
    if options.rendered:
        values["data"]["identity"] = "identity"
        values["autoencoder"] = {"weights": "rendered"}
        values["repair"] = {} if name == "tiny" else RENDERED_REPAIR
    elif name != "tiny":
        values["autoencoder"] = {"steps": 3000, "guide_steps": 3000}
    if name != "tiny":
        values["classifier"] = {"steps": 1000 if options.rendered else 3000}
    return make_config(str(faces.resolve()), preset_name=name, values=values, overrides=options.set)


def rendered_factors(workspace: Workspace) -> FaceFactors | None:
    """The true factors of the training samples, (N,); None where the faces were not rendered."""
    truth = workspace.dataset.truth()
    if any(f"truth_{name}" not in truth for name in FACTORS):
        return None
    return FaceFactors(**{name: truth[f"truth_{name}"][workspace.rows] for name in FACTORS})
