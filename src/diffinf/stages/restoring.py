"""Putting originals back into the refined dataset of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffinf.data.cache import open_cache
from diffinf.data.dataset import FaceDataset, open_dataset
from diffinf.errors import UserError
from diffinf.files import read_table, write_json
from diffinf.run import Run
from diffinf.stages.refining import RESTORED, decisions, refine, restored_ids
from diffinf.stages.summary import REASONS, arms_stale, write_results

Rows = list[dict[str, Any]]


def restore_originals(
    run: Run, ids: Sequence[str] = (), *, reasons: Sequence[str] = (), everything: bool = False
) -> dict[str, Any]:
    """Put originals back into refined/: image, label and place as they came.

    refined/ is written anew from the dataset, so this works for every layout. The samples are kept from now on, with
    the reason `restored`, whatever the policy, until the repair itself runs again. Done twice, it does nothing the
    second time; killed in between, the next `restore`, `repair` or `compare` finishes it.

    Args:
        run: a repaired run.
        ids: samples to put back; those that are as they came are left alone.
        reasons: put back what was relabelled or dropped because the gate refused its edit for one of these reasons.
        everything: put all back.

    Returns:
        {"restored": ids, "unchanged": ids that were asked for and are as they came, "arms_stale": whether the
        comparison describes another state of refined/}.

    Raises:
        UserError: not exactly one of the three ways to choose was given, an id or reason is not known, nothing has
            been repaired yet, or the dataset has changed or gone; nothing is changed then.
    """
    with run.lock():
        run.sweep()
        chosen, unchanged = _chosen(run, ids, reasons, everything)
        if chosen or not run.is_done("refine"):
            config = run.config
            dataset = open_dataset(
                config.dataset, config.data, seed=config.seed, cache=open_cache(config.data, run.path)
            )
            _check_source(run, dataset, chosen)
            # First what is wanted, then the work: a kill in between leaves a stage that knows it is not finished.
            wanted = {*restored_ids(run), *(row["id"] for row in chosen)}
            write_json(run.restored, sorted(wanted))
            refine(run, dataset)
            write_results(run)
        names = [row["id"] for row in chosen]
        return {"restored": names, "unchanged": unchanged, "arms_stale": arms_stale(run)}


def _chosen(run: Run, ids: Sequence[str], reasons: Sequence[str], everything: bool) -> tuple[Rows, list[str]]:
    """The changed rows to put back, and ids that were named and are as they came."""
    if sum((bool(ids), bool(reasons), everything)) != 1:
        raise UserError("restore: expected one of --id, --reason and --all, to say what is put back")
    rows = decisions(run).to_pylist()
    changed = {row["id"]: row for row in rows if row["status"] != "kept"}
    if everything:
        return list(changed.values()), []
    if reasons:
        known = [reason for reason in REASONS if reason != RESTORED]
        for reason in reasons:
            if reason not in known:
                raise UserError(f"--reason {reason}: expected some of {', '.join(known)}")
        return [row for row in changed.values() if row["reason"] in reasons], []
    samples = set(read_table(run.path / "dataset.parquet")["id"].to_pylist())
    for name in ids:
        if name not in samples:
            raise UserError(
                f"--id {name}: no such sample in this run; ids are those of {run.edits.name}, as the dataset had them"
            )
    named = list(dict.fromkeys(ids))
    return [changed[name] for name in named if name in changed], [n for n in named if n not in changed]


def _check_source(run: Run, dataset: FaceDataset, chosen: Rows) -> None:
    """Refuse a dataset that is not the one the run was made from, naming the sample to be put back if it is one."""
    now = {str(name): dataset.source_sha256(row) for row, name in enumerate(dataset.ids)}
    lost = {entry.id: entry.reason for entry in dataset.quarantine}
    for row in chosen:
        name, expected = row["id"], row["source_sha256"]
        if now.get(name) != expected:
            found = f"sha256 {now[name][:12]} now" if name in now else lost.get(name, "it is gone")
            raise UserError(
                f"{name}: the original in {dataset.source.name} is not what it was ({found}; expected sha256 "
                f"{expected[:12]}); bring the file back and restore again: nothing was changed"
            )
    if dataset.fingerprint != run.fingerprint:
        raise UserError(
            f"{dataset.source.name}: the dataset has changed since the run {run.path} was made, and refined/ is "
            "written from it; bring it back as it was and restore again: nothing was changed"
        )
