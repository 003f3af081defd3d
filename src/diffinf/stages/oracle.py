"""The oracle of relative classification accuracy: trained here or brought along, with what it was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from diffinf.classify.model import ClassifierSpec, load_classifier, predict
from diffinf.classify.train import train_classifier
from diffinf.config import ClassifierConfig
from diffinf.data.dataset import FaceDataset
from diffinf.errors import UserError
from diffinf.files import file_sha256, read_json, write_json
from diffinf.progress import progress_bar
from diffinf.stages.workspace import Ints

RECORD = "oracle.json"  # beside the model: digests of the images that it was trained on
_FORMAT = 1
_AT_ONCE = 2048  # images in memory


@dataclass(frozen=True, eq=False)
class Oracle:
    """A classifier that judges generated images.

    Attributes:
        model: in evaluation mode, on `device`.
        spec: its shapes and class names.
        device: where it computes.
        trained_on: `image_digests` of its training images as it sees them; None where nobody knows.
        left_out: training images that were left out because they are real images to measure on.
    """

    model: nn.Module
    spec: ClassifierSpec
    device: torch.device
    trained_on: frozenset[str] | None
    left_out: int = 0

    def read(self, dataset: FaceDataset, rows: Ints) -> tuple[Ints, list[str]]:
        """Return the classes (N,) read in rows of a dataset, indices into the class names, and N digests."""
        classes, digests = [np.zeros(0, np.int64)], []
        for images in _batches(dataset, rows, self.spec.image_size, self.spec.in_channels):
            classes.append(predict(self.model, images, device=self.device)[1].argmax(1).numpy())
            digests += image_digests(images)
        return np.concatenate(classes), digests


def image_digests(images: Tensor) -> list[str]:
    """Return the hex sha256 of the pixels of each image, uint8 (N, C, H, W): equal for equal pictures of one size."""
    return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images]


def digests_of(dataset: FaceDataset, rows: Ints, size: int, channels: int) -> list[str]:
    """Return `image_digests` of rows of a dataset as a classifier of this size sees them."""
    return [digest for images in _batches(dataset, rows, size, channels) for digest in image_digests(images)]


@dataclass(frozen=True, eq=False)
class Lesson:
    """What an oracle is to be trained on.

    Attributes:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        spec: its shapes and class names.
        trained_on, left_out: as of the oracle.
        source: the dataset's name.
    """

    images: Tensor
    labels: Tensor
    spec: ClassifierSpec
    trained_on: frozenset[str]
    left_out: int
    source: str


def make_lesson(
    dataset: FaceDataset, rows: Ints, name: str, *, size: int, channels: int, without: Collection[str] = ()
) -> Lesson:
    """Return rows of a dataset as an oracle is trained on them.

    Args:
        dataset: labelled real images.
        rows: those to train on; the classes are those that occur among them.
        name: of the classifier.
        size: side of the images it takes, in pixels.
        channels: 1 or 3.
        without: digests of images that must not be trained on.

    Raises:
        UserError: nothing is left to train on.
    """
    images = dataset.images(rows, size=size, channels=channels)
    digests = image_digests(images)
    held_out = frozenset(without)
    keep = [place for place, digest in enumerate(digests) if digest not in held_out]
    if not keep:
        raise UserError(
            f"{dataset.source.name}: all {len(rows)} images to train the oracle on are among the real images to "
            "measure on; give other images with --train, or a trained oracle with --oracle"
        )
    present, labels = np.unique(dataset.labels[rows[keep]], return_inverse=True)
    names = tuple(dataset.class_names[code] for code in present)
    return Lesson(
        images[keep],
        torch.from_numpy(labels.astype(np.int64)),
        ClassifierSpec(name, len(names), channels, size, names),
        frozenset(digests[place] for place in keep),
        left_out=len(rows) - len(keep),
        source=dataset.source.name,
    )


def train_oracle(
    lesson: Lesson, config: ClassifierConfig, *, seed: int, device: torch.device, directory: Path
) -> Oracle:
    """Train a classifier and keep it in `directory`; one of the same settings is loaded.

    Args:
        lesson: what to train on.
        config: its training.
        seed: of the training.
        device: where to train.
        directory: model, settings and oracle.json.

    Raises:
        UserError: there is only one class.
    """
    (directory / RECORD).unlink(missing_ok=True)  # would be of another model until the training is over
    model = train_classifier(
        lesson.images,
        lesson.labels,
        spec=lesson.spec,
        config=config.model_copy(update={"checkpoint": None}),
        seed=seed,
        device=device,
        directory=directory,
        record=False,
    )
    write_json(
        directory / RECORD,
        {
            "format_version": _FORMAT,
            "model_sha256": file_sha256(directory / "model.safetensors"),
            "dataset": lesson.source,
            "training_images": sorted(lesson.trained_on),
        },
    )
    return Oracle(model, lesson.spec, device, lesson.trained_on, lesson.left_out)


def load_oracle(directory: Path, device: torch.device) -> Oracle:
    """Read a saved classifier, and what it was trained on if oracle.json beside it is of this very model.

    Raises:
        UserError: it is no folder or no saved classifier, has no class names, or oracle.json is damaged.
    """
    if not directory.is_dir():
        raise UserError(
            f"--oracle {directory}: no such folder; expected a saved classifier, such as OUT/oracle of an earlier "
            "`diffinf evaluate rca`, or leave --oracle out to train one"
        )
    model, spec = load_classifier(directory, device)
    if not spec.class_names:
        raise UserError(
            f"{directory / 'config.json'}: class_names is empty; expected the names of the oracle's "
            f"{spec.num_classes} classes, in the order of its outputs"
        )
    path = directory / RECORD
    if not path.exists():
        return Oracle(model, spec, device, None)
    record = read_json(path)
    listed = record.get("training_images") if isinstance(record, dict) else None
    if not isinstance(listed, list) or record.get("format_version") != _FORMAT:
        raise UserError(
            f"{path}: expected format_version {_FORMAT} and a list training_images of digests; delete the file if "
            "what the oracle was trained on is not known"
        )
    mine = record.get("model_sha256") == file_sha256(directory / "model.safetensors")
    return Oracle(model, spec, device, frozenset(map(str, listed)) if mine else None)


def _batches(dataset: FaceDataset, rows: Ints, size: int, channels: int) -> Iterator[Tensor]:
    with progress_bar("read images", len(rows)) as advance:
        for start in range(0, len(rows), _AT_ONCE):
            images = dataset.images(rows[start : start + _AT_ONCE], size=size, channels=channels)
            yield images
            advance(len(images))
