"""Training all arms alike, and measuring them on the same test images."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffinf.classify.crossfit import read_material, read_settings, write_material
from diffinf.classify.methods import MethodSpec
from diffinf.classify.model import ClassifierSpec, predict, save_classifier
from diffinf.classify.train import image_digest, train_classifier, training_key
from diffinf.classify.workers import Job, Report, run_jobs
from diffinf.compare.arms import Material, TrainingSet, training_method, training_set
from diffinf.config import KNOBS, ClassifierConfig, CompareConfig
from diffinf.evaluate.gain import balanced_accuracy, macro_f1, mean_absolute_error
from diffinf.files import (
    load_tensors,
    make_directory,
    read_json,
    save_tensors,
    stage_key,
    write_json,
    write_table,
)
from diffinf.progress import note
from diffinf.training.loop import DivergedError, worker_count

_SCHEMA = pa.schema(
    [
        ("arm", pa.string()),
        ("seed", pa.int64()),
        ("n_train", pa.int64()),
        ("steps", pa.int64()),
        ("accuracy", pa.float64()),
        ("balanced_accuracy", pa.float64()),
        ("macro_f1", pa.float64()),
        ("mean_absolute_error", pa.float64()),
        ("seconds", pa.float64()),
        ("diverged", pa.bool_()),
    ]
)


def run_arms(
    *,
    images_train: Tensor,
    labels_train: Tensor,
    ids: Sequence[str] | NDArray[Any],
    flagged: NDArray[np.bool_],
    appears: NDArray[np.int64],
    edited_images: Mapping[int, Tensor],
    relabelled: Mapping[int, int],
    dropped: Collection[int],
    images_test: Tensor,
    labels_test: Tensor,
    spec: ClassifierSpec,
    config: ClassifierConfig,
    compare: CompareConfig,
    seed: int,
    directory: Path,
    device: torch.device | str = "cpu",
    workers: int | None = None,
    roundtrip_images: Mapping[int, Tensor] | None = None,
    oracle_images: Mapping[int, Tensor] | None = None,
    truth: Tensor | None = None,
    cleanlab_issues: NDArray[np.bool_] | None = None,
    paper_edits: Mapping[int, Tensor] | None = None,
    true_flag_edits: Mapping[int, Tensor] | None = None,
    relabelled_instead: Mapping[int, int] | None = None,
    dropped_instead: Collection[int] | None = None,
    noise_rate: float | None = None,
    images_validation: Tensor | None = None,
    labels_validation: Tensor | None = None,
    targets: Tensor | None = None,
    ordered: bool = False,
    final_directory: Path | None = None,
    table_path: Path | None = None,
    progress: bool = True,
) -> pa.Table:
    """Train every arm of `compare.arms` with every seed and measure it on the test images.

    All arms have the same network, number of steps, batch size and schedule, and with one seed the same
    initialisation; those with a robust method differ in the loss, or in how it is descended. On a CPU the
    trainings run in parallel processes of one thread. A finished training with the same settings and data is
    kept, an unfinished one goes on where it was. A training that diverges is a row of the table with
    `diverged` true and no figures.

    Args:
        images_train: uint8 (N, C, H, W).
        labels_train: int64 (N,), as annotated.
        ids: (N,) the samples' ids.
        flagged: bool (N,).
        appears: int64 (N,), the label each image appears to have (arm relabel).
        edited_images: sample -> its accepted edit, uint8 (C, H, W) (arm diffinf).
        relabelled: sample -> label the repair gave it (arm diffinf).
        dropped: samples the repair dropped (arm diffinf).
        images_test: uint8 (T, C, H, W).
        labels_test: int64 (T,), taken as right.
        spec: the network.
        config: its training; `config.checkpoint` is not used.
        compare: arms, seeds, knobs.
        seed: the trainings' seeds are seed, seed + 1, ...
        directory: gets predictions/{arm}-{seed}.safetensors with "logits" (T, K), the record {arm}-{seed}.json
            with "label_counts" (K,), the samples trained on by label, and test.safetensors with "labels" (T,);
            where there are validation images, "validation_logits" (V, K) beside the logits, and
            validation.safetensors with "labels" (V,).
        device: where to train; one after the other on anything but a CPU.
        workers: processes at once on a CPU; None: `compare.workers`, else one a core.
        roundtrip_images: sample -> its unedited reconstruction (arm roundtrip).
        oracle_images: sample -> an image that truly fits its label (arm oracle-edit).
        truth: int64 (N,), true labels (arm clean).
        cleanlab_issues: bool (N,), what cleanlab prunes by out-of-fold probabilities (arm cleanlab).
        paper_edits: sample -> its edit under flags by self-influence, uint8 (C, H, W) (arm diffinf-paper).
        true_flag_edits: sample -> its edit under perfect flags (arm true-flags).
        relabelled_instead: sample -> label under the policy edit-or-relabel; None: what each flagged sample
            without an edit appears to show (arm diffinf-edit-or-relabel).
        dropped_instead: samples dropped under the policy edit-or-drop; None: each flagged sample without an
            edit (arms diffinf-edit-or-drop, diffinf-edit-or-resample).
        noise_rate: estimated share of wrong labels, what co-teaching forgets unless `compare.knobs` says else.
        images_validation: uint8 (V, C, H, W), to choose arms and knobs on; None: none.
        labels_validation: int64 (V,), as annotated.
        targets: shares of the classes (N, K) to learn in the place of the labels, where image and label are as they
            came; gce, sce and aldr-kl learn the labels all the same.
        ordered: the classes rise along a scale, so that the distance of a prediction from the label means something.
        final_directory: where the model of the arm diffinf with the first seed is saved; without that arm, or where
            it diverges, none is there.
        table_path: where the table is written as Parquet.
        progress: show a progress bar.

    Returns:
        A row for each arm and seed: arm, seed, n_train, steps, accuracy, balanced_accuracy, macro_f1 (in
        0..1, on the test images), mean_absolute_error (in classes, null where they are not ordered), seconds (of
        the training, since it was last taken up), diverged.

    Raises:
        UserError: an arm is not known, lacks what it needs, or leaves fewer than two classes.
        ValueError: shapes do not fit.
    """
    if (images_validation is None) != (labels_validation is None):
        raise ValueError("images_validation and labels_validation come together")
    pool, places = _pool(
        images_train, edited_images, roundtrip_images, oracle_images, paper_edits, true_flag_edits
    )
    edited, roundtrips, oracle_edits, paper, true_flags = places
    material = Material(
        ids=np.asarray(ids),
        labels=labels_train.numpy(),
        flagged=np.asarray(flagged, dtype=bool),
        appears=np.asarray(appears, dtype=np.int64),
        edited=edited or {},
        relabelled=relabelled,
        dropped=dropped,
        roundtrips=roundtrips,
        oracle_edits=oracle_edits,
        truth=None if truth is None else truth.numpy(),
        cleanlab_issues=None if cleanlab_issues is None else np.asarray(cleanlab_issues, dtype=bool),
        paper_edits=paper,
        true_flag_edits=true_flags,
        relabelled_instead=relabelled_instead,
        dropped_instead=dropped_instead,
        targets=None if targets is None else targets.numpy(),
        flagged_weight=compare.knobs.get("down-weight", KNOBS["down-weight"].default),
    )
    config = config.model_copy(update={"checkpoint": None})
    if final_directory is not None and "diffinf" not in compare.arms:
        shutil.rmtree(final_directory, ignore_errors=True)  # of an earlier comparison
    runs: list[tuple[str, int]] = [
        (arm, seed + offset) for offset in range(compare.seeds) for arm in compare.arms
    ]
    sets = {(arm, run_seed): training_set(arm, material, run_seed) for arm, run_seed in runs}
    methods = {arm: training_method(arm, compare, noise_rate) for arm in compare.arms}
    read = [
        image_digest(images, torch.arange(len(images)))
        for images in (images_test, images_validation)
        if images is not None
    ]
    jobs = []
    for (arm, run_seed), chosen in sets.items():
        labels, rows = torch.from_numpy(chosen.labels), torch.from_numpy(chosen.rows)
        weights = None if chosen.weights is None else torch.from_numpy(chosen.weights)
        trained = training_key(
            pool,
            labels,
            spec=spec,
            config=config,
            seed=run_seed,
            weights=weights,
            targets=None if chosen.targets is None else torch.from_numpy(chosen.targets),
            rows=rows,
            method=methods[arm],
            record=False,
        )
        keep = final_directory if (arm, run_seed) == ("diffinf", seed) else None
        key = stage_key(trained, *read)
        job = _job(directory, arm, run_seed, key, device, spec, config, methods[arm], keep)
        if not _is_done(job):
            jobs.append(job)
    if jobs:
        wanted = {name: sets[name] for name in _names(jobs)}
        _write_work(directory, pool, images_test, images_validation, wanted)
        answers = run_jobs(
            f"{__name__}:arm_job",
            jobs,
            workers=worker_count(workers or compare.workers),
            units=config.steps,
            description=f"train {len(compare.arms)} arms, {compare.seeds} seeds" if progress else None,
            device=torch.device(device).type,
        )
        for job, answer in zip(jobs, answers, strict=True):
            if answer["diverged"] is not None:
                note(f"arm {job['arm']}, seed {job['seed']} diverged: {answer['diverged']}")
    save_tensors(directory / "test.safetensors", {"labels": labels_test})
    if labels_validation is not None:
        save_tensors(directory / "validation.safetensors", {"labels": labels_validation})
    shutil.rmtree(directory / ".work", ignore_errors=True)
    by_arm = [(arm, seed + offset) for arm in compare.arms for offset in range(compare.seeds)]
    table = _table(directory, by_arm, labels_test.numpy(), config.steps, ordered)
    if table_path is not None:
        write_table(table_path, table, spec.class_names)
    return table


def arm_job(job: Job, report: Report) -> dict[str, Any]:
    """Train one arm with one seed and predict the test images, in a worker; its record is written last."""
    directory, name = Path(job["directory"]), f"{job['arm']}-{job['seed']}"
    material = read_material(directory / ".work" / "material")
    spec, config = read_settings(job)
    predictions = directory / "predictions" / f"{name}.safetensors"
    work = directory / ".work" / name
    if job["final"] is not None:
        shutil.rmtree(
            job["final"], ignore_errors=True
        )  # of other data or settings, and there may be no new one
    start = time.monotonic()
    failure = None
    try:
        model = train_classifier(
            material["images"],
            material[f"labels-{name}"],
            spec=spec,
            config=config,
            seed=job["seed"],
            device=job["device"],
            weights=material.get(f"weights-{name}"),
            targets=material.get(f"targets-{name}"),
            rows=material[f"rows-{name}"],
            method=None if job["method"] is None else MethodSpec(**job["method"]),
            directory=work,
            record=False,
            progress=False,
            on_step=report,
        )
        seconds = time.monotonic() - start
        outputs = {
            name: predict(model, material[split], device=job["device"])[1]
            for name, split in (("logits", "test"), ("validation_logits", "validation"))
            if split in material
        }
        if not all(bool(torch.isfinite(logits).all()) for logits in outputs.values()):
            raise DivergedError("the logits of held-out images are not finite")
        save_tensors(predictions, outputs)
        if job["final"] is not None:
            save_classifier(Path(job["final"]), model, spec)
    except DivergedError as error:
        seconds, failure = time.monotonic() - start, str(error)
        predictions.unlink(missing_ok=True)
    samples = len(material[f"rows-{name}"])
    record = {"key": job["key"], "n_train": samples, "seconds": round(seconds, 3), "diverged": failure}
    labels, weights = material[f"labels-{name}"], material.get(f"weights-{name}")
    record["label_counts"] = torch.bincount(labels, weights, minlength=spec.num_classes).tolist()
    write_json(_record_path(directory, job["arm"], job["seed"]), record)
    shutil.rmtree(work, ignore_errors=True)
    return record


def _pool(
    images: Tensor, *replacements: Mapping[int, Tensor] | None
) -> tuple[Tensor, list[dict[int, int] | None]]:
    """All images in one tensor, and for each mapping that is there the sample -> row of its replacement."""
    parts, places, count = [images], list[dict[int, int] | None](), len(images)
    for given in replacements:
        if given is None:
            places.append(None)
            continue
        ordered = sorted(given.items())
        for row, image in ordered:
            if image.dtype != torch.uint8 or image.shape != images.shape[1:] or not 0 <= row < len(images):
                raise ValueError(
                    f"a replacement must be uint8 {tuple(images.shape[1:])} for a sample below "
                    f"{len(images)}, got {image.dtype} {tuple(image.shape)} for {row}"
                )
        parts += [torch.stack([image for _, image in ordered])] if ordered else []
        places.append({row: count + position for position, (row, _) in enumerate(ordered)})
        count += len(ordered)
    return torch.cat(parts), places


def _job(
    directory: Path,
    arm: str,
    seed: int,
    key: str,
    device: torch.device | str,
    spec: ClassifierSpec,
    config: ClassifierConfig,
    method: MethodSpec | None,
    final: Path | None,
) -> dict[str, Any]:
    return {
        "directory": str(directory),
        "arm": arm,
        "seed": seed,
        "key": key,
        "device": str(device),
        "spec": asdict(spec),
        "config": config.model_dump(mode="json"),
        "method": None if method is None else asdict(method),
        "final": None if final is None else str(final),
    }


def _names(jobs: Sequence[Job]) -> list[tuple[str, int]]:
    return [(job["arm"], job["seed"]) for job in jobs]


def _is_done(job: Job) -> bool:
    """Whether an arm's record has the job's key and everything it speaks of is there."""
    path = _record_path(Path(job["directory"]), job["arm"], job["seed"])
    if not path.exists():
        return False
    record = read_json(path)
    if record["key"] != job["key"]:
        return False
    saved = job["final"] is None or (Path(job["final"]) / "config.json").exists()
    return record["diverged"] is not None or (saved and path.with_suffix(".safetensors").exists())


def _record_path(directory: Path, arm: str, seed: int) -> Path:
    return directory / "predictions" / f"{arm}-{seed}.json"


def _write_work(
    directory: Path,
    pool: Tensor,
    images_test: Tensor,
    images_validation: Tensor | None,
    sets: Mapping[tuple[str, int], TrainingSet],
) -> None:
    """Write what the workers read."""
    shutil.rmtree(directory / ".work" / "material", ignore_errors=True)  # of a comparison that was cut
    tensors: dict[str, Tensor | None] = {"images": pool, "test": images_test, "validation": images_validation}
    for (arm, seed), chosen in sets.items():
        tensors[f"rows-{arm}-{seed}"] = torch.from_numpy(chosen.rows)
        tensors[f"labels-{arm}-{seed}"] = torch.from_numpy(chosen.labels)
        for what, values in (("weights", chosen.weights), ("targets", chosen.targets)):
            if values is not None:
                tensors[f"{what}-{arm}-{seed}"] = torch.from_numpy(values)
    write_material(make_directory(directory / ".work") / "material", **tensors)


def _table(
    directory: Path, runs: Sequence[tuple[str, int]], labels: NDArray[np.int64], steps: int, ordered: bool
) -> pa.Table:
    """Measure the predictions of all arms."""
    rows = []
    for arm, seed in runs:
        path = _record_path(directory, arm, seed)
        record = read_json(path)
        row = {"arm": arm, "seed": seed, "n_train": record["n_train"], "steps": steps}
        row |= {"seconds": record["seconds"], "diverged": record["diverged"] is not None}
        if record["diverged"] is None:
            predicted = load_tensors(path.with_suffix(".safetensors"))["logits"].argmax(1).numpy()
            row["accuracy"] = float((predicted == labels).mean())
            row["balanced_accuracy"] = balanced_accuracy(predicted, labels)
            row["macro_f1"] = macro_f1(predicted, labels)
            row["mean_absolute_error"] = mean_absolute_error(predicted, labels) if ordered else None
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=_SCHEMA)
