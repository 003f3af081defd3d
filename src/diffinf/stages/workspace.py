"""What all stages of a run share: settings, the dataset as arrays, the device, the classifier's shapes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffinf.classify.crossfit import load_crossfit
from diffinf.classify.model import ClassifierSpec
from diffinf.config import PresetName
from diffinf.data.dataset import FaceDataset
from diffinf.errors import UserError
from diffinf.files import stage_key
from diffinf.influence.noise import class_shares
from diffinf.run import Run
from diffinf.stages.team import Team

Ints = npt.NDArray[np.int64]
Strings = npt.NDArray[np.str_]


def resolve_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" takes the best there is. UserError when it is not there."""
    try:
        best = (
            torch.accelerator.current_accelerator(check_available=True)
            if name == "auto"
            else torch.device(name)
        )
        device = torch.device("cpu") if best is None else _own(best)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"device {name!r} cannot be used here ({first}); choose auto, cpu, cuda or mps, and under torchrun start "
            "no more processes than there are GPUs"
        ) from error
    return device


def _own(device: torch.device) -> torch.device:
    """Under torchrun every process takes a GPU of its own."""
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


def default_preset(device: str = "auto") -> PresetName:
    """Return "gpu" where the device is one, else "cpu"."""
    return "cpu" if resolve_device(device).type == "cpu" else "gpu"


class Workspace:
    """The shared state of a run's stages; arrays are read when first asked for."""

    def __init__(self, run: Run, dataset: FaceDataset, team: Team | None = None) -> None:
        """Bind `run` and `dataset`; `team` is the other processes, by default as torchrun says.

        Raises:
            UserError: there is no training split, or the device of the settings is not there.
        """
        self.run, self.dataset, self.config = run, dataset, run.config
        self.team = team or Team()
        self.seed = self.config.seed
        self.device = resolve_device(self.config.device)
        if not len(self.rows):
            raise UserError(
                f"{self.config.dataset}: no sample is in the split train, the only one that is repaired"
            )

    @cached_property
    def rows(self) -> Ints:
        """Indices of the training samples in the dataset, (N,): nothing else is scored or edited."""
        return self.dataset.rows("train")

    @cached_property
    def ids(self) -> Strings:
        """Ids of the training samples, (N,)."""
        ids: Strings = self.dataset.ids[self.rows]
        return ids

    @cached_property
    def labels(self) -> Tensor:
        """Labels of the training samples as annotated, int64 (N,)."""
        return torch.from_numpy(self.dataset.labels[self.rows])

    @cached_property
    def targets(self) -> Tensor | None:
        """What the classifiers learn in the place of the labels: shares of the classes (N, K), or None."""
        votes = self.dataset.votes
        if self.config.classifier.targets == "label" or votes is None:
            return None
        return torch.from_numpy(votes.shares(self.dataset.labels)[self.rows])

    @cached_property
    def agreement(self) -> npt.NDArray[np.float64] | None:
        """Share of the votes that are for the label, (N,), NaN where there are none; None without votes."""
        votes = self.dataset.votes
        return None if votes is None else votes.agreement(self.dataset.labels)[self.rows]

    def rows_of(self, ids: Sequence[str]) -> Ints:
        """Positions of samples among the training samples."""
        position = {id_: row for row, id_ in enumerate(self.ids.tolist())}
        return np.array([position[id_] for id_ in ids], dtype=np.int64)

    @cached_property
    def identities(self) -> Strings | None:
        """Person of each training sample, (N,), or None where the dataset does not know."""
        known = self.dataset.identities
        return None if known is None else known[self.rows]

    @cached_property
    def images(self) -> Tensor:
        """Training images, uint8 (N, C, H, W)."""
        return self.images_of(self.rows)

    def images_of(self, rows: Ints) -> Tensor:
        """Images of dataset rows, uint8 (len(rows), C, H, W)."""
        return self.dataset.images(rows, size=self.dataset.image_size, channels=self.dataset.channels)

    def truth(self) -> Ints | None:
        """True labels of the training samples, (N,): for measuring alone; None where nobody knows them."""
        known = self.dataset.truth_labels()
        return None if known is None else known[self.rows]

    def class_shares(self) -> Tensor:
        """P(true class) of the training samples (N, K), as the out-of-fold classifiers and the labels have it."""
        probabilities = load_crossfit(self.run.crossfit).logits.double().softmax(1).numpy()
        return torch.from_numpy(class_shares(self.labels.numpy(), probabilities)).float()

    @cached_property
    def spec(self) -> ClassifierSpec:
        """Shapes of every classifier of the run."""
        return ClassifierSpec(
            name=self.config.classifier.name,
            num_classes=len(self.dataset.class_names),
            in_channels=self.dataset.channels,
            image_size=self.dataset.image_size,
            class_names=self.dataset.class_names,
        )

    @cached_property
    def inputs_key(self) -> list[Any]:
        """What every stage read: part of all keys."""
        data = self.dataset
        persons = None if self.identities is None else self.identities.tolist()
        learned = [] if self.targets is None else [stage_key(self.targets.tolist())]
        return [
            data.fingerprint,
            data.image_size,
            data.channels,
            data.icc,
            stage_key(persons),
            self.seed,
            *learned,
        ]
