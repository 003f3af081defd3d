"""Training the autoencoder: it learns, can be killed, and hears labels only where it is told to."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from diffinf.config import AutoencoderConfig
from diffinf.diffusion import train
from diffinf.diffusion.autoencoder import DiffusionAutoencoder
from diffinf.diffusion.train import CHECKPOINT, train_autoencoder
from diffinf.training.loop import DivergedError, batch_indices, fit
from diffusion.tiny_autoencoder import pictures

N = 24
IMAGES = pictures(N, 0)
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
            "batch_size": 8,
            "learning_rate": 2e-3,
            "identity_size": 4,
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


def weights(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "autoencoder.safetensors")


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_training_lowers_the_loss_and_writes_what_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "fit", partial(fit, log_every=6))
    model = train_here(tmp_path, settings(steps=24, batch_size=16, learning_rate=4e-3))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    history = metrics["history"]
    assert history[-1]["v"] < 0.95 < history[0]["v"]  # predicting nothing at all costs 1
    assert history[-1]["loss"] < history[0]["loss"]
    assert {"loss", "v", "attribute", "adversary", "identity"} <= metrics["last"].keys()
    assert metrics["n"] == N and metrics["last"]["step"] == 24
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "autoencoder.json",
        "autoencoder.safetensors",
        "metrics.json",
    ]
    loaded = DiffusionAutoencoder.load(tmp_path)
    assert loaded.spec == model.spec and loaded.spec.class_names == ("calm", "smile")
    codes = model.normalised(model.encoder(model.to_latents(IMAGES)))
    torch.testing.assert_close(codes.mean(0), torch.zeros(8), rtol=0, atol=1e-3)
    torch.testing.assert_close(codes.std(0), torch.ones(8), rtol=0, atol=1e-3)


def test_a_killed_training_writes_identical_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "fit", partial(fit, save_every=3, log_every=2))
    torch.manual_seed(1)
    train_here(tmp_path / "whole", settings())

    def killed(n: int, batch_size: int, seed: int, step: int) -> Tensor:
        if step == 5:
            raise KeyboardInterrupt
        return batch_indices(n, batch_size, seed, step)

    torch.manual_seed(2)  # the state of the global generator is nothing to it
    with monkeypatch.context() as patch:
        patch.setattr(train, "batch_indices", killed)
        with pytest.raises(KeyboardInterrupt):
            train_here(tmp_path / "killed", settings())
    assert [path.name for path in (tmp_path / "killed").iterdir()] == [CHECKPOINT]
    train_here(tmp_path / "killed", settings())
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    names = ("autoencoder.json", "metrics.json")
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_labels_are_heard_by_the_denoiser_and_the_heads_alone(tmp_path: Path) -> None:
    deaf = {"label_dropout": 1.0, "attribute_weight": 0.0, "adversary_weight": 0.0}
    parts: list[tuple[str, dict[str, float]]] = [
        ("none", deaf),
        ("denoiser", {**deaf, "label_dropout": 0.0}),
        ("attribute", {**deaf, "attribute_weight": 1.0}),
        ("adversary", {**deaf, "adversary_weight": 1.0}),
    ]
    for name, changes in parts:
        config = settings(steps=1, **changes)
        for side, shares in (("as-is", SHARES), ("swapped", SHARES.flip(1))):
            train_here(tmp_path / name / side, config, shares=shares, persons=None)
        same = equal(weights(tmp_path / name / "as-is"), weights(tmp_path / name / "swapped"))
        assert same == (name == "none"), name


def test_the_adversary_turns_the_encoder_away() -> None:
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    turned = train._Reversed.apply(x)
    assert torch.equal(turned, x)
    (gradient,) = torch.autograd.grad((turned * torch.tensor([3.0, 5.0])).sum(), x)
    assert torch.equal(gradient, torch.tensor([-3.0, -5.0]))


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    short = settings(steps=1)
    for seed in (0, 1):
        train_here(tmp_path / str(seed), short, seed=seed)
    assert not equal(weights(tmp_path / "0"), weights(tmp_path / "1"))


def test_a_diverging_training_is_an_error_and_writes_no_weights(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="diffusion autoencoder"):
        train_here(tmp_path, settings(learning_rate=1e18, attribute_weight=1e30))
    assert not list(tmp_path.glob("autoencoder*"))


@pytest.mark.xfail(
    strict=True, raises=RuntimeError, reason="latent_channels is not checked against the pixels of a patch"
)
def test_more_components_than_a_patch_has_are_refused(tmp_path: Path) -> None:
    from diffinf.errors import UserError

    with pytest.raises(UserError, match="latent_channels"):
        train_here(tmp_path, settings(latent_channels=17, steps=1))
