"""Saving and loading: every configuration comes back as it was, and a folder is not trusted."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffinf.diffusion.autoencoder import DiffusionAutoencoder, create_autoencoder
from diffinf.diffusion.first_stage import FirstStage, KLStage, PatchComponents, PixelStage
from diffinf.diffusion.prior import LatentPrior
from diffinf.diffusion.spec import AutoencoderSpec
from diffinf.diffusion.storage import AUTOENCODER
from diffinf.errors import UserError
from diffinf.files import file_sha256
from diffusion.schedulers import ddim
from diffusion.tiny_autoencoder import make_autoencoder, pictures

WEIGHTS = "diffusion_pytorch_model.safetensors"


def build(stage_name: str, scheduler: str, channels: int, size: int) -> DiffusionAutoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stage: FirstStage
        if stage_name == "patches":
            stage = PatchComponents.fit(pictures(16, 1, size=size, channels=channels), 6, 4)
        elif stage_name == "kl":
            stage = KLStage(channels, 3, [16, 16, 16])
        else:
            stage = PixelStage(channels)
        spec = AutoencoderSpec(
            class_names=("calm", "smile"),
            image_channels=channels,
            image_size=size,
            patch_size=stage.factor,
            latent_channels=stage.latent_channels,
            attribute_size=3,
            appearance_size=5,
            unet_channels=(32, 32),
            unet_layers=1,
            identity_size=4,
            max_depth=0.5,
        )
        model = create_autoencoder(spec, stage)
        model.code_mean.normal_()
        if scheduler == "ddim":
            model.prior = LatentPrior(8, 2, width=8)
            model.scheduler = ddim()
    model.freeze()
    model.set_latent_statistics(model.to_latents(pictures(16, 1, size=size, channels=channels)))
    model.usual_error = (-2.5, 0.125)
    return model


@pytest.mark.parametrize(
    ("stage", "scheduler", "channels", "size"),
    itertools.product(("patches", "kl", "pixels"), ("default", "ddim"), (1, 3), (32, 64)),
)
def test_every_configuration_comes_back_as_it_was(
    tmp_path: Path, stage: str, scheduler: str, channels: int, size: int
) -> None:
    model = build(stage, scheduler, channels, size)
    model.save_pretrained(tmp_path)
    loaded = DiffusionAutoencoder.from_pretrained(tmp_path)
    assert loaded.spec == model.spec
    assert (loaded.latent_mean, loaded.latent_std) == (model.latent_mean, model.latent_std)
    assert loaded.usual_error == (-2.5, 0.125)
    assert type(loaded.scheduler) is type(model.scheduler)
    for name in AUTOENCODER.modules:
        before, after = getattr(model, name), getattr(loaded, name)
        assert type(before) is type(after)
        if before is None:
            continue
        assert not after.training and not any(p.requires_grad for p in after.parameters())
        by_itself = type(before).from_pretrained(tmp_path / name)  # as diffusers reads a component
        assert dict(by_itself.config).keys() >= dict(before.config).keys() - {"_use_default_values"}
        for key, values in before.state_dict().items():
            assert torch.equal(values, after.state_dict()[key]), (name, key)
            assert torch.equal(values, by_itself.state_dict()[key]), (name, key)
    images = pictures(2, 3, size=size, channels=channels)
    for one, other in zip(model.encode(images, steps=2), loaded.encode(images, steps=2), strict=True):
        assert torch.equal(one, other)
    back, error = loaded.reconstruct(images, steps=2)
    assert torch.equal(back, model.reconstruct(images, steps=2)[0])
    assert back.shape == images.shape and error.isfinite().all()
    assert loaded.guide_logits(loaded.to_latents(images)).shape == (2, 2)
    assert loaded.position == (size / 16 if stage == "pixels" else 1.0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("autoencoder")
    model = make_autoencoder()
    with torch.random.fork_rng():
        model.prior = LatentPrior(8, 2, width=8)
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "copy")
    return tmp_path / "copy"


def test_half_the_precision_is_half_the_size_and_comes_back_as_floats(saved: Path, tmp_path: Path) -> None:
    whole = DiffusionAutoencoder.from_pretrained(saved)
    whole.save_pretrained(tmp_path, dtype=torch.float16)
    half = DiffusionAutoencoder.from_pretrained(tmp_path)
    assert (tmp_path / "denoiser" / WEIGHTS).stat().st_size < 0.55 * (
        saved / "denoiser" / WEIGHTS
    ).stat().st_size
    for name in AUTOENCODER.modules:
        for key, before in getattr(whole, name).state_dict().items():
            after = getattr(half, name).state_dict()[key]
            assert after.dtype == before.dtype
            torch.testing.assert_close(after, before, rtol=2**-10, atol=1e-6)
    images = pictures(4, 5)
    assert (half.to_images(half.to_latents(images)).int() - images.int()).abs().max() <= 1
    errors = (whole.reconstruct(images, steps=3)[0].int() - half.reconstruct(images, steps=3)[0].int()).abs()
    assert errors.max() <= 2


def test_saving_twice_writes_the_same_bytes_and_leaves_other_files(saved: Path, copy: Path) -> None:
    (copy / "metrics.json").write_text("{}")
    DiffusionAutoencoder.from_pretrained(saved).save_pretrained(copy)
    for path in saved.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (copy / path.relative_to(saved)).read_bytes(), path
    assert (copy / "metrics.json").exists()


def test_a_save_that_was_killed_leaves_nothing_that_could_be_taken_for_whole(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = DiffusionAutoencoder.from_pretrained(copy)

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(model.denoiser), "state_dict", killed)
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(copy)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"autoencoder\.json: not there"):
        DiffusionAutoencoder.from_pretrained(copy)


FILES = [
    "autoencoder.json",
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(f"{name}/{file}" for name in AUTOENCODER.modules for file in ("config.json", WEIGHTS)),
]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(UserError, match=name):
        DiffusionAutoencoder.from_pretrained(copy)


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
@pytest.mark.parametrize("name", ["denoiser", "prior"])
def test_truncated_weights_are_refused(copy: Path, keep: int, name: str) -> None:
    path = copy / name / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=f"{name}/{WEIGHTS}: its sha256"):
        DiffusionAutoencoder.from_pretrained(copy)


@pytest.mark.parametrize("name", [file for file in FILES if file.endswith(".json")])
@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"x"', "\ufffd", "{}"])
def test_damaged_json_is_refused(copy: Path, name: str, text: str) -> None:
    (copy / name).write_text(text, encoding="utf-8")
    if (name, text) == ("scheduler/scheduler_config.json", "{}"):
        with pytest.raises(UserError, match="prediction_type=epsilon"):  # diffusers' defaults
            DiffusionAutoencoder.from_pretrained(copy)
        return
    with pytest.raises(UserError, match=name):
        DiffusionAutoencoder.from_pretrained(copy)


def change(path: Path, **changes: Any) -> None:
    fields = json.loads(path.read_text())
    fields.update(changes)
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))


@pytest.mark.parametrize("version", [0, 1, 3, "2", None])
def test_another_format_version_is_refused(copy: Path, version: object) -> None:
    change(copy / "autoencoder.json", format_version=version)
    with pytest.raises(
        UserError, match=f"format version {version}, this diffinf reads 2; train or convert it again"
    ):
        DiffusionAutoencoder.from_pretrained(copy)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("denoiser", {"appearance_size": 6}),
        ("denoiser", {"channels": [32, 96]}),
        ("denoiser", {"layers": 2}),
        ("encoder", {"attribute_size": 4}),
        ("encoder", {"identity_size": 5}),
        ("first_stage", {"latent_channels": 12}),
        ("first_stage", {"image_channels": 3}),
        ("guide", {"num_classes": 3}),
        ("statistics", {"size": 7}),
        ("prior", {"width": 16}),
    ],
    ids=str,
)
def test_weights_of_another_shape_are_refused(copy: Path, name: str, changes: dict[str, Any]) -> None:
    change(copy / name / "config.json", **changes)
    with pytest.raises(UserError, match=f"{name}/{WEIGHTS}: the weights do not fit"):
        DiffusionAutoencoder.from_pretrained(copy)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("denoiser", {"channels": [20, 40]}),
        ("denoiser", {"channels": 3}),
        ("encoder", {"attribute_size": "3"}),
        ("encoder", {"colour": 1}),
        ("prior", {"width": None, "code_size": None}),
        ("statistics", {"size": -1}),
    ],
    ids=str,
)
def test_a_configuration_that_no_network_can_have_is_refused(
    copy: Path, name: str, changes: dict[str, Any]
) -> None:
    change(copy / name / "config.json", **changes)
    with pytest.raises(UserError, match=f"{name}/config.json: not a configuration of"):
        DiffusionAutoencoder.from_pretrained(copy)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_names": ["calm", "smile", "frown"]}, "classes of class names and encoder"),
        ({"image_size": 32}, r"sizes do not fit .*image_size 32 \(there 16\)"),
        ({"timesteps": 100}, "timesteps"),
        ({"colour": 1}, "colour"),
        ({"attribute_size": None}, "attribute_size"),
        ({"latent_mean": [0.0]}, "one number a channel"),
        ({"latent_std": ["x"]}, "not an autoencoder's specification"),
        ({"usual_error": [0.0]}, "usual_error: expected a mean and a standard deviation"),
        ({"sha256": {}}, "sha256"),
        ({"sha256": None}, "sha256"),
    ],
    ids=str,
)
def test_a_description_that_does_not_fit_is_refused(copy: Path, changes: dict[str, Any], words: str) -> None:
    change(copy / "autoencoder.json", **changes)
    with pytest.raises(UserError, match=words):
        DiffusionAutoencoder.from_pretrained(copy)


def change_weights(directory: Path, name: str, edit: Callable[[dict[str, Tensor]], None]) -> None:
    """Change weights as somebody would who also puts their hash right."""
    path = directory / name / WEIGHTS
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    hashes = json.loads((directory / "autoencoder.json").read_text())["sha256"]
    change(directory / "autoencoder.json", sha256={**hashes, f"{name}/{WEIGHTS}": file_sha256(path)})


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(copy: Path, value: float) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["project.bias"][2] = value

    change_weights(copy, "encoder", spoil)
    with pytest.raises(UserError, match=f"encoder/{WEIGHTS}: project.bias holds values that are not finite"):
        DiffusionAutoencoder.from_pretrained(copy)


def test_a_changed_weight_is_noticed(copy: Path) -> None:
    path = copy / "encoder" / WEIGHTS
    tensors = load_file(path)
    tensors["project.bias"] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"encoder/{WEIGHTS}: its sha256 is not the one in autoencoder.json"):
        DiffusionAutoencoder.from_pretrained(copy)


def test_weights_that_are_no_safetensors_are_refused_even_with_their_hash(copy: Path) -> None:
    path = copy / "guide" / WEIGHTS
    path.write_bytes(b"\x80\x04 a pickle")
    hashes = json.loads((copy / "autoencoder.json").read_text())["sha256"]
    change(copy / "autoencoder.json", sha256={**hashes, f"guide/{WEIGHTS}": file_sha256(path)})
    with pytest.raises(UserError, match="not a safetensors file"):
        DiffusionAutoencoder.from_pretrained(copy)


@pytest.mark.parametrize(
    "entry",
    [
        ["intruder", "Denoiser"],
        ["diffusers", "UNet2DModel"],
        ["diffinf.diffusion.networks", "Guide"],
        ["diffinf.diffusion.networks"],
        "diffinf.diffusion.networks",
        [None, None],
        3,
    ],
    ids=str,
)
def test_an_unknown_class_is_refused_and_no_module_is_imported(
    copy: Path, monkeypatch: pytest.MonkeyPatch, entry: Any
) -> None:
    proof = copy / "imported"
    for place in (copy / "intruder.py", copy / "denoiser" / "intruder.py"):
        place.write_text(f"import pathlib\npathlib.Path({str(proof)!r}).touch()\nclass Denoiser: pass\n")
    monkeypatch.syspath_prepend(copy)
    change(copy / "model_index.json", denoiser=entry)
    with pytest.raises(UserError, match=r"model_index\.json: denoiser: .*nothing was imported"):
        DiffusionAutoencoder.from_pretrained(copy)
    assert not proof.exists()


@pytest.mark.parametrize("entry", [["diffusers", "EulerDiscreteScheduler"], ["os", "system"], [None, None]])
def test_a_scheduler_without_an_inverse_is_refused(copy: Path, entry: Any) -> None:
    change(copy / "model_index.json", scheduler=entry)
    with pytest.raises(UserError, match=r"scheduler: .*DDIMScheduler"):
        DiffusionAutoencoder.from_pretrained(copy)


def test_a_scheduler_that_clips_is_refused(copy: Path) -> None:
    change(copy / "scheduler" / "scheduler_config.json", clip_sample=True)
    with pytest.raises(UserError, match="clip_sample"):
        DiffusionAutoencoder.from_pretrained(copy)
    assert DDIMScheduler.from_pretrained(copy / "scheduler").config.clip_sample


def test_a_component_too_many_is_refused(copy: Path) -> None:
    change(copy / "model_index.json", safety_checker=["diffusers", "UNet2DModel"])
    with pytest.raises(UserError, match=r"model_index\.json: safety_checker: no such component"):
        DiffusionAutoencoder.from_pretrained(copy)


def test_the_prior_may_be_missing(copy: Path) -> None:
    assert AUTOENCODER.optional == ("prior",)
    change(copy / "model_index.json", prior=[None, None])
    assert DiffusionAutoencoder.from_pretrained(copy).prior is None


def test_a_folder_from_before_the_usual_error_was_kept_is_read(copy: Path) -> None:
    fields = json.loads((copy / "autoencoder.json").read_text())
    del fields["usual_error"]
    (copy / "autoencoder.json").write_text(json.dumps(fields))
    assert DiffusionAutoencoder.from_pretrained(copy).usual_error == ()


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected an autoencoder written by train-autoencoder"):
        DiffusionAutoencoder.from_pretrained(tmp_path / "nowhere")
