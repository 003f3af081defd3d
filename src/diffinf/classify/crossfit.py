"""Cross-fitting: every sample's features and logits under a classifier that was not trained on it."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffinf.classify.model import ClassifierSpec, load_classifier, predict
from diffinf.classify.train import train_classifier, training_key
from diffinf.classify.workers import Job, Report, run_jobs
from diffinf.config import ClassifierConfig
from diffinf.errors import UserError
from diffinf.files import load_tensors, make_directory, read_json, save_tensors, write_json, writing
from diffinf.training.loop import worker_count

_SLICE = 4096  # images copied out of the shared memory at once
_FORMAT = 2  # of a fold's outputs; another one is trained anew


@dataclass(frozen=True)
class CrossFit:
    """What `cross_fit` found for N samples.

    Attributes:
        fold: int64 (N,); sample i was left out when the model of fold[i] was trained.
        features: float32 (N, F), the last layer's input under that model.
        logits: float32 (N, K) under that model.
        fitted: float32 (N, K), mean class probabilities under the other models, which WERE trained on sample i.
        directory: holds fold-0, fold-1, ..., each a saved classifier.
    """

    fold: Tensor
    features: Tensor
    logits: Tensor
    fitted: Tensor
    directory: Path

    def models(self, device: torch.device | str = "cpu") -> list[nn.Module]:
        """Load the models of all folds, in evaluation mode."""
        count = int(self.fold.max()) + 1
        return [load_classifier(self.directory / f"fold-{k}", device)[0] for k in range(count)]


def fold_assignment(
    ids: Sequence[str] | NDArray[Any],
    labels: NDArray[np.int64],
    folds: int,
    seed: int,
    identities: NDArray[Any] | None = None,
) -> NDArray[np.int64]:
    """Assign samples to folds of nearly equal size and class shares, independently of their order.

    Args:
        ids: (N,) the samples' ids.
        labels: int64 (N,).
        folds: number of folds, at least 2.
        seed: another seed gives another assignment.
        identities: (N,) names of persons; all samples of a person share a fold. A missing name (None or "")
            makes a person of its own.

    Returns:
        int64 (N,) in 0..folds-1.

    Raises:
        UserError: there are fewer samples, or persons, than folds.
    """
    groups = [str(i) for i in ids]
    if identities is not None:
        groups = [f"person {p}" if p else f"id {i}" for p, i in zip(identities, groups, strict=True)]
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < folds:
        what = "samples" if identities is None else "persons"
        raise UserError(f"classifier.folds: {folds} folds need as many {what}, there are {len(names)}")
    classes, label = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(names), len(classes)))
    np.add.at(counts, (member, label), 1)
    order = sorted(
        range(len(names)),
        key=lambda g: (
            -counts[g].sum(),
            int(counts[g].argmax()),
            hashlib.sha256(f"{seed}:{names[g]}".encode()).digest(),
        ),
    )
    # Greedy: the largest groups first, each to the fold that has least of the group's classes, then of all.
    filled = np.zeros((folds, len(classes)))
    shares = counts / counts.sum(axis=0)
    fold_of_group = np.zeros(len(names), dtype=np.int64)
    for group in order:
        load = np.stack([filled @ shares[group], filled.sum(axis=1)]).round(9)
        best = int(np.lexsort((load[1], load[0]))[0])
        fold_of_group[group] = best
        filled[best] += shares[group]
    return fold_of_group[member]


def cross_fit(
    images: Tensor,
    labels: Tensor,
    ids: Sequence[str] | NDArray[Any],
    *,
    spec: ClassifierSpec,
    config: ClassifierConfig,
    folds: int,
    seed: int,
    directory: Path,
    device: torch.device | str = "cpu",
    workers: int | None = None,
    extra_images: Tensor | None = None,
    weights: Tensor | None = None,
    targets: Tensor | None = None,
    identities: NDArray[Any] | None = None,
    progress: bool = True,
    description: str = "cross-fit",
) -> CrossFit:
    """Train one classifier a fold, without the fold's samples, and score those samples with it.

    On a CPU the folds run in parallel processes of one thread. A fold's directory appears whole; a finished
    fold with the same settings and data is kept, an unfinished one goes on where it was. `config.checkpoint`
    is not used here: the user's classifier may have seen every sample.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        ids: (N,) the samples' ids; with the seed they decide the fold.
        spec: the network.
        config: its training.
        folds: number of folds.
        seed: of folds and trainings.
        directory: where folds and outputs go.
        device: where to train; the folds run one after the other on anything but a CPU.
        workers: processes at once on a CPU; None: one a core.
        extra_images: uint8 (N, C, H, W), a second view of the same samples (such as unedited round trips),
            trained on beside the images of the same folds.
        weights: (N,) weights of the samples' losses.
        targets: shares of the classes (N, K) to learn in the place of the labels.
        identities: (N,) persons, kept together in a fold.
        progress: show a progress bar.
        description: what the bar says.

    Raises:
        DivergedError: a loss became NaN or infinite.
        UserError: more folds than samples or persons, or a fold that leaves one class only.
    """
    fold = fold_assignment(ids, labels.numpy(), folds, seed, identities)
    pool = images if extra_images is None else torch.cat([images, extra_images])
    views = 1 if extra_images is None else 2
    settings = config.model_copy(update={"checkpoint": None})
    make_directory(directory)
    material = make_directory(directory / ".work") / "material"
    jobs = []
    for k in range(folds):
        kept = torch.from_numpy(np.flatnonzero(fold != k))
        fold_weights = None if weights is None else weights[kept].repeat(views)
        fold_targets = None if targets is None else targets[kept].repeat(views, 1)
        rows = torch.cat([kept + view * len(images) for view in range(views)])
        key = training_key(
            pool,
            labels[kept].repeat(views),
            spec=spec,
            config=settings,
            seed=seed + k,
            weights=fold_weights,
            targets=fold_targets,
            rows=rows,
            record=False,
        )
        key = f"{_FORMAT}-{key}"
        path = directory / f"fold-{k}"
        if not (path / "fold.json").exists() or read_json(path / "fold.json")["key"] != key:
            job = {
                "directory": str(directory),
                "fold": k,
                "seed": seed + k,
                "key": key,
                "device": str(device),
            }
            jobs.append({**job, "spec": asdict(spec), "config": settings.model_dump(mode="json")})
    if jobs:
        arrays = {"images": pool, "labels": labels, "fold": torch.from_numpy(fold)}
        write_material(material, **arrays, weights=weights, targets=targets)
        run_jobs(
            f"{__name__}:fold_job",
            jobs,
            workers=worker_count(workers),
            units=settings.steps,
            description=f"{description}: {folds} classifiers" if progress else None,
            device=torch.device(device).type,
        )
    shutil.rmtree(directory / ".work", ignore_errors=True)
    return _gather(directory, torch.from_numpy(fold), folds)


def _gather(directory: Path, fold: Tensor, folds: int) -> CrossFit:
    """Put the folds' outputs together, in the order of the samples, and write them to outputs.safetensors."""
    parts = [load_tensors(directory / f"fold-{k}" / "outputs.safetensors") for k in range(folds)]
    joined = {}
    for name in ("features", "logits"):
        joined[name] = torch.empty(len(fold), parts[0][name].shape[1])
        for k, part in enumerate(parts):
            joined[name][fold == k] = part[name]
    joined["fitted"] = torch.zeros_like(joined["logits"])
    for k, part in enumerate(parts):
        joined["fitted"][fold != k] += part["fitted"].softmax(1) / (folds - 1)
    save_tensors(directory / "outputs.safetensors", {"fold": fold, **joined})
    return CrossFit(fold, **joined, directory=directory)


def load_crossfit(directory: Path) -> CrossFit:
    """Read what `cross_fit` left in `directory`; UserError when it is not finished."""
    outputs = load_tensors(directory / "outputs.safetensors")
    return CrossFit(**outputs, directory=directory)


def out_of_fold_logits(
    crossfit: CrossFit,
    images: Tensor,
    fold: Tensor,
    *,
    device: torch.device | str = "cpu",
    tta_flip: bool = False,
) -> Tensor:
    """Return logits (M, K) of new images of given samples, under the models not trained on those samples.

    Args:
        crossfit: from `cross_fit`.
        images: uint8 (M, C, H, W), such as edits.
        fold: int64 (M,), the fold of the sample that each image belongs to.
        device: where to compute.
        tta_flip: average over each image and its mirror image.
    """
    models = crossfit.models(device)
    logits = torch.empty(len(images), crossfit.logits.shape[1])
    for k, model in enumerate(models):
        rows = torch.nonzero(fold == k)[:, 0]
        if len(rows):
            logits[rows] = predict(model, images[rows], device=device, tta_flip=tta_flip)[1]
    return logits


def fold_job(job: Job, report: Report) -> dict[str, Any]:
    """Train one fold and score its samples, in a worker; its directory appears whole, at the end."""
    directory, k = Path(job["directory"]), int(job["fold"])
    material = read_material(directory / ".work" / "material")
    spec, config = read_settings(job)
    images, labels, fold = material["images"], material["labels"], material["fold"]
    kept, left_out = torch.nonzero(fold != k)[:, 0], torch.nonzero(fold == k)[:, 0]
    views = len(images) // len(fold)
    weights = material["weights"][kept].repeat(views) if "weights" in material else None
    targets = material["targets"][kept].repeat(views, 1) if "targets" in material else None
    work = directory / ".work" / f"fold-{k}"
    model = train_classifier(
        images,
        labels[kept].repeat(views),
        spec=spec,
        config=config,
        seed=job["seed"],
        device=job["device"],
        weights=weights,
        targets=targets,
        rows=torch.cat([kept + view * len(fold) for view in range(views)]),
        directory=work,
        record=False,
        progress=False,
        on_step=report,
    )
    features, logits = predict(model, images[left_out], device=job["device"])
    # A second view of the samples, where there is one, follows the first: only the first is judged.
    slices = torch.split(kept, _SLICE)
    fitted = torch.cat([predict(model, images[rows], device=job["device"])[1] for rows in slices])
    outputs = {"features": features, "logits": logits, "fitted": fitted, "rows": left_out}
    save_tensors(work / "outputs.safetensors", outputs)
    write_json(work / "fold.json", {"key": job["key"], "fold": k, "samples": len(left_out)})
    final = directory / f"fold-{k}"
    with writing(final):
        shutil.rmtree(final, ignore_errors=True)
        work.rename(final)
    return {}


def read_settings(job: Job) -> tuple[ClassifierSpec, ClassifierConfig]:
    """Return the network and its training from a job."""
    spec = {**job["spec"], "class_names": tuple(job["spec"]["class_names"])}
    return ClassifierSpec(**spec), ClassifierConfig.model_validate(job["config"])


def write_material(directory: Path, **tensors: Tensor | None) -> None:
    """Write tensors as .npy files that workers map into memory; None is left out."""
    make_directory(directory)
    with writing(directory):
        for name, tensor in tensors.items():
            if tensor is not None:
                np.save(directory / f"{name}.npy", tensor.cpu().numpy())


def read_material(directory: Path) -> dict[str, Tensor]:
    """Map the files of `write_material` into memory: workers share the pages, changes stay private."""
    paths = sorted(directory.glob("*.npy"), key=os.fspath)
    return {path.stem: torch.from_numpy(np.load(path, mmap_mode="c")) for path in paths}
