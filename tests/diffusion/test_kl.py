"""Fitting first stages: the KL autoencoder learns, is normalised and can be killed; settings that do not fit."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffinf.config import AutoencoderConfig
from diffinf.diffusion import kl
from diffinf.diffusion.autoencoder import DiffusionAutoencoder
from diffinf.diffusion.first_stage import FirstStage, KLStage, PatchComponents, PixelStage
from diffinf.diffusion.kl import FIRST_STAGE_CHECKPOINT, fit_first_stage, gradient_difference
from diffinf.diffusion.train import train_autoencoder
from diffinf.errors import UserError
from diffinf.training.loop import batch_indices, fit
from diffusion.tiny_autoencoder import pictures

IMAGES = pictures(24, 0)
CPU = torch.device("cpu")


def settings(**changes: Any) -> AutoencoderConfig:
    small = {
        "first_stage": "kl",
        "first_stage_channels": [16, 16],
        "first_stage_steps": 6,
        "latent_channels": 4,
        "batch_size": 8,
    }
    return AutoencoderConfig(**{**small, **changes})


def fit_here(
    directory: Path, config: AutoencoderConfig, seed: int = 0
) -> tuple[FirstStage, list[dict[str, float]]]:
    return fit_first_stage(IMAGES, config, seed=seed, device=CPU, directory=directory)


def scaled(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def test_the_gradient_difference_is_that_of_neighbouring_pixels() -> None:
    a, b = torch.randn(2, 2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    rows = [((a[:, :, i + 1] - a[:, :, i]) - (b[:, :, i + 1] - b[:, :, i])).abs() for i in range(4)]
    columns = [((a[..., i + 1] - a[..., i]) - (b[..., i + 1] - b[..., i])).abs() for i in range(3)]
    expected = torch.stack(rows).mean() + torch.stack(columns).mean()
    torch.testing.assert_close(gradient_difference(a, b), expected)
    assert gradient_difference(a, a + 3).item() == pytest.approx(0, abs=1e-6)  # edges, not levels


def test_the_kl_stage_learns_and_its_latents_are_of_unit_variance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kl, "fit", partial(fit, log_every=10))
    stage, history = fit_here(tmp_path, settings(first_stage_steps=60))
    assert isinstance(stage, KLStage) and not stage.training
    assert not any(p.requires_grad for p in stage.parameters())
    assert {"loss", "absolute", "edges", "kl"} <= history[-1].keys()
    assert history[-1]["absolute"] < 0.6 * history[0]["absolute"]
    latents = stage.encode(scaled(IMAGES))
    assert latents.shape == (24, 4, 8, 8)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), rtol=0, atol=1e-3)
    back = stage.decode(latents)
    grey = scaled(IMAGES).mean() - scaled(IMAGES)
    assert (back - scaled(IMAGES)).abs().mean() < 0.6 * grey.abs().mean()


def test_a_killed_training_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kl, "fit", partial(fit, save_every=2))
    whole = fit_here(tmp_path / "whole", settings())[0].state_dict()

    def killed(n: int, batch_size: int, seed: int, step: int) -> Tensor:
        if step == 5:
            raise KeyboardInterrupt
        return batch_indices(n, batch_size, seed, step)

    with monkeypatch.context() as patch:
        patch.setattr(kl, "batch_indices", killed)
        with pytest.raises(KeyboardInterrupt):
            fit_here(tmp_path / "killed", settings())
    assert (tmp_path / "killed" / FIRST_STAGE_CHECKPOINT).exists()
    torch.manual_seed(3)  # the state of the global generator is nothing to it
    again = fit_here(tmp_path / "killed", settings())[0].state_dict()
    assert all(torch.equal(values, again[name]) for name, values in whole.items())
    other = fit_here(tmp_path / "other", settings(), seed=1)[0].state_dict()
    assert not torch.equal(other["vae.encoder.conv_in.weight"], whole["vae.encoder.conv_in.weight"])


def test_the_settings_choose_the_first_stage(tmp_path: Path) -> None:
    patches, history = fit_here(tmp_path, settings(first_stage="patches"))
    assert isinstance(patches, PatchComponents) and patches.factor == 4 and history == []
    pixels, history = fit_here(tmp_path, settings(first_stage="pixels"))
    assert isinstance(pixels, PixelStage) and (pixels.factor, pixels.latent_channels) == (1, 1)
    assert torch.equal(pixels.decode(pixels.encode(scaled(IMAGES))), scaled(IMAGES)) and history == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"first_stage_channels": [16, 24]}, r"first_stage_channels: .*multiples of 16, found \[16, 24\]"),
        ({"first_stage_channels": [16] * 6}, "first_stage_channels: 32 does not divide"),
        ({"first_stage": "patches", "patch_size": 5}, "patch_size: 5 does not divide"),
        ({"first_stage": "patches", "latent_channels": 17}, "a patch has 16 values"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        fit_here(tmp_path, settings(**changes))


@pytest.mark.parametrize("first_stage", ["kl", "pixels"])
def test_an_autoencoder_is_trained_on_every_first_stage(tmp_path: Path, first_stage: str) -> None:
    config = settings(
        first_stage=first_stage, unet_channels=[32, 32], steps=2, guide_steps=2, prior_steps=2, max_depth=0.7
    )
    shares = torch.eye(2)[torch.arange(24) % 2]
    model = train_autoencoder(
        IMAGES,
        shares,
        None,
        config,
        class_names=("calm", "smile"),
        seed=0,
        device=CPU,
        directory=tmp_path,
    )
    assert not list(tmp_path.glob("*.checkpoint"))
    loaded = DiffusionAutoencoder.from_pretrained(tmp_path)
    assert loaded.spec == model.spec and loaded.max_depth == 0.7
    assert loaded.differs_from(IMAGES) is None
    assert loaded.reconstruct(IMAGES[:2], steps=2)[0].shape == (2, 1, 16, 16)
    assert loaded.sample(2, steps=2, prior_steps=2).shape == (2, 1, 16, 16)


def test_more_levels_than_the_latents_can_be_halved_are_refused(tmp_path: Path) -> None:
    config = settings(first_stage="patches", unet_channels=[32, 32, 32, 32])
    with pytest.raises(UserError, match=r"unet_channels: 4 levels .* side of 16 pixels"):
        train_autoencoder(
            IMAGES,
            torch.eye(2)[torch.arange(24) % 2],
            None,
            config,
            class_names=("calm", "smile"),
            seed=0,
            device=CPU,
            directory=tmp_path,
        )
