"""What is looked at while the autoencoder trains, in one process and in several."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.tracking import GeneralTracker
from PIL import Image
from safetensors.torch import load_file

from diffinf.config import AutoencoderConfig, make_config, preset
from diffinf.diffusion import monitor, train
from diffinf.diffusion.monitor import monitoring_evaluations
from diffinf.diffusion.networks import Denoiser
from diffinf.errors import UserError
from diffinf.training.loop import DivergedError, batch_indices, fit
from diffinf.training.monitor import BANDS, TrainingWarning, held_out
from diffusion import training_process
from diffusion.tiny_autoencoder import weights
from diffusion.training_process import CONFIG, N


def settings(**changes: Any) -> AutoencoderConfig:
    return AutoencoderConfig(**{**CONFIG.model_dump(), **changes})


@pytest.fixture(scope="module", autouse=True)
def few_looks() -> Iterator[None]:
    """Ask each held-out image at two levels a check, not at ten: seconds that prove nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffinf.training.monitor._LOOKS", 64)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of 8 steps with 32 of its 64 images held out."""
    directory = tmp_path_factory.mktemp("whole")
    training_process.train(directory, settings(sheets=2))
    return directory


def metrics(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "metrics.json").read_text())
    return found


def test_few_images_are_held_out_and_of_too_few_none() -> None:
    for n, count in ((100, 0), (319, 0), (320, 32), (5000, 100), (100_000, 512)):
        held = held_out(n, 0.02, 0)
        assert len(held) == count == len(held.unique()) and torch.equal(held, held.sort().values)
        assert count == 0 or (held.min() >= 0 and held.max() < n)
    assert len(held_out(5000, 0.0, 0)) == 0
    assert len(held_out(112, 0.4, 0)) == 45  # as many as were asked for, of few
    assert not torch.equal(held_out(320, 0.02, 0), held_out(320, 0.02, 1))


def test_the_loss_on_held_out_images_is_recorded_by_noise_level(whole: Path) -> None:
    found = metrics(whole)
    assert found["n"] == N and found["n_held_out"] == 32
    assert [check["step"] for check in found["validation"]] == [4, 8]
    for check in found["validation"]:
        assert len(check["bands"]) == BANDS and all(0 < value < 4 for value in check["bands"])
        # 64 looks at five levels: about as many at each.
        assert check["v"] == pytest.approx(sum(check["bands"]) / BANDS, rel=0.05)
        assert check["shuffled"] > 0 and check["code_std"] > 0
    assert found["validation"][-1]["v"] < found["validation"][0]["v"]


def test_the_same_weights_have_the_same_held_out_loss(tmp_path: Path) -> None:
    training_process.train(tmp_path, settings(learning_rate=1e-30))
    first, *others = metrics(tmp_path)["validation"]
    for other in others:
        assert other["v"] == pytest.approx(first["v"], rel=1e-6)


def test_held_out_images_are_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: set[int] = set()
    draw = train.draw_batch

    def recording(material: Any, indices: torch.Tensor, *rest: Any) -> Any:
        rows.update(material.rows[indices].tolist())
        return draw(material, indices, *rest)

    monkeypatch.setattr(train, "draw_batch", recording)
    training_process.train(tmp_path, settings(sheets=0))
    held = set(held_out(N, 0.5, 0).tolist())
    assert rows == set(range(N)) - held  # 56 draws of 32 images


def test_sheets_are_pictures_of_the_right_size(whole: Path) -> None:
    names = [f"{kind}-00000{step}.png" for kind in ("reconstruction", "samples") for step in (4, 8)]
    assert sorted(path.name for path in (whole / "sheets").iterdir()) == names
    for name in names:
        # 16 faces over their round trips; 8 faces over what they become under two labels; 16 px and a gap of 2.
        columns, rows = (16, 2) if name.startswith("reconstruction") else (8, 3)
        with Image.open(whole / "sheets" / name) as image:
            assert (image.format, image.size) == ("PNG", (18 * columns + 2, 18 * rows + 2))


def test_without_sheets_and_held_out_images_nothing_is_looked_at(tmp_path: Path) -> None:
    training_process.train(tmp_path, settings(sheets=0, validation_share=0))
    assert metrics(tmp_path)["validation"] == [] and not (tmp_path / "sheets").exists()


def test_a_killed_training_has_the_same_record(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "fit", partial(fit, save_every=3))

    def killed(n: int, batch_size: int, seed: int, step: int) -> torch.Tensor:
        if (seed, step) == (0, 5):
            raise KeyboardInterrupt
        return batch_indices(n, batch_size, seed, step)

    with monkeypatch.context() as patch:
        patch.setattr(train, "batch_indices", killed)
        with pytest.raises(KeyboardInterrupt):
            training_process.train(tmp_path, settings(sheets=2))
    training_process.train(tmp_path, settings(sheets=2))
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    for file in files:
        assert (whole / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_gradient_checkpointing_gives_the_same_weights(whole: Path, tmp_path: Path) -> None:
    calls = []
    forward = Denoiser.forward

    def recording(self: Denoiser, *arguments: torch.Tensor) -> torch.Tensor:
        calls.append(self.unet.is_gradient_checkpointing)
        return forward(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Denoiser, "forward", recording)
        training_process.train(tmp_path, settings(gradient_checkpointing=True))
    assert True in calls
    ours, theirs = (weights(place) for place in (tmp_path, whole))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name].float(), value.float(), rtol=2e-3, atol=2e-3, msg=name)


def test_half_precision_trains_too(whole: Path, tmp_path: Path) -> None:
    trained = training_process.train(tmp_path, settings(precision="bfloat16"))
    assert all(value.dtype == torch.float32 for value in trained.values() if value.is_floating_point())
    rough, exact = (metrics(place)["history"][-1]["v"] for place in (tmp_path, whole))
    assert rough != exact and rough == pytest.approx(exact, rel=0.1)


def test_a_learning_rate_that_is_absurd_is_told(tmp_path: Path) -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    with pytest.warns(TrainingWarning, match=r"rose from .* lower autoencoder.learning_rate"):
        train.train_autoencoder(
            training_process.pictures(N, 0),
            torch.eye(2)[torch.arange(N) % 2],
            None,
            settings(steps=32, guide_steps=1, learning_rate=0.1, sheets=0),
            class_names=("calm", "smile"),
            seed=0,
            device=torch.device("cpu"),
            directory=tmp_path,
            tell=lambda event, **fields: told.append((event, fields)),
        )
    recorded = metrics(tmp_path)["warnings"]
    assert "exploded" in {warning["kind"] for warning in recorded}
    assert len({warning["kind"] for warning in recorded}) == len(recorded)  # each once
    assert [fields for event, fields in told if event == "warning"] == recorded
    assert [fields["step"] for event, fields in told if event == "validation"] == [16, 32]


def test_a_training_that_diverges_says_where_and_what_to_try(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"at step \d+.*; lower autoencoder.learning_rate \(now 1e\+18\)"):
        training_process.train(tmp_path, settings(learning_rate=1e18, attribute_weight=1e30, sheets=0))


def test_a_code_that_nobody_reads_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "STUCK_STEPS", 1)
    with pytest.warns(TrainingWarning, match="ignores the semantic code"):
        training_process.train(tmp_path, settings(code_dropout=1.0, sheets=0, learning_rate=1e-9))


def test_blank_images_are_told(tmp_path: Path) -> None:
    images = torch.full((N, 1, 16, 16), 128, dtype=torch.uint8)
    with pytest.warns(TrainingWarning, match="the latents have mean"):
        train.train_autoencoder(
            images,
            torch.eye(2)[torch.arange(N) % 2],
            None,
            settings(steps=2, guide_steps=1, sheets=0),
            class_names=("calm", "smile"),
            seed=0,
            device=torch.device("cpu"),
            directory=tmp_path,
        )


class Recorder(GeneralTracker):
    """A tracker that keeps what it hears."""

    name = "recorder"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {}
        self.logged: list[tuple[int | None, dict[str, Any]]] = []
        self.finished = False

    @property
    def tracker(self) -> Recorder:
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


def test_a_tracker_hears_of_losses_and_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr("diffinf.training.acceleration.find_tracker", lambda *_: [recorder])
    training_process.train(tmp_path, settings(tracker="tensorboard"))
    assert recorder.settings["steps"] == "8" and recorder.finished
    last = {name: value for step, values in recorder.logged if step == 8 for name, value in values.items()}
    check = metrics(tmp_path)["validation"][-1]
    assert last["validation/v"] == check["v"] and last["validation/band_4"] == check["bands"][4]
    assert {"loss", "v", "attribute", "adversary", "identity"} <= last.keys()


def test_looking_costs_little_with_the_ordinary_settings() -> None:
    for name in ("cpu", "cpu-small", "gpu", "gpu-48", "gpu-128"):
        config = make_config("x", preset_name=name).autoencoder  # type: ignore[arg-type]
        for n in (1000, 4000, 100_000):
            # A step costs about three evaluations a sample: one forward, two backward.
            training = 3 * config.steps * config.batch_size
            assert monitoring_evaluations(config, n, 7) < 0.05 * training
    assert preset("tiny")["autoencoder"]["sheets"] == 1


def test_more_processes_than_samples_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffinf.training import acceleration

    def crowded(self: acceleration.Acceleration, batch_size: int) -> slice:
        self.size = 9
        return share(self, batch_size)

    share = acceleration.Acceleration.share
    monkeypatch.setattr(acceleration.Acceleration, "share", crowded)
    with pytest.raises(UserError, match="7 samples cannot be split over 9 processes"):
        training_process.train(tmp_path)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    worker = training_process.__file__
    paths = os.pathsep.join([path for path in sys.path if path])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*torchrun, worker, tmp_path], check=True, env=environment, timeout=900)
    for name, persons in (("known", True), ("unknown", False)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TrainingWarning)
            alone = training_process.train(tmp_path / "alone" / name, persons=persons)
        both = [load_file(tmp_path / f"{name}-{rank}.safetensors") for rank in range(2)]
        for key, value in alone.items():
            assert torch.equal(both[0][key], both[1][key]), key
            # Adam makes a step of rounding where a gradient is nearly 0: few values, so the mean is bound tighter.
            difference = (both[0][key] - value).abs()
            assert difference.max() < 1e-3 and difference.mean() < 5e-5, key
        ours, theirs = metrics(tmp_path / name), metrics(tmp_path / "alone" / name)
        assert ours["history"][-1] == pytest.approx(theirs["history"][-1], rel=1e-5)
        assert ours["guide"] == pytest.approx(theirs["guide"], rel=1e-6)
        assert len(ours["validation"]) == 2
        assert not list((tmp_path / name).glob("*.checkpoint"))
