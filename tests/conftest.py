"""What tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from diffinf import progress
from faces import png

# Before torch is imported, and for processes that tests start: on tiny networks more threads are no faster, and where
# others use the machine too they wait for each other, several times as long as the work takes.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    progress.set_quiet(True)
    yield
    progress.set_quiet(False)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A dataset of class folders: 2 classes x 12 grey 32 px images, bright and dark."""
    rng = np.random.default_rng(0)
    for label, mean in (("bright", 170), ("dark", 80)):
        folder = tmp_path / "faces" / label
        folder.mkdir(parents=True)
        for index in range(12):
            pixels = rng.normal(mean, 30, (32, 32)).clip(0, 255).astype(np.uint8)
            (folder / f"{index:02}.png").write_bytes(png(pixels))
    return tmp_path / "faces"
