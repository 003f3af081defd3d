"""The compare stage: the arms out of the run's files, their training, the retrained classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from diffinf.classify.crossfit import load_crossfit
from diffinf.compare.runner import run_arms
from diffinf.config import RunConfig, split_arm
from diffinf.data.dataset import FaceDataset
from diffinf.data.readers import SPLITS
from diffinf.errors import UserError
from diffinf.files import load_tensors, read_table, write_json
from diffinf.influence.rivals import cleanlab_issues
from diffinf.progress import note
from diffinf.stages.oracle import image_digests
from diffinf.stages.refining import decisions
from diffinf.stages.scores import name_some
from diffinf.stages.workspace import Workspace

_KNOW_TRUTH = ("clean", "true-flags", "oracle-edit")
_OF_BENCHMARKS = ("diffinf-paper", "true-flags", "oracle-edit")  # a run makes no such images


def compare_run(workspace: Workspace) -> None:
    """Write compare.parquet, compare/ and classifier/final/.

    Raises:
        UserError: an arm lacks what it needs, or the test split shares samples with training or validation.
    """
    check_comparison(workspace.config, workspace.dataset)
    run, config = workspace.run, workspace.config
    material = arm_material(workspace, config.compare.arms)
    check_pictures(workspace, material["images_test"])
    run_arms(
        **material,
        config=config.classifier,
        compare=config.compare,
        directory=run.compare,
        final_directory=run.classifier / "final",
        table_path=run.comparison,
    )
    write_json(run.compare / "refined.json", {"refine": run.key("refine")})  # what the arms were trained on


def say_what_goes(workspace: Workspace) -> None:
    """Say which arms of the last comparison the new table will not have."""
    comparison = workspace.run.comparison
    if not comparison.exists():
        return
    before = dict.fromkeys(read_table(comparison)["arm"].to_pylist())
    if gone := [arm for arm in before if arm not in workspace.config.compare.arms]:
        note(
            f"compare.parquet and the report will no longer have {', '.join(gone)}; their trainings stay: name them in "
            "--arms too, and they are there again at once"
            + ("; the classifier that `diffinf predict` uses goes" if "diffinf" in gone else "")
        )


def arm_material(workspace: Workspace, arms: Sequence[str]) -> dict[str, Any]:
    """Return what `diffinf.compare.runner.run_arms` is given of the run's files and its dataset for `arms`."""
    run, dataset = workspace.run, workspace.dataset
    scores, edits = read_table(run.scores), read_table(run.edits)
    code_of = {name: code for code, name in enumerate(dataset.class_names)}
    rows, statuses = workspace.rows_of(edits["id"].to_pylist()), edits["status"].to_pylist()
    relabelled, dropped = _instead(workspace, edits)
    pictures = load_tensors(run.repair / "pictures.safetensors")
    test, validation = dataset.rows("test"), dataset.rows("validation")
    return {
        "images_train": workspace.images,
        "labels_train": workspace.labels,
        "ids": workspace.ids,
        "flagged": scores["flagged"].to_numpy(),
        "appears": np.array([code_of[name] for name in scores["appears"].to_pylist()], dtype=np.int64),
        "edited_images": {
            int(row): pictures["edited"][m] for m, row in enumerate(rows) if statuses[m] == "edited"
        },
        "relabelled": relabelled,
        "dropped": dropped,
        "roundtrip_images": {int(row): pictures["roundtrip"][m] for m, row in enumerate(rows)},
        "images_test": workspace.images_of(test),
        "labels_test": torch.from_numpy(dataset.labels[test]),
        "images_validation": workspace.images_of(validation) if len(validation) else None,
        "labels_validation": torch.from_numpy(dataset.labels[validation]) if len(validation) else None,
        "targets": workspace.targets,
        "ordered": dataset.ordered,
        "spec": workspace.spec,
        "seed": workspace.seed,
        "device": workspace.device,
        "noise_rate": float(1 - np.mean(scores["label_trust"].to_numpy())),
        **_asked_for(workspace, arms),
    }


def _asked_for(workspace: Workspace, names: Sequence[str]) -> dict[str, Any]:
    """What only some arms need, if they are there."""
    arms, found = data_arms(names), dict[str, Any]()
    if "clean" in arms and (truth := workspace.truth()) is not None:
        found["truth"] = torch.from_numpy(truth)
    if "cleanlab" in arms:
        logits = load_crossfit(workspace.run.crossfit).logits.double().numpy()
        found["cleanlab_issues"] = cleanlab_issues(workspace.labels.numpy(), logits)
    if "diffinf-edit-or-relabel" in arms:
        found["relabelled_instead"] = _instead(workspace, decisions(workspace.run, "edit-or-relabel"))[0]
    if arms & {"diffinf-edit-or-drop", "diffinf-edit-or-resample"}:
        found["dropped_instead"] = _instead(workspace, decisions(workspace.run, "edit-or-drop"))[1]
    return found


def _instead(workspace: Workspace, edits: pa.Table) -> tuple[dict[int, int], set[int]]:
    """Samples that were relabelled, with the new label, and those that were dropped, in rows as of edits.parquet."""
    rows = edits.select(["id", "status", "new_label"]).to_pylist()
    code_of = {name: code for code, name in enumerate(workspace.dataset.class_names)}
    paired = list(zip(workspace.rows_of([row["id"] for row in rows]).tolist(), rows, strict=True))
    relabelled = {place: code_of[row["new_label"]] for place, row in paired if row["status"] == "relabelled"}
    return relabelled, {place for place, row in paired if row["status"] == "dropped"}


def data_arms(names: Sequence[str]) -> set[str]:
    """What arms of these names train on, whatever the method."""
    return {split_arm(name)[0] for name in names}


def check_comparison(config: RunConfig, dataset: FaceDataset) -> None:
    """Refuse early what the comparison would refuse after hours.

    Raises:
        UserError: an arm lacks what it needs, or a test sample's file or person is in training or validation too.
    """
    arms = data_arms(config.compare.arms)
    for arm in (name for name in _KNOW_TRUTH if name in arms):
        if "truth_label" not in dataset.truth_columns:
            raise UserError(
                f"compare.arms: the arm {arm} is a reference that knows the truth, and the dataset has no column "
                "truth_label; leave the arm out"
            )
    for arm in (name for name in _OF_BENCHMARKS if name in arms):
        raise UserError(
            f"compare.arms: the arm {arm} needs images that a run does not make; benchmarks give them to "
            "diffinf.compare.runner.run_arms; leave the arm out"
        )
    if "cleanlab" in arms and find_spec("cleanlab") is None:
        raise UserError(
            'compare.arms: the arm cleanlab needs a package that is not installed: pip install "diffinf[peers]", '
            "or leave the arm out"
        )
    check_apart(config, dataset)


def check_apart(config: RunConfig, dataset: FaceDataset) -> None:
    """Refuse a test split that shares files or persons with training or validation, unless the settings allow it.

    Choices are made on validation. What validation shares with training is only said.

    Raises:
        UserError: the test split is not apart.
    """
    keys = {"files": np.array(dataset.sha256)}
    if dataset.identities is not None:
        keys["persons"] = dataset.identities
    _check_splits(
        config, dataset, {what: {s: key[dataset.rows(s)] for s in SPLITS} for what, key in keys.items()}
    )


def check_pictures(workspace: Workspace, images_test: Tensor) -> None:
    """Do as `check_apart` does with pictures, pixel by pixel, however their files were encoded."""
    validation = workspace.images_of(workspace.dataset.rows("validation"))
    images = {"train": workspace.images, "validation": validation, "test": images_test}
    digests = {split: np.array(image_digests(of), dtype=np.str_) for split, of in images.items()}
    _check_splits(workspace.config, workspace.dataset, {"pictures": digests})


def _check_splits(
    config: RunConfig, dataset: FaceDataset, keys: Mapping[str, Mapping[str, npt.NDArray[np.str_]]]
) -> None:
    """Refuse what test shares with the others, say what validation shares with training; keys (N,) by kind, split."""
    named = {
        (split, other): _named(dataset, split, other, keys)
        for split, other in (("test", "train"), ("test", "validation"), ("validation", "train"))
    }
    if found := named.pop(("validation", "train")):
        note(f"{dataset.source.name}: the validation split is not apart: {'; '.join(found)}")
    if (found := [text for texts in named.values() for text in texts]) and not config.compare.allow_overlap:
        raise UserError(
            f"{dataset.source.name}: the test split is not apart: {'; '.join(found)}; "
            "`diffinf inspect` lists them: mend the splits, or compare all the same with --set "
            "compare.allow_overlap=true"
        )


def _named(
    dataset: FaceDataset, split: str, other: str, keys: Mapping[str, Mapping[str, npt.NDArray[np.str_]]]
) -> list[str]:
    """Say in words what samples of `split` share with `other`; an empty key is like no other."""
    ids, found = dataset.ids[dataset.rows(split)].tolist(), []
    for what, of in keys.items():
        there = set(of[other].tolist())
        shared = [name for name, key in zip(ids, of[split].tolist(), strict=True) if key and key in there]
        if shared:
            whose = "training" if other == "train" else other
            found.append(
                f"{what} of {whose} in {len(shared)} of {len(ids)} {split} samples ({name_some(shared)})"
            )
    return found
