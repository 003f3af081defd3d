"""The script of the shipped weights: what is added at its end leaves the weights that are there alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diffinf.diffusion.autoencoder import DiffusionAutoencoder
from diffinf.files import make_directory
from diffusion.tiny_autoencoder import make_autoencoder, pictures

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import rendered_weights


def workspace(directory: Path, n: int) -> Any:
    return SimpleNamespace(
        images=pictures(n, 8),
        class_shares=lambda: torch.eye(2)[torch.arange(n) % 2],
        config=SimpleNamespace(autoencoder=SimpleNamespace(validation_share=0.1)),
        device=torch.device("cpu"),
        seed=0,
        run=SimpleNamespace(scratch=lambda name: make_directory(directory / name)),
    )


@pytest.mark.parametrize("n", [20, 400])
def test_prior_and_usual_error_join_the_weights_that_are_there(tmp_path: Path, n: int) -> None:
    folder = tmp_path / "weights"
    make_autoencoder().save_pretrained(folder, dtype=torch.float16)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    work = workspace(tmp_path, n)
    rendered_weights.add_prior(folder, work, steps=3)
    changed = {path.name for path, content in before.items() if path.read_bytes() != content}
    assert changed == {"autoencoder.json", "model_index.json"}
    model = DiffusionAutoencoder.from_pretrained(folder)
    assert model.sample(2, steps=2, prior_steps=2).shape == (2, 1, 16, 16) and len(model.usual_error) == 2
    assert not (tmp_path / "prior").exists()
    again = json.loads((folder / "autoencoder.json").read_text())
    rendered_weights.add_prior(folder, work, steps=3)
    assert json.loads((folder / "autoencoder.json").read_text()) == again, "the same twice"
