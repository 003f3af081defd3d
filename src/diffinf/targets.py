"""Several attributes of one dataset, one after the other: a run for each, the tables of all together.

Each run reads what the one before has repaired: a face that is flagged for several attributes is edited in turn, and
the last refined dataset is that of all.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from diffinf.config import RunConfig, merge
from diffinf.data.cache import open_cache
from diffinf.data.readers import attribute_names, read_records
from diffinf.data.readers.remote import is_url
from diffinf.data.writers import check_output
from diffinf.errors import UserError
from diffinf.files import (
    make_directory,
    read_class_names,
    read_json,
    read_table,
    write_json,
    write_table,
    writing,
)
from diffinf.pipeline import default_directory, execute
from diffinf.report import write_index
from diffinf.run import Run

ALL = "all"
FOLDER = "targets"  # of the runs, in the directory
_STATE = "targets.json"
_MERGED = ("scores.parquet", "edits.parquet", "refined.provenance.parquet")


def execute_targets(
    config: RunConfig, targets: Sequence[str], *, until: str, out: Path | None = None, fresh: bool = False
) -> Path:
    """Do the stages up to `until` for one attribute after the other; called again, it goes on where it was.

    The directory has a run for each attribute in targets/NAME; scores.parquet and edits.parquet of all, keyed by (id,
    target); refined/, the dataset with the edits of all; summary.json and report.html, which lead to the runs. Labels
    of the other attributes are never touched. As long as nothing is repaired (`until` score) all attributes are scored
    on the dataset as it came.

    Args:
        config: settings of each run; `data.label` does not count.
        targets: attributes, or columns with labels, in the order of the work; ("all",): every attribute of the layout.
        until: the last stage.
        out: the directory; none: as `default_directory` says, with another key than a run of one label.
        fresh: start over instead of continuing.

    Returns:
        The directory.

    Raises:
        UserError: an attribute is not there, or named twice; samples would be dropped; the directory holds other files,
            or would mix with the dataset; a run fails, which is named.
    """
    names = _checked(config, targets)
    path = out or default_directory(_with_label(config, "+".join(names)))
    if path.is_dir() and any(path.iterdir()) and not (path / _STATE).is_file():
        raise UserError(
            f"{path}: the directory holds files that are not of several attributes; choose another with --out"
        )
    check_output(read_records(config.dataset, _with_label(config, names[0]).data), path)
    make_directory(path)
    known = read_json(path / _STATE)["read"] if (path / _STATE).exists() else {}
    dataset, before, runs = config.dataset, "", dict[str, Run]()
    for name in names:
        folder = path / FOLDER / quote(name, safe=" ")
        settings = _with_label(config, name)
        if before:  # the one before has cut the dataset, and its paths start from its own folder
            settings = _changed(settings, dataset=dataset, data={"limit": None, "root": None})
        # With another repair before it a run reads another dataset.
        if Run.exists(folder) and known.get(name, before) != before:
            shutil.rmtree(folder)
        known[name] = before
        write_json(path / _STATE, {"targets": names, "read": known})
        try:
            cache = open_cache(config.data, path)  # of all attributes together: they show the same images
            run = runs[name] = execute(settings, until=until, out=folder, fresh=fresh, cache=cache)
        except UserError as error:
            raise UserError(f"attribute {name}: {error}") from error
        if run.is_done("refine"):
            source = Path(config.dataset)
            dataset = str(run.refined if source.is_dir() else run.refined / source.name)
            before = run.key("refine")
    _gather(path, runs, link=config.data.link == "hard")
    return path


def _checked(config: RunConfig, targets: Sequence[str]) -> list[str]:
    """The names of the attributes, each of which is there."""
    if is_url(config.dataset):
        raise UserError(
            f"{config.dataset}: several attributes are repaired in turn from files: download it first"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--targets: torchrun splits one run; take the attributes one by one with --label")
    if config.repair.policy == "edit-or-drop":
        raise UserError(
            "repair.policy: edit-or-drop would take the labels of all other attributes with a face; choose edit or "
            "edit-or-relabel"
        )
    for field, value in (
        ("influence.flags", config.influence.flags),
        ("classifier.checkpoint", config.classifier.checkpoint),
        ("data.votes", config.data.votes),
        ("data.annotators", config.data.annotators),
    ):
        if value:
            raise UserError(f"{field}: speaks of one label, and --targets names several; leave it out")
    offered = attribute_names(config.dataset, config.data)
    if list(targets) == [ALL]:
        if not offered:
            raise UserError(
                f"{config.dataset}: --targets all is for layouts that list their attributes (celeba, lfw); name the "
                "columns, with commas between"
            )
        return list(offered)
    names = [name.strip() for name in targets if name.strip()]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not names or twice:
        found = f"{twice[0]} twice" if twice else "none"
        raise UserError(f"--targets: expected attributes with commas between, each once; found {found}")
    for name in names:
        if offered and name not in offered:
            raise UserError(
                f"{config.dataset}: no attribute {name!r} for --targets; expected some of {', '.join(offered)}"
            )
        if not offered:  # rather now than after the first hours
            read_records(config.dataset, _with_label(config, name).data)
    return names


def _with_label(config: RunConfig, name: str) -> RunConfig:
    return _changed(config, data={"label": name})


def _changed(config: RunConfig, **values: Any) -> RunConfig:
    return RunConfig.model_validate(merge(config.model_dump(mode="json"), values))


def _gather(path: Path, runs: dict[str, Run], *, link: bool) -> None:
    """Write the tables of all runs, the refined dataset, the summary and the page that leads to the runs."""
    for file in _MERGED:
        if all((run.path / file).exists() for run in runs.values()):
            parts = {name: read_table(run.path / file) for name, run in runs.items()}
            classes = [name for table in parts.values() for name in read_class_names(table)]
            write_table(path / file, _together(parts), list(dict.fromkeys(classes)))
        else:
            (path / file).unlink(missing_ok=True)
    if all(run.is_done("refine") for run in runs.values()):
        _write_refined(path / "refined", list(runs.values()), link=link)
    edited: Counter[str] = Counter()
    if (path / "edits.parquet").exists():
        rows = read_table(path / "edits.parquet").select(["id", "status"]).to_pylist()
        edited.update(row["id"] for row in rows if row["status"] == "edited")
    summary = {
        "targets": {
            name: {"run": run.path.relative_to(path).as_posix(), **read_json(run.summary)}
            for name, run in runs.items()
        },
        "edited_faces": len(edited),
        "edited_for_several": sum(count > 1 for count in edited.values()),
    }
    write_json(path / "summary.json", summary)
    write_index(path)


def _together(parts: dict[str, pa.Table]) -> pa.Table:
    """The rows of all tables, each with its target."""
    tables = [
        table.set_column(
            table.column_names.index("target"), "target", pa.array([name] * table.num_rows, pa.string())
        )
        for name, table in parts.items()
    ]
    return pa.concat_tables(
        [table.replace_schema_metadata(None) for table in tables], promote_options="permissive"
    )


def _write_refined(out: Path, runs: Sequence[Run], *, link: bool) -> None:
    """Put the last refined dataset at `out`, whole or not at all, with a card that tells of all runs."""
    partial, old = out.with_name(".refined.partial"), out.with_name(".refined.old")
    for leftover in (partial, old):  # of a killed process
        shutil.rmtree(leftover, ignore_errors=True)
    with writing(out):
        shutil.copytree(runs[-1].refined, partial, copy_function=os.link if link else shutil.copy2)
        (partial / "README.md").unlink(missing_ok=True)  # hard-linked: the run keeps its own
        (partial / "README.md").write_text(_card(runs), encoding="utf-8")
        if out.exists():
            out.rename(old)
        partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _card(runs: Sequence[Run]) -> str:
    """The runs' dataset cards one after the other, under the front matter of one that tells of synthetic faces."""
    cards = [(run.refined / "README.md").read_text(encoding="utf-8").split("---\n", 2) for run in runs]
    matter = next((card[1] for card in cards if "- synthetic" in card[1]), cards[-1][1])
    parts = [
        f"## {run.config.data.label}\n\n{card[2].strip()}" for run, card in zip(runs, cards, strict=True)
    ]
    said = f"Repaired for {len(runs)} attributes, one after the other; each part tells of one."
    return "\n\n".join([f"---\n{matter}---", said, *parts]) + "\n"
