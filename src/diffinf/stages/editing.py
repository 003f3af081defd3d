"""A user's own pictures edited with a trained autoencoder; nothing is judged, what is read in them is told."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffinf.classify.model import load_classifier, predict
from diffinf.config import DataConfig, RepairConfig
from diffinf.data.images import square
from diffinf.diffusion.autoencoder import DiffusionAutoencoder
from diffinf.diffusion.diffae.autoencoder import DiffAE
from diffinf.diffusion.familiarity import unlike_pictures
from diffinf.diffusion.interface import Autoencoder, load_autoencoder
from diffinf.errors import UserError
from diffinf.files import read_table
from diffinf.repair.edit import check_noise_levels, decode_edit, keep_unchanged, take_apart
from diffinf.repair.editors import Wish
from diffinf.repair.objective import CodePrior, optimise_codes
from diffinf.run import Run
from diffinf.stages.predicting import read_picture
from diffinf.stages.workspace import resolve_device

CLASSIFIER, ATTRIBUTE_HEAD = "classifier", "attribute head"


@dataclass(frozen=True)
class PictureEdit:
    """One picture, edited with rising strength; C channels, S pixels a side.

    Attributes:
        path: the file.
        source_size: (width, height) of the file, upright.
        shown: label that the edit leads away from.
        label: label that it leads to.
        read_by: what the probabilities were read by: "classifier" (of a run) or "attribute head".
        original: uint8 (C, S, S), the largest centred square of the file at the model's size.
        roundtrip: uint8 (C, S, S), decoded without an edit.
        edited: strength -> uint8 (C, S, S).
        roundtrip_error: mean absolute difference of original and round trip, in [0, 2] as of images in [-1, 1].
        before: class -> probability read in the original.
        unedited: class -> probability read in the round trip.
        after: strength -> the same of the edit.
        warning: how the picture clearly differs from those that the autoencoder was trained on, or None.
    """

    path: Path
    source_size: tuple[int, int]
    shown: str
    label: str
    read_by: str
    original: Tensor
    roundtrip: Tensor
    edited: dict[float, Tensor]
    roundtrip_error: float
    before: dict[str, float]
    unedited: dict[str, float]
    after: dict[float, dict[str, float]]
    warning: str | None

    @property
    def size(self) -> int:
        """Side S of the edits."""
        return int(self.original.shape[-1])

    @property
    def resized(self) -> bool:
        """Whether the file was cropped or resized to fit the model."""
        return self.source_size != (self.size, self.size)


@dataclass(frozen=True)
class _Editor:
    """An autoencoder with what is needed around it; `read` gives the probabilities (B, K) of uint8 images."""

    model: Autoencoder
    class_names: tuple[str, ...]
    image_size: int
    channels: int
    repair: RepairConfig
    data: DataConfig
    knows_persons: bool
    read_by: str
    read: Callable[[Tensor], Tensor]


def edit_images(
    images: Sequence[Path | str],
    to: str,
    model: Path | str,
    *,
    strengths: Sequence[float] | None = None,
    shown: str | None = None,
    device: str = "auto",
) -> list[PictureEdit]:
    """Edit pictures towards a label, as the repair does, at each strength; no gate stands behind it.

    Warns of each picture that clearly is of another kind than those that the autoencoder was trained on.

    Args:
        images: picture files; each is cropped to the largest centred square and brought to the model's size.
        to: name of the class to show.
        model: a run with an autoencoder, or the folder of an autoencoder.
        strengths: how hard to edit; none: those of the run's settings, or the defaults.
        shown: class that the pictures appear to show; none: what is read in each, by the run's baseline classifier or,
            without a run, the autoencoder's attribute head; where that is `to`, the next likeliest.
        device: where to compute.

    Raises:
        UserError: a file is no readable picture, there is no such class, a strength is not positive, or `model` holds
            no autoencoder.
    """
    return make_edits(check_edit(images, to, model, strengths=strengths, shown=shown, device=device))


@dataclass(frozen=True)
class _Task:
    """Pictures that can be edited as was asked: `files` are paths and (width, height), `pixels` uint8 (N, C, S, S)."""

    editor: _Editor
    files: list[tuple[Path, tuple[int, int]]]
    pixels: Tensor
    to: str
    shown: str | None
    strengths: list[float]


def check_edit(
    images: Sequence[Path | str],
    to: str,
    model: Path | str,
    *,
    strengths: Sequence[float] | None,
    shown: str | None,
    device: str,
) -> _Task:
    """Check and read all that `edit_images` was given, before the work; errors as there."""
    editor = _editor(Path(model), device)
    check_noise_levels(editor.repair, editor.model.max_depth, editor.model.most_steps)
    chosen = sorted(set(editor.repair.strengths if strengths is None else strengths))
    for name, value in (("--to", to), ("--from", shown)):
        if value is not None and value not in editor.class_names:
            raise UserError(f"{name} {value}: no such class; expected one of {', '.join(editor.class_names)}")
    if shown == to:
        raise UserError(f"--from {shown}: is what the picture is to show; expected another class than --to")
    if not chosen or not all(0 < strength < float("inf") for strength in chosen):
        raise UserError(f"--strength {chosen}: expected numbers above 0")
    pictures = [read_picture(Path(path), editor.data) for path in images]
    pixels = torch.from_numpy(
        np.stack([square(p, size=editor.image_size, channels=editor.channels) for p in pictures])
    )
    files = [(Path(path), picture.size) for path, picture in zip(images, pictures, strict=True)]
    return _Task(editor, files, pixels, to, shown, chosen)


def make_edits(task: _Task) -> list[PictureEdit]:
    """Edit what `check_edit` found to be in order."""
    found, size = [], task.editor.repair.batch_size
    for start in range(0, len(task.pixels), size):
        part = slice(start, start + size)
        found += _edit_batch(
            task.editor, task.files[part], task.pixels[part], task.to, task.shown, task.strengths
        )
    return found


def _editor(path: Path, device_name: str) -> _Editor:
    """Read the autoencoder of a run, with the run's baseline classifier, or an autoencoder alone."""
    device = resolve_device(device_name)
    if not Run.exists(path):
        if not path.is_dir():
            raise UserError(
                f"--model {path}: no such folder; expected a run, or the folder of an autoencoder"
            )
        model = load_autoencoder(path, device)
        names, size, channels = _shape(model)

        def read_code(images: Tensor) -> Tensor:
            with torch.no_grad():
                return model.read_code(model.code(model.to_latents(images)))[0].softmax(1).cpu()

        plain = DataConfig()
        return _Editor(model, names, size, channels, RepairConfig(), plain, False, ATTRIBUTE_HEAD, read_code)
    run = Run.open(path)
    if not run.is_done("train-autoencoder"):
        raise UserError(f"{path}: no autoencoder yet; run `diffinf train-autoencoder {path}` first")
    model, config = load_autoencoder(run.autoencoder, device), run.config
    classifier, spec = load_classifier(run.classifier, device)
    people = read_table(run.path / "dataset.parquet")["identity"]
    return _Editor(
        model,
        spec.class_names,
        spec.image_size,
        spec.in_channels,
        config.repair,
        config.data,
        people.null_count < len(people),
        CLASSIFIER,
        lambda images: predict(classifier, images, device=device)[1].softmax(1),
    )


def _shape(model: Autoencoder) -> tuple[tuple[str, ...], int, int]:
    """Classes, side and channels that an autoencoder was trained or fitted for; UserError for one not fitted."""
    if isinstance(model, DiffAE):
        if model.heads is None:
            raise UserError(
                "--model: this autoencoder was imported and knows no labels; give the run that it was fitted in"
            )
        return model.heads.class_names, model.config.image_size, model.config.image_channels
    assert isinstance(model, DiffusionAutoencoder)
    return model.spec.class_names, model.spec.image_size, model.spec.image_channels


def _edit_batch(
    editor: _Editor,
    files: Sequence[tuple[Path, tuple[int, int]]],
    images: Tensor,
    to: str,
    shown: str | None,
    strengths: Sequence[float],
) -> list[PictureEdit]:
    warned = unlike_pictures(editor.model, images)
    for (path, _), difference in zip(files, warned, strict=True):
        if difference is not None:
            warnings.warn(f"{path}: {difference}", stacklevel=2)
    names = editor.class_names
    labels = torch.full((len(images),), names.index(to))
    before = editor.read(images)
    if shown is None:
        apparent = before.scatter(1, labels[:, None], -1.0).argmax(1)
    else:
        apparent = torch.full_like(labels, names.index(shown))
    roundtrip, edited = _edited(editor, images, labels, F.one_hot(apparent, len(names)).float(), strengths)
    unedited = editor.read(roundtrip)
    after = [editor.read(each) for each in edited]
    error = (roundtrip.float() - images.float()).abs().mean((1, 2, 3)) / 127.5

    def shares(row: Tensor) -> dict[str, float]:
        return dict(zip(names, row.tolist(), strict=True))

    return [
        PictureEdit(
            path,
            size,
            names[int(apparent[m])],
            to,
            editor.read_by,
            images[m],
            roundtrip[m],
            {strength: each[m] for strength, each in zip(strengths, edited, strict=True)},
            float(error[m]),
            shares(before[m]),
            shares(unedited[m]),
            {strength: shares(each[m]) for strength, each in zip(strengths, after, strict=True)},
            warned[m],
        )
        for m, (path, size) in enumerate(files)
    ]


def _edited(
    editor: _Editor, images: Tensor, labels: Tensor, shown: Tensor, strengths: Sequence[float]
) -> tuple[Tensor, list[Tensor]]:
    """Return round trips and, for each strength, edits, uint8 (B, C, S, S): the one place that asks `repair.edit`."""
    model, config = editor.model, editor.repair
    images, labels, shown = (tensor.to(model.device) for tensor in (images, labels, shown))
    parts = take_apart(model, images, shown, config)
    classes, width = shown.shape[1], parts.code.shape[1]
    # No training set is at hand: nothing predicts influence, and a standard normal is the prior of normalised codes.
    prior = CodePrior(torch.zeros(classes, width, device=model.device), torch.eye(width, device=model.device))
    moved = optimise_codes(
        model, None, prior, parts.code, labels, config, identity_known=editor.knows_persons
    )
    edited = []
    for strength in strengths:
        decoded = decode_edit(model, parts, Wish(moved.code, labels, shown), strength, config)
        edited.append(keep_unchanged(images, parts.roundtrip, decoded, config).cpu())
    return parts.roundtrip.cpu(), edited
