from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffinf.classify.model import (
    ClassifierSpec,
    create_classifier,
    features_and_logits,
    load_classifier,
    load_user_classifier,
    predict,
    save_classifier,
    to_input,
)
from diffinf.errors import UserError

GREY = ClassifierSpec("small_cnn", 3, 1, 48, ("a", "b", "c"))
SPECS = [GREY, ClassifierSpec("small_cnn", 5, 3, 64), ClassifierSpec("resnet10t", 4, 3, 32)]


def pictures(spec: ClassifierSpec, n: int = 5) -> torch.Tensor:
    shape = (n, spec.in_channels, spec.image_size, spec.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.name}-{spec.image_size}")
def test_features_logits_and_the_way_to_disk(spec: ClassifierSpec, tmp_path: Path) -> None:
    model = create_classifier(spec, seed=3)
    features, logits = predict(model, pictures(spec), device="cpu", batch_size=2)
    assert model.training  # as it was
    assert logits.shape == (5, spec.num_classes) and features.shape[0] == 5 and features.ndim == 2
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(to_input(pictures(spec), "cpu")), logits)
    save_classifier(tmp_path, model, spec)
    loaded, found = load_classifier(tmp_path)
    assert found == spec and not loaded.training
    assert torch.equal(predict(loaded, pictures(spec), device="cpu", batch_size=2)[1], logits)


def test_features_are_the_input_of_the_last_layer() -> None:
    model = create_classifier(GREY, seed=0).eval()
    with torch.no_grad():
        features, logits = features_and_logits(model, to_input(pictures(GREY), "cpu"))
        torch.testing.assert_close(model.get_submodule("head")(features), logits)


def test_input_range() -> None:
    ends = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
    assert to_input(ends, "cpu").flatten().tolist() == [-1.0, 1.0]


def test_with_flipping_a_mirror_image_predicts_the_same() -> None:
    model, images = create_classifier(GREY, seed=0), pictures(GREY)
    logits = predict(model, images, device="cpu", tta_flip=True)[1]
    torch.testing.assert_close(logits, predict(model, images.flip(3), device="cpu", tta_flip=True)[1])


def test_initialisation_is_a_function_of_the_seed_and_leaves_global_state_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (create_classifier(GREY, seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_small_cnn_stays_small() -> None:
    count = sum(p.numel() for p in create_classifier(SPECS[1], seed=0).parameters())
    assert 100_000 < count < 300_000


def test_unknown_name_says_what_there_is() -> None:
    with pytest.raises(UserError, match=r"no model 'resnet18x'.*, such as resnet18"):
        create_classifier(dataclasses.replace(GREY, name="resnet18x"), seed=0)


def test_a_model_that_takes_no_such_images() -> None:
    with pytest.raises(UserError, match="image_size"):
        create_classifier(dataclasses.replace(GREY, name="vit_tiny_patch16_224", image_size=8), seed=0)


@pytest.mark.parametrize("damage", ["missing", "version", "field", "no weights", "not safetensors"])
def test_damaged_folders_are_named(tmp_path: Path, damage: str) -> None:
    save_classifier(tmp_path, create_classifier(GREY, seed=0), GREY)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    values = json.loads(config.read_text())
    if damage == "missing":
        config.unlink()
    elif damage == "version":
        config.write_text(json.dumps({**values, "format_version": 99}))
    elif damage == "field":
        config.write_text(json.dumps({**values, "extra": 1}))
    elif damage == "no weights":
        weights.unlink()
    else:
        weights.write_bytes(b"pickle, perhaps")
    with pytest.raises(UserError, match=tmp_path.name):
        load_classifier(tmp_path)


def test_a_users_state_dict(tmp_path: Path) -> None:
    model, path = create_classifier(GREY, seed=5), tmp_path / "mine.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    mine = load_user_classifier(path, GREY)
    expected = predict(model, pictures(GREY), device="cpu")[1]
    assert torch.equal(predict(mine, pictures(GREY), device="cpu")[1], expected)
    with pytest.raises(UserError, match=r"head.weight has shape \(3, 96\), the model \(4, 96\)"):
        load_user_classifier(path, dataclasses.replace(GREY, num_classes=4))
    with pytest.raises(UserError, match="missing"):
        load_user_classifier(path, dataclasses.replace(GREY, name="resnet10t"))
    with pytest.raises(UserError, match="no such classifier"):
        load_user_classifier(tmp_path / "other.safetensors", GREY)


def test_a_users_folder_must_have_the_same_classes(tmp_path: Path) -> None:
    save_classifier(tmp_path, create_classifier(GREY, seed=0), GREY)
    assert not load_user_classifier(tmp_path, GREY).training
    with pytest.raises(UserError, match="class_names"):
        load_user_classifier(tmp_path, dataclasses.replace(GREY, class_names=("a", "c", "b")))
