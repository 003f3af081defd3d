"""The settings of the dataset: how it is read, cut and written back."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from diffinf.config.stages import StageConfig

DataFormat = Literal[
    "auto",
    "celeba",
    "rafdb",
    "fairface",
    "affectnet",
    "fer2013",
    "saved",
    "imagefolder",
    "table",
    "utkface",
    "lfw",
    "folders",
]


class DataConfig(StageConfig):
    """How the dataset is read, and how the refined one is written."""

    format: DataFormat = Field("auto", description="layout of the dataset; auto: what lies on disk tells")
    image: str = Field("image", description="column with the image: a path, encoded bytes or grey values")
    label: str = Field("label", description="column with the label, or name of the attribute")
    id: str | None = Field(
        None, description="column with a stable sample id; none: the path, or the row's number"
    )
    split: str | None = Field(
        None,
        description="column with train, validation or test; none: a column split, else by a hash of the id, "
        "which '' takes in any case",
    )
    identity: str | None = Field(
        None,
        description="column naming the person, whom splits and folds keep together; none: a column identity, "
        "which '' does not take",
    )
    groups: list[str] = Field([], description="columns or attributes that results are broken down by")
    truth: list[str] = Field([], description="columns with the truth, read only to evaluate")
    votes: list[str] = Field(
        [],
        description="votes by class: a column of lists in the order of the classes, or a column for each class, called "
        "as it is; ferplus_votes beside FER2013",
    )
    annotators: list[str] = Field([], description="columns with what each of several annotators said")
    bins: list[float] = Field(
        [], description="lower edges that cut a number into ordered classes: [0, 13, 20, 40] for ages"
    )
    order: list[str] = Field(
        [], description="all classes from low to high, where they are ordered and the source does not say so"
    )
    normalise_labels: bool = Field(
        False, description="take spellings of a class that differ in case or blanks for one class"
    )
    root: Path | None = Field(
        None, description="folder that image paths are relative to; none: the table's folder"
    )
    link: Literal["copy", "hard"] = Field(
        "copy", description="untouched files of the refined dataset: copies, or hard links to the originals"
    )
    limit: int | None = Field(None, ge=1, description="use about so many samples, drawn by class and split")
    image_size: int | None = Field(
        None, ge=16, le=512, description="side in pixels; none: fits the median image"
    )
    channels: Literal[1, 3] | None = Field(None, description="1 grey, 3 colour; none: what the images have")
    max_pixels: int = Field(50_000_000, ge=1, description="larger images are quarantined instead of decoded")
    icc: bool = Field(False, description="convert colours by the images' profiles to sRGB")
    cache: Path | Literal["run", "none"] = Field(
        "run",
        description="where decoded images are kept: run: in the run's directory; a folder, which runs may share; none",
    )
    cache_gb: float = Field(4, gt=0, description="most gigabytes of them; what was not used for longest goes")

    @field_validator("cache")
    @classmethod
    def _absolute(cls, place: Path | str) -> Path | str:
        return place.expanduser().absolute() if isinstance(place, Path) else place

    @field_validator("order")
    @classmethod
    def _distinct(cls, names: list[str]) -> list[str]:
        if len(set(names)) < len(names):
            raise ValueError("expected each class once")
        return names

    @field_validator("bins")
    @classmethod
    def _ascending(cls, edges: list[float]) -> list[float]:
        if len(edges) == 1 or not all(math.isfinite(edge) for edge in edges):
            raise ValueError("expected two or more finite numbers")
        if any(low >= high for low, high in pairwise(edges)):
            raise ValueError("expected each number to be larger than the one before")
        return edges
