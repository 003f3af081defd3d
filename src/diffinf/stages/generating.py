"""`diffinf train-generator` and `diffinf generate`: a dataset to a generator, contexts to a folder of images."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from diffinf.classify.model import (
    ClassifierSpec,
    create_classifier,
    save_classifier,
    to_input,
)
from diffinf.config import GeneratorConfig, RunConfig
from diffinf.data.dataset import FaceDataset, open_dataset
from diffinf.data.writers import check_output
from diffinf.diffusion.kl import FIRST_STAGE_CHECKPOINT
from diffinf.errors import UserError
from diffinf.features.persons import train_identity
from diffinf.files import file_sha256, make_directory, read_json, stage_key, write_json
from diffinf.generate.contexts import identity_contexts, random_contexts, unit_contexts
from diffinf.generate.folder import TABLE, choose_negatives, write_generated, write_samples_table
from diffinf.generate.identity import IdentityGuidance
from diffinf.generate.model import LAYOUT, ContextGenerator
from diffinf.generate.sample import Sampling, make_scheduler
from diffinf.generate.train import CHECKPOINT, train_generator
from diffinf.progress import note, silenced
from diffinf.stages.contexts import EMBEDDER, load_embedder, persons_of, read_embeddings, read_order
from diffinf.stages.team import Team
from diffinf.stages.workspace import resolve_device

EMBEDDER_CHECKPOINT = "embedder.checkpoint"
STATE, REQUEST = "training.json", "generate.json"
_TIMED_STEPS = 4


@dataclass(frozen=True)
class Asked:
    """What a dataset gives a generator to learn from.

    Attributes:
        images: uint8 (N, C, H, W), of the split train.
        who: int64 (N,), which context each shows.
        names: of the contexts to be learned, or of those given.
        given: contexts (P, D), or None.
    """

    images: Tensor
    who: Tensor
    names: tuple[str, ...]
    given: Tensor | None


def train_generator_on(
    config: RunConfig, out: Path, *, embeddings: Path | None = None, fresh: bool = False
) -> ContextGenerator:
    """Train a generator on a dataset's split train, or go on where a killed training stopped; what is done is read.

    Args:
        config: dataset, data, seed, device and generator are used.
        out: folder of the generator.
        embeddings: for the condition embedding: a file with id and embedding of every training sample. Without one an
            embedder is trained on the dataset's own persons, and stays with the generator.
        fresh: start over where `out` holds another training.

    Raises:
        UserError: the dataset lacks what the condition needs, or `out` holds another training or lies in the dataset.
    """
    if embeddings is not None and config.generator.condition != "embedding":
        raise UserError(
            f"--embeddings are for --condition embedding, and generator.condition is {config.generator.condition}: "
            "change one of them"
        )
    team = Team()
    dataset = open_dataset(config.dataset, config.data, seed=config.seed)
    shapes = [dataset.fingerprint, dataset.image_size, dataset.channels, dataset.icc]
    source = None if embeddings is None else file_sha256(embeddings) if embeddings.is_file() else "missing"
    key = stage_key(shapes, config.seed, config.generator, source, _persons_key(dataset, config, embeddings))
    device = resolve_device(config.device)
    check_output(dataset, out)
    if team.leads:
        _claim(out, key, fresh)
    _together(team)
    if not (out / LAYOUT.description).exists():
        if team.leads and config.generator.condition == "embedding" and embeddings is None:
            _train_embedder(dataset, config, out / EMBEDDER, device)
        _together(team)
        asked = gather(
            dataset, config.generator, embeddings=embeddings, embedder=out / EMBEDDER, device=device
        )
        if team.leads and len(asked.names) == 1:
            note(
                f"all training pictures show {asked.names[0]!r}: the generator learns to tell nobody apart, and "
                "pictures of this one context can have --negative none or null alone"
            )
        train_generator(
            asked.images,
            asked.who,
            config.generator,
            given=asked.given,
            context_names=asked.names if asked.given is None else (),
            seed=config.seed,
            device=device,
            directory=out,
            details={"key": key, "dataset": config.dataset, "seed": config.seed},
        )
    _together(team)
    if team.leads:
        (out / STATE).unlink(missing_ok=True)
        team.dismiss()
    else:
        team.called()
    return ContextGenerator.from_pretrained(out, device=device)


def gather(
    dataset: FaceDataset,
    config: GeneratorConfig,
    *,
    embeddings: Path | None,
    embedder: Path,
    device: torch.device,
) -> Asked:
    """Return the training images of a dataset and the contexts that they show.

    Raises:
        UserError: the dataset lacks what the condition needs, or the embeddings do not fit it.
    """
    rows = dataset.rows("train")
    if not len(rows):
        raise UserError("no sample is in the split train, the only one that is trained on")
    images = dataset.images(rows, size=dataset.image_size, channels=dataset.channels)
    if config.condition == "label":
        return Asked(images, torch.from_numpy(dataset.labels[rows]), dataset.class_names, None)
    names, who = persons_of(dataset, rows)
    if config.condition == "identity":
        return Asked(images, who, names, None)
    ids = dataset.ids[rows].tolist()
    vectors = (
        read_embeddings(embeddings, ids)
        if embeddings is not None
        else load_embedder(embedder, device).embed(images)[0]
    )
    if config.context_of == "image":
        return Asked(images, torch.arange(len(rows)), tuple(ids), unit_contexts(vectors)[0])
    return Asked(images, who, names, identity_contexts(vectors, who))


def generate(
    folder: Path,
    out: Path,
    *,
    contexts: str,
    per_context: int,
    sampling: Sampling,
    identity_guidance: float = 0.0,
    device: str = "auto",
    fresh: bool = False,
) -> Path:
    """Generate images into `out`, or go on where a killed call stopped; return the table's path.

    Args:
        folder: of the generator.
        out: folder to write; see `diffinf.generate.folder`.
        contexts: train, a file, random:N, reference:DATASET, or perturb:DEGREES:ONE_OF_THESE; DEGREES may be two,
            such as 0-60.
        per_context: images of each context.
        sampling: how.
        identity_guidance: strength of the guidance by the embedder that was trained with the generator; 0: none.
        device: auto, cpu, cuda, ...
        fresh: write into `out` even where it holds images of another call, which go.

    Raises:
        UserError: model, contexts or settings cannot be used, or `out` holds images of another call.
    """
    if per_context < 1:
        raise UserError(f"--per-context: expected at least 1, found {per_context}")
    team, where = Team(), resolve_device(device)
    model = ContextGenerator.from_pretrained(folder, device=where)
    make_scheduler(model, sampling.sampler, sampling.steps)
    order = read_order(model, folder, contexts, per_context, sampling.seed, where, out)
    if order.contexts.shape[1] != model.context_size:
        raise UserError(
            f"--contexts {contexts}: they have {order.contexts.shape[1]} components, the model was trained on "
            f"{model.context_size}"
        )
    choice = choose_negatives(order, sampling)
    guidance = _identity_guidance(folder, order.contexts, identity_guidance, where)
    request = {
        "model": file_sha256(folder / LAYOUT.description),
        "contexts": stage_key(list(order.ids), _digest(order.contexts), order.perturb),
        "sampling": {**asdict(sampling), "schedule": str(sampling.schedule), "batch_size": None},
        "identity_guidance": None if guidance is None else [identity_guidance, _embedder_key(folder)],
    }
    if team.leads:
        _claim_output(out, request, fresh)
    _together(team)
    write_generated(
        model, order, choice, sampling, out, guidance=guidance, rank=team.ranks.rank, size=team.ranks.size
    )
    _together(team)
    if team.leads:
        if choice.normalised:
            note(f"{choice.normalised} contexts were not of unit length and were brought to it")
        if choice.duplicates:
            note(f"{choice.duplicates} contexts stand there more than once: none is its duplicates' negative")
        write_samples_table(order, choice, sampling, out)
        team.dismiss()
    else:
        team.called()
    return out / TABLE


def estimate_generator(config: RunConfig) -> list[dict[str, Any]]:
    """Estimate the seconds of a training on this machine by timing some steps; rows as `estimate_costs` returns."""
    dataset = open_dataset(config.dataset, config.data, seed=config.seed)
    settings = config.generator
    count, side = 2 * settings.batch_size, dataset.image_size
    images = torch.randint(0, 256, (count, dataset.channels, side, side), dtype=torch.uint8)
    seconds = []
    for steps in (1, 1, 1 + _TIMED_STEPS):  # the first one warms up
        quick = {
            "steps": steps,
            "validation_share": 0.0,
            "sheets": 0,
            "tracker": "none",
            "first_stage_steps": 1,
        }
        with tempfile.TemporaryDirectory() as directory, silenced():
            start = time.perf_counter()
            train_generator(
                images,
                torch.arange(count),
                settings.model_copy(update=quick),
                given=random_contexts(count, settings.context_size),
                seed=0,
                device=resolve_device(config.device),
                directory=Path(directory),
            )
            seconds.append(time.perf_counter() - start)
    step = max(0.0, seconds[2] - seconds[1]) / _TIMED_STEPS
    work = f"{settings.steps} steps of the generator"
    return [{"stage": "train-generator", "work": work, "seconds": round(settings.steps * step, 1)}]


def _identity_guidance(
    folder: Path, contexts: Tensor, strength: float, device: torch.device
) -> IdentityGuidance | None:
    """Return the guidance by the generator's embedder; None for a strength of 0, UserError where it cannot be."""
    if strength == 0:
        return None
    if not (folder / EMBEDDER).exists():
        raise UserError(
            "--identity-guidance: no embedder is with this generator; train one with --condition embedding and without "
            "--embeddings, or leave the option out"
        )
    if len(contexts) < 2:
        raise UserError("--identity-guidance: there is nobody to be told from; give at least two contexts")
    network = load_embedder(folder / EMBEDDER, device).network
    return IdentityGuidance(network, unit_contexts(contexts)[0].to(device), strength)


def _embedder_key(folder: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in sorted((folder / EMBEDDER).iterdir()) if path.is_file()}


def _persons_key(dataset: FaceDataset, config: RunConfig, embeddings: Path | None) -> list[Any]:
    """Return what a training depends on beside pictures and labels: who is shown, and the embedder's training."""
    if config.generator.condition == "label" or dataset.identities is None:
        return []
    found: list[Any] = [dataset.identities.tolist()]
    if config.generator.condition == "embedding" and embeddings is None:
        settings = config.classifier
        found += [settings.name, settings.batch_size, settings.learning_rate]
    return found


def _claim(out: Path, key: str, fresh: bool) -> None:
    """Make `out` this training's; UserError where it is another one's."""
    make_directory(out)
    if fresh:
        for name in (LAYOUT.description, STATE, CHECKPOINT, FIRST_STAGE_CHECKPOINT, EMBEDDER_CHECKPOINT):
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / EMBEDDER, ignore_errors=True)
    found = None
    if (out / LAYOUT.description).exists():
        found = (read_json(out / LAYOUT.description).get("details") or {}).get("key")
    elif (out / STATE).exists():
        found = read_json(out / STATE).get("key")
    elif any(out.iterdir()) and not fresh:
        raise UserError(f"{out}: not empty, and no generator's folder; choose another")
    if found not in (None, key):
        raise UserError(
            f"{out}: holds a generator of another dataset or other settings; choose another folder, or --fresh"
        )
    if not (out / LAYOUT.description).exists():
        write_json(out / STATE, {"key": key})


def _claim_output(out: Path, request: dict[str, Any], fresh: bool) -> None:
    """Make `out` this call's; UserError where it is another one's."""
    make_directory(out)
    plain = json.loads(json.dumps(request))
    if (out / REQUEST).exists() and read_json(out / REQUEST) != plain:
        if not fresh:
            raise UserError(
                f"{out}: holds images of another model, other contexts or settings; choose another folder, or --fresh"
            )
        for file in (out / "images").rglob("*.png"):
            file.unlink()
    elif not (out / REQUEST).exists() and any(out.iterdir()):
        raise UserError(f"{out}: not empty, and not of this command; choose another folder")
    (out / TABLE).unlink(missing_ok=True)
    write_json(out / REQUEST, plain)


def _digest(contexts: Tensor) -> str:
    return hashlib.sha256(contexts.float().contiguous().numpy().tobytes()).hexdigest()


def _together(team: Team) -> None:
    if team.ranks.size > 1:
        distributed.barrier()


def _train_embedder(dataset: FaceDataset, config: RunConfig, directory: Path, device: torch.device) -> None:
    """Train an embedder of persons on the split train and save it; what is there is of the same key, and stays."""
    if (directory / "config.json").exists():
        return
    rows = dataset.rows("train")
    _, who = persons_of(dataset, rows)
    settings = config.classifier
    spec = ClassifierSpec(settings.name, config.generator.context_size, dataset.channels, dataset.image_size)
    network = train_identity(
        create_classifier(spec, config.seed),
        dataset.images(rows, size=dataset.image_size, channels=dataset.channels),
        who,
        to_input=to_input,
        steps=config.generator.embedder_steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        seed=config.seed,
        device=device,
        checkpoint=directory.with_name(EMBEDDER_CHECKPOINT),
    )
    save_classifier(directory, network, spec)
    directory.with_name(EMBEDDER_CHECKPOINT).unlink(missing_ok=True)
