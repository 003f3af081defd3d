"""The report of a run: one self-contained HTML file, made from the files of the run alone."""

from diffinf.report.index import write_index
from diffinf.report.page import write_report

__all__ = ["write_index", "write_report"]
