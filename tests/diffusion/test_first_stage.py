"""The first stage against principal component analysis."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from diffinf.diffusion import first_stage
from diffinf.diffusion.first_stage import PatchComponents
from diffusion.tiny_autoencoder import pictures


def scaled(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def patches(images: Tensor, side: int = 4) -> np.ndarray:
    """All patches of uint8 images in [-1, 1], (M, C·side²)."""
    n, channels, height, width = images.shape
    values = images.numpy().astype(np.float64) / 127.5 - 1
    tiles = values.reshape(n, channels, height // side, side, width // side, side)
    return tiles.transpose(0, 2, 4, 1, 3, 5).reshape(-1, channels * side**2)


@pytest.mark.parametrize(("channels", "side"), [(1, 4), (3, 4), (3, 2), (1, 8)])
def test_with_all_components_nothing_is_lost(channels: int, side: int) -> None:
    every = channels * side**2
    stage = PatchComponents.fit(pictures(40, 0, channels=channels), every, side)
    other = scaled(pictures(5, 1, size=24, channels=channels))  # of another size, and never seen
    assert stage.encode(other).shape == (5, every, 24 // side, 24 // side)
    torch.testing.assert_close(stage.decode(stage.encode(other)), other, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("channels", "kept", "side"), [(1, 1, 4), (1, 5, 4), (3, 12, 4), (3, 4, 2)])
def test_fewer_components_lose_the_variance_of_those_left_out(channels: int, kept: int, side: int) -> None:
    images = pictures(60, 0, channels=channels)
    stage = PatchComponents.fit(images, kept, side)
    lost = (stage.decode(stage.encode(scaled(images))) - scaled(images)).double()
    rows = patches(images, side)
    dropped = PCA().fit(rows).explained_variance_[kept:].sum()
    assert lost.square().sum().item() / (len(rows) - 1) == pytest.approx(dropped, rel=1e-4)


def test_the_basis_is_that_of_principal_component_analysis() -> None:
    images = pictures(60, 0)
    stage = PatchComponents.fit(images, 6, 4)
    cosine = stage.basis.flatten(1).numpy() @ PCA(6).fit(patches(images)).components_.T
    np.testing.assert_allclose(np.abs(cosine), np.eye(6), atol=1e-4)


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_latents_have_zero_mean_and_are_whitened_as_far_as_asked(whitening: float) -> None:
    images = pictures(60, 0)
    stage = PatchComponents.fit(images, 6, 4, whitening)
    latents = stage.encode(scaled(images)).transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(latents.mean(1), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-5)
    variance = PCA(6).fit(patches(images)).explained_variance_ ** (1 - whitening)
    np.testing.assert_allclose(latents.var(1).numpy(), variance / variance.mean(), rtol=1e-4)


def test_whitening_does_not_change_what_is_kept() -> None:
    images = pictures(60, 0)
    backs = []
    for whitening in (0.0, 1.0):
        stage = PatchComponents.fit(images, 6, 4, whitening)
        backs.append(stage.decode(stage.encode(scaled(images))))
    torch.testing.assert_close(backs[0], backs[1], rtol=0, atol=1e-5)


def test_the_same_images_in_another_order_give_the_same_latents() -> None:
    images = pictures(60, 0)
    stage, again = PatchComponents.fit(images, 16, 4), PatchComponents.fit(images.flip(0), 16, 4)
    some = scaled(images[:4])
    torch.testing.assert_close(stage.encode(some), again.encode(some), rtol=0, atol=1e-4)


def test_signs_do_not_hang_on_rounding() -> None:
    images = pictures(30, 0)
    images = torch.cat([images, images.flip(3)])  # many components are antisymmetric: their sum is zero
    stage = PatchComponents.fit(images, 16, 4)
    for seed in range(4):
        order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
        again = PatchComponents.fit(images[order], 16, 4)
        torch.testing.assert_close(again.basis, stage.basis, rtol=0, atol=1e-3)


def test_pictures_of_one_colour_are_no_problem() -> None:
    images = torch.full((10, 1, 8, 8), 90, dtype=torch.uint8)
    stage = PatchComponents.fit(images, 16, 4)
    torch.testing.assert_close(stage.decode(stage.encode(scaled(images))), scaled(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "n",
    [
        2000,
        4000,
        3999,
    ],
)
def test_at_most_two_thousand_images_are_looked_at(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    looked_at = []
    unfold = torch.nn.functional.unfold

    def counting(images: Tensor, *args: int, **options: int) -> Tensor:
        looked_at.append(len(images))
        return unfold(images, *args, **options)

    monkeypatch.setattr(first_stage.F, "unfold", counting)
    PatchComponents.fit(torch.randint(0, 255, (n, 1, 4, 4), dtype=torch.uint8), 4, 4)
    assert 1000 <= sum(looked_at) <= 2000
