"""Relative classification accuracy end to end: folders of images in, figures and pictures out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from diffinf.config import DataConfig, RunConfig
from diffinf.data import FaceDataset, check_output, open_dataset
from diffinf.data.inspect.sheet import Tile, picture_sheet, tiles_of
from diffinf.errors import UserError
from diffinf.evaluate.rca import RelativeClassificationAccuracy, relative_classification_accuracy
from diffinf.files import atomic_path, make_directory, write_json
from diffinf.generate.folder import TABLE
from diffinf.report.confusions import MatrixPair, draw_confusions
from diffinf.stages.oracle import Lesson, Oracle, digests_of, load_oracle, make_lesson, train_oracle
from diffinf.stages.workspace import Ints, resolve_device

RealSplit = Literal["test", "validation", "all"]
_EXAMPLES = 4  # pictures of a kind in a row of confused.png


@dataclass(frozen=True)
class JudgedImages:
    """Relative classification accuracy, and what it was measured with.

    Attributes:
        accuracy: the figures; its warnings hold what was met on the way too.
        oracle: its directory, network, classes, whether it was trained here, on how many images (None: not known),
            and whether that is known to be disjoint from the real images.
        example_ids: for each confused pair the ids of its example images.
        generated, real: where the images lie, how many there are, how many cannot be read.
        files: what was written into the output folder.
    """

    accuracy: RelativeClassificationAccuracy
    oracle: dict[str, Any]
    example_ids: tuple[tuple[str, ...], ...]
    generated: dict[str, Any]
    real: dict[str, Any]
    files: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON knows them, the rest beside them."""
        figures = self.accuracy.to_dict()
        for pair, ids in zip(figures["confused"], self.example_ids, strict=True):
            pair["example_ids"] = list(ids)
        return {
            **figures,
            "oracle": self.oracle,
            "generated": self.generated,
            "real": self.real,
            "files": list(self.files),
        }


@dataclass(frozen=True, eq=False)
class _Side:
    """Images of one kind: rows of a dataset, their classes (N,) and the classes read (N,), digests of the pixels."""

    dataset: FaceDataset
    rows: Ints
    labels: Ints
    read: Ints
    digests: list[str]

    def account(self, split: str) -> dict[str, Any]:
        unreadable = len(self.dataset.quarantine)
        return {
            "path": self.dataset.source.name,
            "split": split,
            "images": len(self.rows),
            "left_out": unreadable,
        }


def measure_rca(
    generated: Path,
    config: RunConfig,
    out: Path,
    *,
    train: Path | None = None,
    oracle: Path | None = None,
    real_split: RealSplit = "test",
    generated_data: DataConfig | None = None,
    bootstrap: int = 1000,
) -> JudgedImages:
    """Measure whether generated images show the class asked for (arXiv 2601.15560).

    Args:
        generated: a dataset whose labels are the classes asked for.
        config: `dataset` are the real images, read as `data` says; `classifier` is the oracle that is trained unless
            one is given; `seed`, `device`. The first of `data.groups` groups classes that look alike.
        out: folder for rca.json, confusion.png, confused.png and the oracle that was trained.
        train: real images to train the oracle on; none: the training split of the real ones.
        oracle: a saved classifier to take instead.
        real_split: which real images to measure on; "all" needs `train` or `oracle`.
        generated_data: how the generated images are read; none: by what lies on disk.
        bootstrap: resamples of the intervals.

    Raises:
        UserError: a dataset or the oracle cannot be read, a class is none of the oracle's, or the oracle was trained
            on a real image that it is to be measured on.
    """
    if train is not None and oracle is not None:
        raise UserError(
            "--train names images to train an oracle on, --oracle a trained one: give one of them"
        )
    data = _classes_across_splits(config.data)
    real, rows = _real(config, data, real_split, trains=train is None and oracle is None)
    reading = generated_data or DataConfig()
    if (generated / TABLE).exists():
        # What `generate` wrote. Its folders are named after the identities too, but not letter by letter.
        generated = generated / TABLE
        label = "context_id" if reading.label == DataConfig().label else reading.label
        reading = reading.model_copy(update={"label": label, "image": "file"})
    made = open_dataset(generated, reading, seed=config.seed, to_measure=True)
    for dataset in (real, made):
        check_output(dataset, out)
    device = resolve_device(config.device)
    known: Lesson | Oracle = (
        _lesson(real, rows, config, data, train, out / "oracle")
        if oracle is None
        else load_oracle(oracle, device)
    )
    names = known.spec.class_names
    # Before anything is trained or read: it may take long.
    truth, asked = (
        _codes(real, rows, names),
        _codes(made, everything := np.arange(len(made)), names, persons=real.identities),
    )
    if not len(np.intersect1d(truth, asked)):
        raise UserError(
            f"{made.source.name} and {real.source.name}: no class has both generated and real images; name the "
            "classes alike, or measure on other real images (--real-split)"
        )
    judge = (
        known
        if isinstance(known, Oracle)
        else train_oracle(known, config.classifier, seed=config.seed, device=device, directory=out / "oracle")
    )
    sides = (
        _Side(made, everything, asked, *judge.read(made, everything)),
        _Side(real, rows, truth, *judge.read(real, rows)),
    )
    _refuse_overlap(judge, real, rows, sides[1].digests, oracle or train or real.source.path)
    groups, mixed = _groups(real, data)
    found = relative_classification_accuracy(
        sides[0].read,
        asked,
        sides[1].read,
        truth,
        class_names=names,
        groups={name: group for name, group in groups.items() if name in names},
        bootstrap=bootstrap,
        seed=config.seed,
    )
    found = replace(found, warnings=(*found.warnings, *_warnings(judge, sides, mixed)))
    return _written(found, sides, judge, oracle, out, real_split)


def _classes_across_splits(data: DataConfig) -> DataConfig:
    """Where the person is the class, persons must not be kept within one split."""
    same = data.label == (data.identity if data.identity is not None else "identity")
    return data.model_copy(update={"identity": ""}) if same else data


def _real(config: RunConfig, data: DataConfig, split: RealSplit, *, trains: bool) -> tuple[FaceDataset, Ints]:
    if split == "all" and trains:
        raise UserError(
            "--real-split all leaves no real images to train the oracle on: give --train or --oracle"
        )
    real = open_dataset(config.dataset, data, seed=config.seed, to_measure=split == "all")
    rows = np.arange(len(real)) if split == "all" else real.rows(split)
    return real, rows


def _lesson(
    real: FaceDataset, rows: Ints, config: RunConfig, data: DataConfig, train: Path | None, directory: Path
) -> Lesson:
    name, size, channels = config.classifier.name, real.image_size, real.channels
    digests = digests_of(real, rows, size, channels)
    if train is None:
        return make_lesson(real, real.rows("train"), name, size=size, channels=channels, without=digests)
    source = open_dataset(train, data.model_copy(update={"groups": []}), to_measure=True)
    check_output(source, directory)
    chosen = source.rows("train")
    chosen = chosen if len(chosen) else np.arange(len(source))
    # None is left out in silence: that another folder overlaps is a mistake to be told of.
    lesson = make_lesson(source, chosen, name, size=size, channels=channels)
    _refuse_overlap(lesson, real, rows, digests, train)
    return lesson


def _codes(
    dataset: FaceDataset, rows: Ints, names: Sequence[str], persons: Collection[str] | None = None
) -> Ints:
    """The classes of rows (N,) as the oracle numbers them; `persons` are those of the real images, for the error."""
    codes = {name: code for code, name in enumerate(names)}
    own = np.array([codes.get(name, -1) for name in dataset.class_names], dtype=np.int64)
    labels = dataset.labels[rows]
    unknown = Counter(dataset.class_names[label] for label in labels[own[labels] < 0])
    if unknown:
        some = ", ".join(f"{name!r} ({n} images)" for name, n in sorted(unknown.items())[:5])
        known = ", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else "")
        advice = "name the classes alike, or take an oracle of these classes"
        if persons is not None and set(unknown) <= set(persons):
            advice = (
                "they are persons of the real images: name their column with --label, and give --identity '' and "
                "--split ''"
            )
        raise UserError(
            f"{dataset.source.name}: {len(unknown)} classes that the oracle does not know: {some}; it knows {known}: "
            f"{advice}"
        )
    return own[labels]


def _refuse_overlap(
    oracle: Oracle | Lesson, real: FaceDataset, rows: Ints, digests: Sequence[str], where: Path
) -> None:
    shared = [
        str(real.ids[row])
        for row, digest in zip(rows, digests, strict=True)
        if digest in (oracle.trained_on or ())
    ]
    if shared:
        more = ", ..." if len(shared) > 5 else ""
        raise UserError(
            f"{where}: the oracle was trained on {len(shared)} of the {len(rows)} real images to measure on, "
            f"{', '.join(shared[:5])}{more}: its accuracy there says nothing; hold them out (--real-split), or take "
            "another oracle"
        )


def _groups(real: FaceDataset, data: DataConfig) -> tuple[dict[str, str], int]:
    """The group of each class that has one, that of most of its images, and how many classes have several."""
    if not data.groups:
        return {}, 0
    values = real.groups[data.groups[0]]
    found, mixed = {}, 0
    for code, name in enumerate(real.class_names):
        counts = Counter(value for value in values[real.labels == code].tolist() if value)
        if counts:
            found[name] = min(counts, key=lambda group: (-counts[group], group))
            mixed += len(counts) > 1
    return found, mixed


def _warnings(oracle: Oracle, sides: tuple[_Side, _Side], mixed: int) -> list[str]:
    made, real = sides
    found = []
    if oracle.trained_on is None:
        found.append(
            "Whether the oracle was trained on these real images cannot be checked: no oracle.json of it says what it "
            "was trained on."
        )
    if oracle.left_out:
        found.append(
            f"{oracle.left_out} training images were left out: they are among the real images to measure on too."
        )
    known = {"oracle's training": oracle.trained_on or frozenset(), "real": frozenset(real.digests)}
    for name, digests in known.items():
        if copies := sum(digest in digests for digest in made.digests):
            found.append(
                f"{copies} of {len(made.rows)} generated images are copies of the {name} images, pixel by pixel."
            )
    if mixed:
        found.append(
            f"{mixed} classes have images in several groups; each counts in that of most of its images."
        )
    for name, side in (("generated", made), ("real", real)):
        if side.dataset.quarantine:
            first = side.dataset.quarantine[0]
            found.append(
                f"{len(side.dataset.quarantine)} {name} images were left out, such as {first.id}: {first.reason}."
            )
    return found


def _written(
    found: RelativeClassificationAccuracy,
    sides: tuple[_Side, _Side],
    oracle: Oracle,
    given: Path | None,
    out: Path,
    split: str,
) -> JudgedImages:
    make_directory(out)
    files = ["rca.json", "confusion.png"]
    matrices = [MatrixPair("all classes", found.classes, found.generated_confusion, found.real_confusion)]
    matrices += [
        MatrixPair(f"reads within {group}", value.classes, value.generated, value.real)
        for group, value in found.groups.items()
        if len(value.classes) > 1
    ]
    with atomic_path(out / "confusion.png") as partial:
        draw_confusions(matrices, partial)
    if found.confused:
        files.append("confused.png")
        with atomic_path(out / "confused.png") as partial:
            _confused_sheet(found, *sides).save(partial, format="PNG")
    else:
        (out / "confused.png").unlink(missing_ok=True)  # of an earlier measurement
    made, real = sides
    judged = JudgedImages(
        accuracy=found,
        oracle={
            "path": str(given or out / "oracle"),
            "trained_here": given is None,
            "name": oracle.spec.name,
            "image_size": oracle.spec.image_size,
            "channels": oracle.spec.in_channels,
            "training_images": None if oracle.trained_on is None else len(oracle.trained_on),
            "disjoint_from_real": None if oracle.trained_on is None else True,
        },
        example_ids=tuple(
            tuple(str(made.dataset.ids[made.rows[row]]) for row in pair.examples) for pair in found.confused
        ),
        generated=made.account("all"),
        real=real.account(split),
        files=tuple(files),
    )
    write_json(out / "rca.json", judged.to_dict())
    return judged


def _confused_sheet(found: RelativeClassificationAccuracy, made: _Side, real: _Side) -> Image.Image:
    """A row for each pair: generated images that were confused, real ones of the class asked for and of that read."""
    rows: list[list[Tile | None]] = []
    captions = []
    for pair in found.confused:
        asked, read = found.classes.index(pair.asked), found.classes.index(pair.read)
        parts = [
            made.rows[list(pair.examples)],
            real.rows[real.labels == asked][:_EXAMPLES],
            real.rows[real.labels == read][:_EXAMPLES],
        ]
        tiles: list[Tile | None] = []
        for side, part in zip((made, real, real), parts, strict=True):
            shown: list[Tile | None] = [*tiles_of(side.dataset, part.tolist())]
            tiles += [*shown, *[None] * (_EXAMPLES - len(shown))]
        rows.append(tiles)
        captions.append(
            [
                (f"asked for {pair.asked}", "black"),
                (f"read as {pair.read}", "#b00020"),
                (f"{pair.n} images, {pair.share:.0%}", "black"),
            ]
        )
    headings = [
        (0, "generated"),
        (_EXAMPLES, "real: class asked for"),
        (2 * _EXAMPLES, "real: class read"),
    ]
    return picture_sheet(rows, captions, headings)
