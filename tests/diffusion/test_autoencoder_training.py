"""Training the autoencoder: it learns, can be killed, and hears labels only where it is told to."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffinf.config import AutoencoderConfig, PresetName, make_config
from diffinf.diffusion import objective, train
from diffinf.diffusion.autoencoder import DiffusionAutoencoder
from diffinf.diffusion.familiarity import usual_error
from diffinf.diffusion.networks import Denoiser
from diffinf.diffusion.train import CHECKPOINT, GUIDE_CHECKPOINT, train_autoencoder
from diffinf.training.loop import DivergedError, batch_indices, fit
from diffusion.tiny_autoencoder import pictures, weights

N = 24
IMAGES = pictures(N, 0).clamp(0, 195)
IMAGES[1::2, :, :8] += 60  # the upper half of the second class is brighter
SHARES = torch.eye(2)[torch.arange(N) % 2]
PERSONS = torch.arange(N) // 4
CPU = torch.device("cpu")


def settings(**changes: Any) -> AutoencoderConfig:
    return AutoencoderConfig(
        **{
            "latent_channels": 8,
            "patch_size": 4,
            "attribute_size": 3,
            "appearance_size": 5,
            "unet_channels": [32, 64],
            "steps": 7,
            "guide_steps": 7,
            "batch_size": 8,
            "learning_rate": 2e-3,
            "identity_size": 4,
            "prior_steps": 2,
            "sheets": 0,
            **changes,
        }
    )


def train_here(
    directory: Path,
    config: AutoencoderConfig,
    *,
    shares: Tensor = SHARES,
    persons: Tensor | None = PERSONS,
    seed: int = 0,
) -> DiffusionAutoencoder:
    return train_autoencoder(
        IMAGES,
        shares,
        persons,
        config,
        class_names=("calm", "smile"),
        seed=seed,
        device=CPU,
        directory=directory,
    )


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_training_lowers_the_loss_and_writes_what_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "fit", partial(fit, log_every=6))
    model = train_here(tmp_path, settings(steps=24, guide_steps=18, batch_size=16, learning_rate=4e-3))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    history = metrics["history"]
    assert history[-1]["v"] < 0.95 < history[0]["v"]  # predicting nothing at all costs 1
    assert history[-1]["loss"] < history[0]["loss"]
    assert {"loss", "v", "attribute", "adversary", "identity"} <= metrics["denoiser"].keys()
    assert metrics["n"] == N and metrics["denoiser"]["step"] == 24
    assert metrics["guide"]["step"] == 18 and metrics["guide"]["loss"] < 0.69  # a coin's
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "autoencoder.json",
        *("denoiser", "encoder", "first_stage", "guide"),
        *("metrics.json", "model_index.json"),
        *("prior", "scheduler", "statistics"),
    ]
    loaded = DiffusionAutoencoder.from_pretrained(tmp_path)
    assert loaded.spec == model.spec and loaded.spec.class_names == ("calm", "smile")
    assert loaded.usual_error == pytest.approx(
        usual_error(model, IMAGES), abs=1e-4
    )  # nothing is held out of so few
    codes = model.normalised(model.encoder(model.to_latents(IMAGES)))
    torch.testing.assert_close(codes.mean(0), torch.zeros(8), rtol=0, atol=1e-3)
    torch.testing.assert_close(codes.std(0), torch.ones(8), rtol=0, atol=1e-3)


# The two trainings take their batches with different seeds.
@pytest.mark.parametrize(
    ("killed_seed", "left"), [(2, [GUIDE_CHECKPOINT]), (0, [GUIDE_CHECKPOINT, CHECKPOINT])]
)
def test_a_killed_training_writes_identical_weights(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_seed: int, left: list[str]
) -> None:
    monkeypatch.setattr(train, "fit", partial(fit, save_every=3, log_every=2))

    def killed(n: int, batch_size: int, seed: int, step: int) -> Tensor:
        if (seed, step) == (killed_seed, 5):
            raise KeyboardInterrupt
        return batch_indices(n, batch_size, seed, step)

    torch.manual_seed(2)  # the state of the global generator is nothing to it
    with monkeypatch.context() as patch:
        patch.setattr(train, "batch_indices", killed)
        with pytest.raises(KeyboardInterrupt):
            train_here(tmp_path, settings())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(left)
    train_here(tmp_path, settings())
    assert equal(weights(whole), weights(tmp_path))
    for name in ("autoencoder.json", "metrics.json"):
        assert (whole / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nobody killed."""
    directory = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "fit", partial(fit, log_every=2))
        torch.manual_seed(1)
        train_here(directory, settings())
    return directory


def test_labels_are_heard_by_the_denoiser_the_heads_and_the_guide_alone(tmp_path: Path) -> None:
    deaf = {"prior_steps": 0, "label_dropout": 1.0, "attribute_weight": 0.0, "adversary_weight": 0.0}
    parts: list[tuple[str, dict[str, float]]] = [
        ("none", deaf),
        ("denoiser", {**deaf, "label_dropout": 0.0}),
        ("attribute", {**deaf, "attribute_weight": 1.0}),
        ("adversary", {**deaf, "adversary_weight": 1.0}),
    ]
    for name, changes in parts:
        config = settings(steps=1, guide_steps=1, **changes)
        found = []
        for side, shares in (("as-is", SHARES), ("swapped", SHARES.flip(1))):
            train_here(tmp_path / name / side, config, shares=shares, persons=None)
            found.append(weights(tmp_path / name / side))
        guides, others = (
            [{k: v for k, v in w.items() if k.startswith("guide.") == guide} for w in found]
            for guide in (True, False)
        )
        assert not equal(*guides)
        assert equal(*others) == (name == "none"), name


@pytest.mark.parametrize("max_depth", [0.05, 1.0])
def test_no_deeper_noise_is_trained_on_than_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_depth: float
) -> None:
    asked: list[int] = []
    forward = Denoiser.forward

    def recording(self: Denoiser, noisy: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        asked.extend(timestep.tolist())
        return forward(self, noisy, timestep, context)

    monkeypatch.setattr(Denoiser, "forward", recording)
    train_here(tmp_path, settings(steps=2, guide_steps=1, batch_size=32, max_depth=max_depth))
    assert min(asked) >= 0 and 0.7 * 1000 * max_depth < max(asked) < 1000 * max_depth


def test_the_adversary_turns_the_encoder_away() -> None:
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    turned = objective.Reversed.apply(x)
    assert torch.equal(turned, x)
    (gradient,) = torch.autograd.grad((turned * torch.tensor([3.0, 5.0])).sum(), x)
    assert torch.equal(gradient, torch.tensor([-3.0, -5.0]))


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    short = settings(steps=1, guide_steps=1)
    for seed in (0, 1):
        train_here(tmp_path / str(seed), short, seed=seed)
    assert not equal(weights(tmp_path / "0"), weights(tmp_path / "1"))


def test_a_diverging_training_is_an_error_and_writes_no_weights(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="diffusion autoencoder"):
        train_here(tmp_path, settings(guide_steps=1, learning_rate=1e18, attribute_weight=1e30))
    assert not list(tmp_path.glob("autoencoder*"))


def test_more_components_than_a_patch_has_are_refused(tmp_path: Path) -> None:
    from diffinf.errors import UserError

    with pytest.raises(UserError, match="latent_channels"):
        train_here(tmp_path, settings(latent_channels=17, steps=1, guide_steps=1))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("gpu-48", 48), ("gpu-128", 128)])
def test_the_presets_for_gpus_train_a_step(tmp_path: Path, name: PresetName, size: int) -> None:
    config = make_config("x", preset_name=name).autoencoder
    few = {"steps": 1, "guide_steps": 1, "prior_steps": 1, "batch_size": 2, "sheets": 0}
    model = train_autoencoder(
        pictures(4, 0, size=size, channels=3),
        torch.eye(2)[torch.arange(4) % 2],
        None,
        config.model_copy(update={**few, "gradient_checkpointing": True}),
        class_names=("calm", "smile"),
        seed=0,
        device=CPU,
        directory=tmp_path,
    )
    assert model.spec.image_size == size and model.spec.unet_channels == tuple(config.unet_channels)
    back, error = model.reconstruct(pictures(1, 1, size=size, channels=3), steps=1)
    assert back.shape == (1, 3, size, size) and error.isfinite().all()
