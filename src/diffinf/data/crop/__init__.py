"""Datasets of faces cut out of larger pictures."""

from diffinf.data.crop.dataset import CropSettings, crop_dataset
from diffinf.data.crop.geometry import Face, FaceDetector

__all__ = ["CropSettings", "Face", "FaceDetector", "crop_dataset"]
