"""Studies on rendered faces: which half of the method limits, how it fares with other noise, flags and policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from diffinf.config import PresetName, RunConfig, apply_overrides, make_config
from diffinf.data.rendered.tasks import class_names
from diffinf.data.rendered.write import render_dataset
from diffinf.demo import RENDERED_REPAIR
from diffinf.evaluate.measures import arm_measures
from diffinf.files import atomic_path, read_json, read_table, stage_key, write_json
from diffinf.pipeline import execute
from diffinf.run import Run
from evidence_material import run_like, workspace_of
from evidence_results import RESAMPLES, costs, difference
from evidence_show import draw_cases, interval
from evidence_training import Budget, train_arms

# Smaller than bench-1, of the same kind: figures compare within a study.
FACES: dict[str, Any] = {"n": 3300, "size": 64, "identities": 400, "noise": "confounded", "rate": 0.27}
SHARES = (0.1, 0.4)
RARE = "angry"
KEPT = (1.0, 0.15)  # of the training faces labelled so


@dataclass(frozen=True)
class Case:
    """One point of a study.

    Attributes:
        name: as the figure calls it.
        faces: what is rendered otherwise than `FACES`.
        settings: "stage.field=value" of the run, over those of the study's base.
        kept: share of the training faces labelled `RARE` that stay.
    """

    name: str
    faces: dict[str, Any] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    kept: float = 1.0


@dataclass(frozen=True)
class Study:
    """Some arms, trained in some cases.

    Attributes:
        title: what is asked.
        arms: names of arms.
        cases: where they are trained.
        recall_of: the class whose recall is the figure; None: balanced accuracy.
    """

    title: str
    arms: tuple[str, ...]
    cases: tuple[Case, ...]
    recall_of: str | None = None


_BASE = (Case("confounded 27 %"),)
STUDIES: dict[str, Study] = {
    "noise": Study(
        "noise by kind and rate",
        ("baseline", "diffinf", "oracle-edit"),
        (
            Case("none", {"noise": "none", "rate": 0.0}),
            *_BASE,
            *(
                Case(f"{noise} {100 * rate:.0f} %", {"noise": noise, "rate": rate})
                for noise, rate in (
                    ("confounded", 0.4),
                    ("asymmetric", 0.27),
                    ("symmetric", 0.27),
                    ("confounded", 0.1),
                )
            ),
        ),
    ),
    "share": Study(
        "share flagged",
        ("filter", "diffinf"),
        (
            *_BASE,
            *(
                Case(f"{100 * share:.0f} % flagged", settings=(f"influence.share={share}",))
                for share in SHARES
            ),
        ),
    ),
    "policies": Study(
        "edit, relabel, drop, resample: the same flags",
        (
            "baseline",
            "diffinf",
            "diffinf-edit-or-relabel",
            "diffinf-edit-or-drop",
            "diffinf-edit-or-resample",
            "relabel",
            "filter",
            "resample",
        ),
        _BASE,
    ),
    "halves": Study(
        "which half limits: our editor with perfect flags, perfect edits with our flags",
        ("baseline", "diffinf", "true-flags", "oracle-edit", "clean"),
        _BASE,
    ),
    "clean": Study(
        "labels without a mistake: no harm",
        ("baseline", "diffinf"),
        (Case("none", {"noise": "none", "rate": 0.0}),),
    ),
    "paper": Study(
        "self-influence alone and our score", ("baseline", "diffinf-paper", "diffinf", "oracle-edit"), _BASE
    ),
    "rare": Study(
        f"a class that is rare: recall of {RARE}",
        ("baseline", "filter", "resample", "diffinf"),
        tuple(Case(f"{share:.3g} of its faces", kept=share) for share in KEPT),
        recall_of=RARE,
    ),
}


def run_study(
    name: str,
    budget: Budget,
    folder: Path,
    overrides: list[str],
    preset: PresetName,
    faces: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Take every case of a study as far as its arms, or go on with it; writes NAME.json and NAME.png in `folder`.

    Cases with the same faces and settings share one run and the trainings of their arms, also between studies.
    """
    study = STUDIES[name]
    cases = []
    for case in study.cases:
        run, place = _repaired(case, folder, overrides, preset, {**FACES, **(faces or {})})
        workspace = workspace_of(run)
        names = workspace.dataset.class_names
        classes = range(len(names)) if study.recall_of is None else [names.index(study.recall_of)]
        trained = train_arms(workspace, study.arms, budget, place)
        cases.append({"case": case.name, **_entry(run, trained, classes)})
    found = {
        "study": name,
        "title": study.title,
        "measure": "balanced accuracy" if study.recall_of is None else f"recall of {study.recall_of}",
        "faces": {**FACES, **(faces or {})},
        "seeds": budget.seeds,
        "steps": budget.classifier.steps,
        "cases": cases,
    }
    write_json(folder / f"{name}.json", found)
    draw_cases(found, folder / f"{name}.png")
    return found


def _repaired(
    case: Case, folder: Path, overrides: list[str], preset: PresetName, faces: dict[str, Any]
) -> tuple[Run, Path]:
    """The repaired run of a case, and the folder of its arms."""
    rendered = {**faces, **case.faces}
    places = folder / stage_key(rendered, *([] if case.kept == 1 else [case.kept]))[:12]
    file = places / "faces.parquet"
    if not file.exists() and case.kept < 1:
        render_dataset(everyone := places / "all.parquet", seed=0, overwrite=True, **rendered)
        _thin(everyone, file, case.kept)
        everyone.unlink()
    elif not file.exists():
        render_dataset(file, seed=0, **rendered)
    values: dict[str, Any] = {
        "seed": 0,
        "data": {"id": "id", "split": "split", "identity": "identity"},
        "autoencoder": {"weights": "rendered"},
        "repair": RENDERED_REPAIR,
    }
    base = make_config(str(file.resolve()), preset_name=preset, values=values, overrides=overrides)
    run = execute(base, until="repair", out=places / "run")
    if not case.settings:
        return run, places
    changed: RunConfig = apply_overrides(base, list(case.settings))
    place = places / stage_key(list(case.settings))[:12]
    return run_like(run, changed, place / "run"), place


def _thin(source: Path, target: Path, share: float) -> None:
    """Copy a rendered dataset without all but the first `share` of its training faces labelled `RARE`."""
    table = pq.read_table(source)
    code = class_names("expression").index(RARE)
    thinned = pc.and_(pc.equal(table["split"], "train"), pc.equal(table["label"], code)).to_numpy()
    number = np.cumsum(thinned)
    stays = ~thinned | (number <= round(share * number[-1]))
    with atomic_path(target) as partial:
        pq.write_table(table.filter(pa.array(stays)), partial)


def _entry(run: Run, trained: Any, classes: Sequence[int]) -> dict[str, Any]:
    """The figures of one case over `classes`: flags, edits, arms, and each arm against the baseline."""
    flagged = read_table(run.scores)["flagged"].to_numpy()
    statuses = read_table(run.edits)["status"].to_pylist()
    detection = read_json(run.evaluation)["detection"] if run.evaluation.exists() else {}
    arms: dict[str, Any] = {}
    for arm, seeds in trained.test.items():
        if seeds:
            logits = np.stack([seeds[seed] for seed in sorted(seeds)])
            arms[arm] = arm_measures(logits, trained.labels, classes=classes, resamples=RESAMPLES).to_dict()
            arms[arm]["minus_baseline"] = difference(trained, arm, "baseline", classes, RESAMPLES)
    return {
        "n": len(flagged),
        "flagged": int(flagged.sum()),
        "precision": detection.get("precision_at_flagged"),
        "edited": statuses.count("edited"),
        "diverged": {arm: seeds for arm, seeds in trained.diverged.items() if seeds},
        "cost": costs(trained, run.timings()),
        "arms": arms,
    }


def show_study(study: dict[str, Any], console: Console) -> None:
    """Print a study, a row for each case and arm."""
    table = Table("case", "flagged", "arm", study["measure"], "minus baseline", title=study["title"])
    for case in study["cases"]:
        for arm, row in case["arms"].items():
            flagged = f"{case['flagged']} of {case['n']}"
            table.add_row(
                case["case"], flagged, arm, interval(row["primary"]), interval(row["minus_baseline"])
            )
    console.print(table)
