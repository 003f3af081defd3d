"""The page of several attributes: what was found and done for each, with a link to its report."""

from __future__ import annotations

from pathlib import Path

from diffinf.files import read_json, write_text
from diffinf.report.page import environment


def write_index(directory: Path) -> Path:
    """Write ``report.html`` of a directory of runs from its summary.json, and return its path.

    Raises:
        UserError: the summary is not there, or the page cannot be written.
    """
    path = directory / "report.html"
    summary = read_json(directory / "summary.json")
    text = environment().get_template("index.html.j2").render(name=directory.resolve().name, **summary)
    write_text(path, text)
    return path
