"""The stages in their order: what each reads, calls and writes.

A stage's key hashes its settings and the keys of the stages it reads; what is done with the same key is
skipped. Results are always read back from disk before the next stage uses them, so that a run that was killed
and one that was not see the same numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from diffinf.classify.crossfit import cross_fit
from diffinf.classify.model import to_input
from diffinf.classify.train import load_checkpoints, train_classifier
from diffinf.config import PresetName, RunConfig, make_config
from diffinf.data.cache import DecodeCache, open_cache
from diffinf.data.dataset import FaceDataset, open_dataset
from diffinf.data.readers.remote import located
from diffinf.data.writers import check_output
from diffinf.diffusion.invert import default_scheduler, most_steps
from diffinf.errors import UserError
from diffinf.files import content_sha256, save_tensors, stage_key
from diffinf.influence.self_influence import self_influence
from diffinf.repair.edit import check_noise_levels
from diffinf.run import Run
from diffinf.stages.autoencoding import train_autoencoder, train_together
from diffinf.stages.comparing import check_comparison, compare_run, data_arms, say_what_goes
from diffinf.stages.identifying import identity_provider
from diffinf.stages.measure import evaluate_edits, evaluate_scores
from diffinf.stages.refining import REFINED, refine
from diffinf.stages.repairing import repair_run
from diffinf.stages.scoring import score_run
from diffinf.stages.summary import write_results
from diffinf.stages.tables import write_dataset_tables
from diffinf.stages.team import Team
from diffinf.stages.workspace import Workspace, default_preset

# What the stages whose results rest on others' leave: stale once the others run again.
MEASURED = ("detection.json", "detection.png")
REPAIRED = ("repair", "surrogate")
COMPARED = ("compare.parquet", "compare")


def execute(
    config: RunConfig,
    *,
    until: str = "report",
    out: Path | None = None,
    fresh: bool = False,
    cache: DecodeCache | None = None,
) -> Run:
    """Run the stages up to `until` ("train", "score", "train-autoencoder", "repair", "compare", "report").

    Under `torchrun` the first process does this, and the others take their part of the self-influence and of the
    autoencoder's training.

    Args:
        config: settings, the dataset among them.
        until: the last stage.
        out: the run's directory; none: runs/NAME-KEY, the same for the same data and seed.
        fresh: start over instead of continuing.
        cache: where decoded images are kept; none: as the settings say.

    Raises:
        UserError: the data, the settings or the directory cannot be used; the message says why.
    """
    if config.influence.flags is not None and not config.influence.flags.is_file():
        raise UserError(f"influence.flags: {config.influence.flags}: no such file; expected ids to repair")
    if (
        config.autoencoder.weights is None
    ):  # rather now than after hours; of given weights their stage knows more
        check_noise_levels(
            config.repair, config.autoencoder.max_depth, partial(most_steps, default_scheduler())
        )
    path = out or default_directory(config)
    cache = cache or open_cache(config.data, path)
    dataset = open_dataset(config.dataset, config.data, seed=config.seed, cache=cache)
    team = Team()
    if not team.leads:
        return _help(team, config, dataset, path)
    check_output(dataset, path)
    if until in ("compare", "report"):
        check_comparison(config, dataset)  # rather now than after hours
    run = Run.create(path, config, dataset.fingerprint, fresh=fresh)
    with run.lock():
        run.sweep()
        if cache is not None:
            cache.release()
        workspace = Workspace(run, dataset, team)
        _check_labels(workspace)
        identity_provider(config.repair.identity, workspace.identities)  # rather now than after hours
        write_dataset_tables(workspace)
        run.event("run", "begin", device=str(workspace.device), cpus=os.cpu_count(), until=until)
        for name, stage in STAGES.items():
            stage(workspace)
            if name == until:
                break
        write_results(run)
    team.dismiss()
    return run


def _check_labels(workspace: Workspace) -> None:
    """Refuse votes that nobody named, and a loss of ordered classes where nobody says that they are; UserError."""
    if workspace.config.classifier.targets == "votes" and workspace.dataset.votes is None:
        raise UserError(
            "classifier.targets: votes: no column of them is named; name some with data.votes or data.annotators"
        )
    if workspace.config.classifier.loss == "earth_mover" and not workspace.dataset.ordered:
        names = ", ".join(workspace.dataset.class_names[:5])
        raise UserError(
            f"classifier.loss: earth_mover is for ordered classes, and nothing says that {names} are; cut a number "
            "with data.bins, name all classes from low to high in data.order, or take cross_entropy"
        )


def _help(team: Team, config: RunConfig, dataset: FaceDataset, path: Path) -> Run:
    """Compute this process's part of the work that the leader calls to, each time it calls."""
    while (work := team.called()) is not None:
        if dataset.cache is not None:  # the leader has made the run by now
            dataset.cache.release()
        workspace = Workspace(Run.open(path), dataset, team)
        if work == "self-influence":
            _influence_values(workspace)
        else:
            train_together(workspace)
    return Run.open(path)


def repair_dataset(
    dataset: Path | str,
    *,
    out: Path | str | None = None,
    until: str = "report",
    preset: PresetName | None = None,
    fresh: bool = False,
    **settings: Any,
) -> Run:
    """Take a dataset all the way, as `diffinf run` does.

    Args:
        dataset: a dataset's folder, table, or a table's URL; docs/datasets.md lists what is known.
        out: the run's directory; none: runs/NAME-KEY.
        until: the last stage.
        preset: "cpu", "cpu-small", "gpu", "gpu-48", "gpu-128" or "tiny"; none: "gpu" where there is one, else "cpu".
        fresh: start over instead of continuing.
        settings: as in config.yaml: seed=1, data={"label": "age"}, classifier={"steps": 2000} ...

    Returns:
        The run: `run.summary`, `run.report`, `run.refined` ... are paths in its directory.

    Raises:
        UserError: the data, the settings or the directory cannot be used; the message says why.
    """
    chosen = preset or default_preset(settings.get("device", "auto"))
    config = make_config(located(dataset), preset_name=chosen, values=settings)
    return execute(config, until=until, out=None if out is None else Path(out), fresh=fresh)


def default_directory(config: RunConfig) -> Path:
    """Return runs/NAME-KEY, where KEY hashes data settings and seed: other settings continue the run."""
    data = config.data.model_dump(mode="json", exclude={"groups", "cache", "cache_gb"})  # change no result
    key = stage_key(config.dataset, data, config.seed)
    return Path("runs") / f"{Path(config.dataset).stem}-{key[:8]}"


def train(workspace: Workspace) -> None:
    """Train the baseline classifier with checkpoints and dynamics, or take the user's."""
    run, config = workspace.run, workspace.config.classifier

    def work() -> None:
        train_classifier(
            workspace.images,
            workspace.labels,
            spec=workspace.spec,
            config=config,
            seed=workspace.seed,
            device=workspace.device,
            targets=workspace.targets,
            directory=run.classifier,
        )

    key = stage_key("train", workspace.inputs_key, config, content_sha256(config.checkpoint))
    run.stage("train", key, work, outputs=("classifier",))


def _cross_fit(workspace: Workspace) -> None:
    """Judge every training sample by a classifier that never saw it."""
    run, config = workspace.run, workspace.config.classifier

    def work() -> None:
        cross_fit(
            workspace.images,
            workspace.labels,
            workspace.ids,
            spec=workspace.spec,
            config=config,
            folds=config.folds,
            seed=workspace.seed,
            directory=run.crossfit,
            device=workspace.device,
            workers=workspace.config.compare.workers,
            targets=workspace.targets,
            identities=workspace.identities,
            description="cross-fit for the scores",
        )

    settings = config.model_dump(mode="json", exclude={"checkpoint", "checkpoints"})
    run.stage(
        "crossfit", stage_key("crossfit", 2, workspace.inputs_key, settings), work, outputs=("crossfit",)
    )


def _self_influence(workspace: Workspace) -> None:
    """Sum the squared gradient norms of every training sample over the baseline's checkpoints."""
    run, config = workspace.run, workspace.config.influence

    def work() -> None:
        workspace.team.call("self-influence")
        values = _influence_values(workspace)
        save_tensors(run.path / "influence.safetensors", {"self_influence": torch.as_tensor(values)})

    key = stage_key("influence", run.key("train"), config.scope)
    run.stage("influence", key, work, outputs=("influence.safetensors",))


def _influence_values(workspace: Workspace) -> npt.NDArray[np.float64]:
    run, config = workspace.run, workspace.config.influence
    checkpoints = load_checkpoints(run.classifier, workspace.device)
    if workspace.config.classifier.checkpoint is not None:
        checkpoints = [(checkpoints[0][0], 1.0)]  # how it was trained is not known
    return self_influence(
        checkpoints,
        workspace.images,
        workspace.labels if workspace.targets is None else workspace.targets,
        to_input=to_input,
        scope=config.scope,
        loss=workspace.config.classifier.loss,
        batch_size=config.batch_size,
        device=workspace.device,
        scratch=run.scratch("influence"),
        ids=workspace.ids.tolist(),
    )


def score(workspace: Workspace) -> None:
    """Score every training sample and flag: scores.parquet."""
    _cross_fit(workspace)
    _self_influence(workspace)
    run, config = workspace.run, workspace.config.influence
    agreement = [] if workspace.agreement is None else [stage_key(workspace.agreement.tolist())]
    read = (run.key("crossfit"), run.key("influence"), config, content_sha256(config.flags))
    key = stage_key("score", *read, *agreement)
    if run.stage("score", key, lambda: score_run(workspace), outputs=("scores.parquet", "flags.json")):
        for name in MEASURED:  # of `diffinf detect`, on other scores
            (run.path / name).unlink(missing_ok=True)
        run.discard("repair", REPAIRED)
        run.discard("refine", REFINED)
        run.discard("compare", COMPARED)
    if (truth := workspace.truth()) is not None:
        key = stage_key("evaluate-scores", run.key("score"), truth.tolist())
        outputs = ("evaluation.json", "evaluation.parquet")
        run.stage("evaluate-scores", key, lambda: evaluate_scores(workspace, truth), outputs=outputs)


def repair(workspace: Workspace) -> None:
    """Edit the flagged samples and gate the edits; then, by the policy, edits.parquet and the refined dataset."""
    run = workspace.run
    # Images edited at once do not know of each other: another batch size changes results by rounding at most.
    settings = workspace.config.repair.model_dump(mode="json", exclude={"policy", "spare", "batch_size"})
    with_look, without = (
        stage_key("repair", 4, run.key("score"), run.key("train-autoencoder"), settings, looks_again)
        for looks_again in (True, False)
    )
    # A second look that was taken and is not asked for any more does no harm: the refine stage passes over it.
    looks_again = workspace.config.repair.spare > 0 or run.is_done("repair", with_look)
    key = with_look if looks_again else without
    if not run.is_done("repair", key):
        run.discard("refine", REFINED)
    if run.stage("repair", key, lambda: repair_run(workspace), outputs=REPAIRED):
        run.discard("compare", COMPARED)
    refine(run, workspace.dataset)


def compare(workspace: Workspace) -> None:
    """Train the arms and keep the retrained classifier; measure against the truth where there is some."""
    run, config = workspace.run, workspace.config
    settings = config.classifier.model_dump(mode="json", exclude={"checkpoint", "checkpoints"})
    compared = config.compare.model_dump(mode="json", exclude={"workers"})
    truth = workspace.truth()
    known = [truth.tolist()] if truth is not None and "clean" in data_arms(config.compare.arms) else []
    key = stage_key("compare", run.key("refine"), settings, compared, *known)
    if not run.compare.is_dir():
        run.discard("compare")
    if not run.is_done("compare", key):
        say_what_goes(workspace)
    # What is in compare/ stays: an arm whose material is the same need not be trained again.
    run.stage("compare", key, lambda: compare_run(workspace), outputs=("compare.parquet",))
    if truth is not None:
        key = stage_key("evaluate-edits", run.key("refine"), settings, truth.tolist())
        run.stage("evaluate-edits", key, lambda: evaluate_edits(workspace, truth))


def report(workspace: Workspace) -> None:
    """Nothing of its own: summary and report are written at the end of every command."""


STAGES: dict[str, Callable[[Workspace], None]] = {
    "train": train,
    "score": score,
    "train-autoencoder": train_autoencoder,
    "repair": repair,
    "compare": compare,
    "report": report,
}
