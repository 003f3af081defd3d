"""The stage of the diffusion autoencoder: trained here, taken as it is, or an imported one fitted to the dataset."""

from __future__ import annotations

import shutil
import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffinf.diffusion.diffae.autoencoder import is_imported
from diffinf.errors import UserError
from diffinf.files import content_sha256, files_sha256, stage_key
from diffinf.stages.workspace import Workspace


def train_autoencoder(workspace: Workspace) -> None:
    """Train the diffusion autoencoder, take weights that are there, or fit an imported one to the dataset."""
    run, config = workspace.run, workspace.config.autoencoder
    imported = config.weights if isinstance(config.weights, Path) and is_imported(config.weights) else None

    def work() -> None:
        if config.weights is not None and imported is None:
            _take_weights(config.weights, workspace)
            return
        if imported is None:
            workspace.team.call("autoencoder")
            train_together(workspace)
            return
        from diffinf.diffusion.diffae.fit import fit_to_dataset

        fit_to_dataset(
            imported,
            workspace.images,
            workspace.class_shares(),
            config,
            tell=partial(run.event, "train-autoencoder"),
            **_training(workspace),
        )

    read: Any = content_sha256(config.weights) if isinstance(config.weights, Path) else _trust_key(workspace)
    if config.weights == "rendered":
        with _given(config.weights) as folder:
            read = files_sha256(folder, "**/*")  # without the path: the package may lie anywhere
    if imported is not None:
        read = [read, _trust_key(workspace)]
    # What does not change the weights does not train them again.
    settings = config.model_dump(mode="json", exclude={"gradient_checkpointing", "sheets", "tracker"})
    key = stage_key("train-autoencoder", workspace.inputs_key, settings, read)
    run.stage("train-autoencoder", key, work, outputs=("autoencoder",))


def train_together(workspace: Workspace) -> None:
    """Train the diffusion autoencoder, together with the other processes where there are some."""
    from diffinf.diffusion.train import train_autoencoder as train_on

    persons = workspace.identities
    train_on(
        workspace.images,
        workspace.class_shares(),
        None if persons is None else torch.from_numpy(np.unique(persons, return_inverse=True)[1]),
        workspace.config.autoencoder,
        tell=partial(workspace.run.event, "train-autoencoder"),
        **_training(workspace),
    )


def _training(workspace: Workspace) -> dict[str, Any]:
    """What every training of an autoencoder is given beside images and settings."""
    return {
        "class_names": workspace.dataset.class_names,
        "seed": workspace.seed,
        "device": workspace.device,
        "directory": workspace.run.autoencoder,
    }


def _trust_key(workspace: Workspace) -> list[str]:
    """What training reads of the scores: not the flags, so that other flags leave the autoencoder alone."""
    return [workspace.run.key("crossfit")]


def _given(source: Path | str) -> AbstractContextManager[Path]:
    """Return the folder of the weights that the settings name, the shipped ones as a file system has them."""
    shipped = files("diffinf") / "weights" / "rendered"
    return as_file(shipped) if source == "rendered" else nullcontext(Path(source))


def _take_weights(source: Path | str, workspace: Workspace) -> None:
    """Copy a trained autoencoder into the run, so that the run is whole by itself."""
    from diffinf.diffusion.autoencoder import DiffusionAutoencoder

    with _given(source) as folder:
        if not (folder / "autoencoder.json").is_file():
            raise UserError(
                f"autoencoder.weights: {folder}: expected a folder with autoencoder.json (written by "
                "train-autoencoder) or diffae.json (by import-diffae) in it"
            )
        model, data = DiffusionAutoencoder.from_pretrained(folder), workspace.dataset
        spec = model.spec
        trained = (spec.class_names, spec.image_size, spec.image_channels)
        here = (data.class_names, data.image_size, data.channels)
        if trained != here:
            raise UserError(
                f"autoencoder.weights: {folder}: trained on (classes, size, channels) {trained}, the dataset has "
                f"{here}; train one on this dataset (autoencoder.weights=null), or set data.image_size"
            )
        if (difference := model.differs_from(workspace.images)) is not None:
            workspace.run.event("train-autoencoder", "warning", text=difference)
            warnings.warn(difference, stacklevel=2)
        shutil.copytree(folder, workspace.run.autoencoder, dirs_exist_ok=True)
