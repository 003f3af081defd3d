"""What a dataset is and what is wrong with it: counts, duplicates, leaks, unreadable files, contact sheets."""

from diffinf.data.inspect.report import LEVELS, inspect_dataset

__all__ = ["LEVELS", "inspect_dataset"]
