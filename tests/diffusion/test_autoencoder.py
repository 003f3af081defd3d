"""The autoencoder: contexts, latents, saving, loading and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from diffinf.diffusion.autoencoder import DiffusionAutoencoder
from diffinf.errors import UserError
from diffusion.tiny_autoencoder import SPEC, make_autoencoder, pictures


@pytest.fixture
def code() -> torch.Tensor:
    return torch.randn(3, SPEC.code_size, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def shares() -> torch.Tensor:
    return torch.tensor([[0.9, 0.1], [0.0, 1.0], [0.5, 0.5]])


def test_a_code_has_two_parts_with_heads_of_their_own(
    autoencoder: DiffusionAutoencoder, code: torch.Tensor
) -> None:
    encoder = autoencoder.encoder
    assert SPEC.code_size == SPEC.attribute_size + SPEC.appearance_size == code.shape[1]
    assert torch.equal(encoder.appearance(code), code[:, SPEC.attribute_size :])
    other_attribute, other_appearance = code.clone(), code.clone()
    other_attribute[:, : SPEC.attribute_size] += 1
    other_appearance[:, SPEC.attribute_size :] += 1
    assert torch.equal(encoder.attribute(other_appearance), encoder.attribute(code))
    assert not torch.equal(encoder.attribute(other_attribute), encoder.attribute(code))
    assert torch.equal(encoder.identity(other_attribute), encoder.identity(code))
    assert not torch.equal(encoder.identity(other_appearance), encoder.identity(code))
    assert encoder.attribute(code).shape == (3, len(SPEC.class_names))


def test_a_context_is_the_appearance_plus_the_labels_by_their_shares(
    autoencoder: DiffusionAutoencoder, code: torch.Tensor, shares: torch.Tensor
) -> None:
    denoiser, appearance = autoencoder.denoiser, autoencoder.encoder.appearance(code)
    of_class = denoiser.label_context.weight.T  # (K, W)
    expected = denoiser.appearance_context(appearance) + shares @ of_class
    torch.testing.assert_close(denoiser.context(appearance, shares), expected)


def test_left_out_appearances_and_labels_are_the_learned_empty_ones(
    autoencoder: DiffusionAutoencoder, code: torch.Tensor, shares: torch.Tensor
) -> None:
    denoiser, appearance = autoencoder.denoiser, autoencoder.encoder.appearance(code)
    of_appearance, of_label = denoiser.appearance_context(appearance), denoiser.label_context(shares)
    whole = denoiser.context(appearance, shares)
    keep_appearance, keep_label = torch.tensor([True, False, False]), torch.tensor([True, True, False])
    context = denoiser.context(appearance, shares, keep_appearance, keep_label)
    torch.testing.assert_close(context[0], whole[0])
    torch.testing.assert_close(context[1], denoiser.empty_appearance + of_label[1])
    torch.testing.assert_close(context[2], denoiser.empty_appearance + denoiser.empty_label)
    without_label = denoiser.context(appearance, shares, keep_label=torch.zeros(3, dtype=torch.bool))
    torch.testing.assert_close(without_label, of_appearance + denoiser.empty_label)
    assert (context - whole)[1:].abs().amax(1).min() > 0.1


def test_the_context_changes_what_is_predicted(autoencoder: DiffusionAutoencoder, code: torch.Tensor) -> None:
    noisy = torch.randn(3, SPEC.latent_channels, 4, 4, generator=torch.Generator().manual_seed(1))
    t = torch.full((3,), 500)
    denoiser, appearance = autoencoder.denoiser, autoencoder.encoder.appearance(code)
    calm, smile = (
        denoiser(noisy, t, denoiser.context(appearance, torch.eye(2)[k].expand(3, -1))) for k in (0, 1)
    )
    assert smile.shape == noisy.shape
    assert (smile - calm).abs().max() > 1e-3


def test_the_noise_schedule_is_the_linear_one_of_ddpm(autoencoder: DiffusionAutoencoder) -> None:
    alphas = autoencoder.alphas_cumprod
    assert alphas.shape == (1000,)
    assert alphas[0].item() == pytest.approx(1 - 1e-4)
    assert alphas[1].item() == pytest.approx((1 - 1e-4) * (1 - 1e-4 - 0.0199 / 999))
    assert alphas[-1].item() == pytest.approx(4.036e-5, rel=1e-2)


def test_images_survive_the_latents(autoencoder: DiffusionAutoencoder) -> None:
    images = pictures(8, 3)
    latents = autoencoder.to_latents(images)
    assert latents.shape == (8, 16, 4, 4)
    assert torch.equal(autoencoder.to_images(latents), images)


def test_images_are_clamped_not_wrapped(autoencoder: DiffusionAutoencoder) -> None:
    images = torch.cat([torch.zeros(1, 1, 16, 16), torch.full((1, 1, 16, 16), 255.0)]).to(torch.uint8)
    latents = autoencoder.to_latents(images)
    brighter_and_darker = latents + 0.2 * (latents - latents.flip(0))
    assert torch.equal(autoencoder.to_images(brighter_and_darker), images)


@pytest.mark.parametrize("shape", [(2, 1, 20, 20), (2, 3, 16, 16), (2, 1, 16, 20)])
def test_images_of_another_shape_are_refused(
    autoencoder: DiffusionAutoencoder, shape: tuple[int, ...]
) -> None:
    with pytest.raises(UserError, match=r"data\.image_size") as caught:
        autoencoder.to_latents(torch.zeros(shape, dtype=torch.uint8))
    assert str(shape[1:]) in str(caught.value) and "(1, 16, 16)" in str(caught.value)


def test_codes_are_normalised_by_their_statistics(
    autoencoder: DiffusionAutoencoder, code: torch.Tensor
) -> None:
    normalised = autoencoder.normalised(code)
    torch.testing.assert_close(normalised * autoencoder.code_std + autoencoder.code_mean, code)
    assert (normalised - code).abs().max() > 0.1


def test_identities_are_unit_vectors(autoencoder: DiffusionAutoencoder, code: torch.Tensor) -> None:
    identity = autoencoder.encoder.identity(code)
    assert identity.shape == (3, SPEC.identity_size)
    torch.testing.assert_close(identity.norm(dim=1), torch.ones(3))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("autoencoder")
    make_autoencoder().save(directory)
    return directory


def test_what_is_saved_is_loaded_to_half_precision(autoencoder: DiffusionAutoencoder, saved: Path) -> None:
    loaded = DiffusionAutoencoder.load(saved)
    assert loaded.spec == autoencoder.spec
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    before, after = autoencoder.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].dtype == value.dtype, name
        torch.testing.assert_close(after[name], value, rtol=2**-10, atol=1e-6, msg=name)
    torch.testing.assert_close(loaded.alphas_cumprod, autoencoder.alphas_cumprod)  # not among the weights
    images = pictures(4, 5)
    latents = autoencoder.to_latents(images)
    t, shares = torch.full((4,), 300), torch.eye(2)[[0, 1, 1, 0]]
    outputs = [
        model.denoiser(latents, t, model.denoiser.context(model.encoder(latents)[:, 3:], shares))
        for model in (autoencoder, loaded)
    ]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0.02)
    assert (loaded.to_images(loaded.to_latents(images)).int() - images.int()).abs().max() <= 1


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "copy")
    return tmp_path / "copy"


def change_specification(directory: Path, **changes: Any) -> None:
    path = directory / "autoencoder.json"
    fields = json.loads(path.read_text())
    fields.update(changes)
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))


@pytest.mark.parametrize("name", ["autoencoder.json", "autoencoder.safetensors"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(UserError, match=name):
        DiffusionAutoencoder.load(copy)


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_truncated_weights_are_refused(copy: Path, keep: int) -> None:
    path = copy / "autoencoder.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"autoencoder\.safetensors"):
        DiffusionAutoencoder.load(copy)


@pytest.mark.parametrize("text", ["", "{", '{"format_version": 1}', "[]", "\ufffd"])
def test_a_damaged_specification_is_refused(copy: Path, text: str) -> None:
    (copy / "autoencoder.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"autoencoder\.json"):
        DiffusionAutoencoder.load(copy)


@pytest.mark.parametrize("text", ["null", "3", '"x"'])
def test_a_specification_that_is_no_mapping_is_refused(copy: Path, text: str) -> None:
    (copy / "autoencoder.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"autoencoder\.json"):
        DiffusionAutoencoder.load(copy)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_format_version_is_refused(copy: Path, version: object) -> None:
    change_specification(copy, format_version=version)
    with pytest.raises(UserError, match=f"format version {version}"):
        DiffusionAutoencoder.load(copy)


@pytest.mark.parametrize(
    "changes",
    [
        {"appearance_size": 6},
        {"attribute_size": 4},
        {"class_names": ["calm", "smile", "frown"]},
        {"unet_channels": [32, 96]},
        {"latent_channels": 12},
        {"image_channels": 3},
        {"unet_layers": 2},
        {"identity_size": 5},
    ],
    ids=str,
)
def test_weights_of_another_shape_are_refused(copy: Path, changes: dict[str, Any]) -> None:
    change_specification(copy, **changes)
    with pytest.raises(UserError, match="do not fit"):
        DiffusionAutoencoder.load(copy)


def test_a_field_too_many_or_too_few_is_refused(copy: Path) -> None:
    change_specification(copy, colour=1)
    with pytest.raises(UserError, match="colour"):
        DiffusionAutoencoder.load(copy)
    change_specification(copy, colour=None, attribute_size=None)
    with pytest.raises(UserError, match="attribute_size"):
        DiffusionAutoencoder.load(copy)


@pytest.mark.parametrize("changes", [{"unet_channels": [20, 40]}, {"attribute_size": "3"}], ids=str)
def test_a_specification_that_no_network_can_have_is_refused(copy: Path, changes: dict[str, Any]) -> None:
    change_specification(copy, **changes)
    with pytest.raises(UserError):
        DiffusionAutoencoder.load(copy)
