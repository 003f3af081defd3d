"""Datasets: readers of public layouts, safe decoding, splits, the refined copy, rendered faces."""

from diffinf.data.dataset import FaceDataset, open_dataset
from diffinf.data.readers import SPLITS, DatasetSource, Quarantined
from diffinf.data.writers import check_output, write_refined

__all__ = [
    "SPLITS",
    "DatasetSource",
    "FaceDataset",
    "Quarantined",
    "check_output",
    "open_dataset",
    "write_refined",
]
