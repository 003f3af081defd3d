"""Trained weights that a run takes: the shipped ones, others', and those of other data."""

from __future__ import annotations

import json
import shutil
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import diffinf
from diffinf.config import RepairConfig, RunConfig
from diffinf.data.rendered.presets import preset_plan
from diffinf.data.rendered.render import render_faces
from diffinf.data.rendered.write import sample_dataset
from diffinf.diffusion.autoencoder import DiffusionAutoencoder
from diffinf.diffusion.familiarity import unlike_pictures
from diffinf.errors import UserError
from diffinf.repair.edit import decode_edit, take_apart
from diffinf.repair.editors import Wish
from diffinf.stages import autoencoding
from diffusion.tiny_autoencoder import SPEC, make_autoencoder, pictures

SHIPPED = Path(diffinf.__file__).parent / "weights" / "rendered"


def workspace(directory: Path, images: Tensor, class_names: tuple[str, ...] = SPEC.class_names) -> Any:
    events: list[tuple[str, str, dict[str, str]]] = []

    def event(stage: str, name: str, **fields: str) -> None:
        events.append((stage, name, fields))

    return SimpleNamespace(
        images=images,
        dataset=SimpleNamespace(
            class_names=class_names, image_size=images.shape[2], channels=images.shape[1]
        ),
        run=SimpleNamespace(autoencoder=directory / "autoencoder", event=event),
        events=events,
    )


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    make_autoencoder().save_pretrained(tmp_path / "weights")
    return tmp_path / "weights"


def test_weights_are_copied_whole_and_in_silence_where_the_data_are_alike(
    weights: Path, tmp_path: Path
) -> None:
    work = workspace(tmp_path, pictures(40, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        autoencoding._take_weights(weights, work)
    assert work.events == []
    assert DiffusionAutoencoder.from_pretrained(tmp_path / "autoencoder").spec == SPEC


def test_a_run_is_told_of_weights_of_other_data(weights: Path, tmp_path: Path) -> None:
    work = workspace(tmp_path, pictures(40, 8) // 4 + 80)
    with pytest.warns(UserWarning, match="the autoencoder was trained on other data: "):
        autoencoding._take_weights(weights, work)
    ((stage, name, fields),) = work.events
    assert (stage, name) == ("train-autoencoder", "warning") and "other data" in fields["text"]


@pytest.mark.parametrize(
    ("images", "class_names"),
    [
        (pictures(4, 8, size=20), SPEC.class_names),
        (pictures(4, 8, channels=3), SPEC.class_names),
        (pictures(4, 8), ("smile", "calm")),
    ],
    ids=["size", "channels", "classes"],
)
def test_weights_that_do_not_fit_the_dataset_are_refused(
    weights: Path, tmp_path: Path, images: Tensor, class_names: tuple[str, ...]
) -> None:
    with pytest.raises(UserError, match=r"trained on \(classes, size, channels\) .*data\.image_size"):
        autoencoding._take_weights(weights, workspace(tmp_path, images, class_names))
    assert not (tmp_path / "autoencoder").exists()


def test_weights_of_an_earlier_format_are_refused(weights: Path, tmp_path: Path) -> None:
    path = weights / "autoencoder.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 1}))
    with pytest.raises(UserError, match="format version 1, this diffinf reads 2; train or convert it again"):
        autoencoding._take_weights(weights, workspace(tmp_path, pictures(4, 8)))
    assert not (tmp_path / "autoencoder").exists()


def test_other_shipped_weights_are_taken_anew(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[str] = []
    work = workspace(tmp_path, pictures(4, 8))
    work.config = RunConfig(dataset="faces", autoencoder={"weights": "rendered"})
    work.inputs_key = ["faces"]
    work.run.key = lambda stage: stage
    work.run.stage = lambda name, key, *_, **__: keys.append(key)
    moved = shutil.copytree(weights, tmp_path / "moved")
    for folder in (weights, moved):
        monkeypatch.setattr(autoencoding, "_given", lambda _, folder=folder: nullcontext(folder))
        autoencoding.train_autoencoder(work)
    assert keys[0] == keys[1], "the package may lie elsewhere"
    (changed, *_) = moved.rglob("*.safetensors")
    changed.write_bytes(changed.read_bytes()[:-1] + b"!")
    autoencoding.train_autoencoder(work)
    assert keys[2] != keys[0]


def test_the_shipped_weights_know_rendered_faces(tmp_path: Path) -> None:
    size = sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file())
    assert size <= 7.5e6
    faces = sample_dataset(preset_plan("bench-1"), 1)
    images = torch.from_numpy(render_faces(faces.factors.take(np.arange(32)), 64))
    work = workspace(tmp_path, images, faces.class_names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        autoencoding._take_weights("rendered", work)
    model = DiffusionAutoencoder.from_pretrained(tmp_path / "autoencoder")
    assert model.max_depth == 0.6
    back, error = model.reconstruct(images[:4], steps=8, depth=0.4)
    assert back.shape == (4, 3, 64, 64) and (error < 0.15).all()


@pytest.fixture(scope="module")
def rendered() -> Tensor:
    """Held-out rendered faces."""
    factors = sample_dataset(preset_plan("bench-1"), 1).factors
    return torch.from_numpy(render_faces(factors.take(np.arange(24)), 64))


def test_the_shipped_weights_tell_single_pictures_of_other_data(rendered: Tensor) -> None:
    model = DiffusionAutoencoder.from_pretrained(SHIPPED)
    noise = torch.randint(0, 256, (4, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    said = unlike_pictures(model, torch.cat([rendered, noise, 255 - rendered[:8]]))
    told = [words is not None for words in said]
    assert sum(told[:24]) <= 1 and all(told[24:28]) and sum(told[28:]) >= 5


def test_the_shipped_weights_draw_faces_and_the_prior_changes_nothing_else(rendered: Tensor) -> None:
    model = DiffusionAutoencoder.from_pretrained(SHIPPED)
    drawn = model.sample(4, steps=4, prior_steps=10)
    assert drawn.shape == (4, 3, 64, 64)
    assert sum(words is None for words in unlike_pictures(model, drawn)) >= 3, "to itself they are faces"
    shown, config = torch.eye(5)[:1], RepairConfig(diffusion_steps=2)

    def edited() -> Tensor:
        parts = take_apart(model, rendered[:1], shown, config)
        return decode_edit(model, parts, Wish(parts.code, torch.tensor([2]), shown), 1.0, config).images

    with_prior, model.prior = edited(), None
    assert torch.equal(edited(), with_prior)
