"""Puts the page together: one HTML file that loads nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from diffinf.files import write_text
from diffinf.report import faces, figures, words
from diffinf.report.files import RunFiles, read_run
from diffinf.report.groups import groups
from diffinf.report.identity import identity
from diffinf.report.surrogate import surrogate


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` of a run from the files that are there, finished or not.

    The page is self-contained: pictures and charts lie in it, and it loads nothing from anywhere. What is
    missing is said where it would stand.

    Args:
        run_dir: a run directory.

    Returns:
        The path of the page.

    Raises:
        UserError: if there is no such directory, or the page cannot be written.
    """
    path = run_dir / "report.html"
    write_text(path, render(read_run(run_dir)))
    return path


def render(files: RunFiles) -> str:
    """The page of a run as HTML."""
    return environment().get_template("report.html.j2").render(context(files))


def environment() -> Environment:
    """What renders the templates."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,  # for every template: class names, ids and paths come from the data
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (words.count, words.number, words.signed, words.percent, words.span, words.duration)
    made.filters.update({function.__name__: function for function in filters})
    return made


def context(files: RunFiles) -> dict[str, Any]:
    """Everything the template shows, by section; a section is None where the run has not come so far."""
    found, refused, differences = figures.found(files), faces.refused(files), figures.differences(files)
    arms = figures.arms(files, differences)
    return {
        "name": files.name,
        "tiny": words.TINY if files.config.get("preset") == "tiny" else None,
        "dataset": files.config.get("dataset"),
        "headline": words.headline(
            n_train=found["n"] if found else None,
            flagged=found["flagged"] if found else None,
            statuses=refused["statuses"] if refused else None,
            gain=figures.gain(files, differences.get("baseline")),
            n_test=figures.n_test(files),
            resample=differences.get("resample"),
            compared=bool(arms and arms["table"]),
        ),
        "found": found,
        "suspicious": faces.suspicious(files),
        "gallery": faces.gallery(files),
        "refused": refused,
        "identity": identity(files),
        "surrogate": surrogate(files),
        "arms": arms,
        "stale": bool(files.summary.get("arms_stale")),
        "groups": groups(files),
        "truth": figures.truth(files),
        "quarantine": figures.quarantine(files),
        "costs": figures.costs(files),
        "damaged": files.damaged,
    }
