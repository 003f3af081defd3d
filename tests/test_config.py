from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from diffinf.config import AutoencoderConfig, PresetName, RunConfig, apply_overrides, make_config
from diffinf.errors import UserError


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = make_config(
        "faces.parquet",
        preset_name="tiny",
        values={"data": {"root": tmp_path, "truth": ["votes"]}, "seed": 3},
        overrides=["influence.scope=[head, body]", "influence.share=0.25", "data.channels=1"],
    )
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert RunConfig.from_yaml(path) == config
    assert config.influence.scope == ["head", "body"] and config.data.root == tmp_path


def test_later_settings_win(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("preset: tiny\nseed: 1\nclassifier: {steps: 11, folds: 3}\n")
    config = make_config(
        "x", file=file, values={"classifier": {"folds": 5}}, overrides=["classifier.steps=7"]
    )
    assert (config.preset, config.seed, config.classifier.steps, config.classifier.folds) == ("tiny", 1, 7, 5)
    assert config.classifier.batch_size == make_config("x", preset_name="tiny").classifier.batch_size


@pytest.mark.parametrize("name", get_args(PresetName))
def test_presets_are_valid(name: str) -> None:
    config = make_config("x", preset_name=name)  # type: ignore[arg-type]
    assert config.preset == name
    # What the U-Net takes: groups of 16 channels, heads of 32, and levels that halve the latents' side evenly.
    widths = config.autoencoder.unet_channels
    assert all(width % 32 == 0 for width in widths)
    for size in {config.data.image_size or 48, 64}:
        assert size % (config.autoencoder.patch_size * 2 ** (len(widths) - 1)) == 0


def test_the_small_preset_is_the_cpu_s_autoencoder_spelled_out() -> None:
    assert make_config("x", preset_name="cpu-small").autoencoder == AutoencoderConfig()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("classifier.steps", "stage.field=value"),
        ("clasifier.steps=3", "clasifier: no such setting; there are"),
        ("classifier.stps=3", "classifier.stps: no such setting; there are name, steps"),
        ("classifier.steps=many", "classifier.steps"),
        ("classifier.steps=0", "classifier.steps"),
        ("classifier.steps=[", "not YAML"),
        ("classifier=3", "classifier"),
        ("compare.arms=[magic]", "compare.arms"),
        ("compare.arms=[baseline+gce]", "there is no arm 'baseline+gce'"),
        ("compare.arms=[gce, sam, gce]", "the arm 'gce' is there twice"),
        ("compare.knobs.magic=1", "'magic' has no knob; those that have one are gce, sce"),
        ("compare.knobs.gce=0", "gce (q) must be above 0 and at most 1, found 0"),
        ("compare.knobs.gce=1.5", "gce (q) must be above 0 and at most 1, found 1.5"),
        ("compare.knobs.sam=.nan", "sam (rho) must be above 0, found nan"),
        ("compare.knobs={elr: -1}", "elr (lambda) must be at least 0, found -1"),
        ("compare.knobs={down-weight: .inf}", "at least 0 and at most 1"),
        ("repair.identity=face", "repair.identity"),
        ("repair.distill_images=5", "repair.distill_images"),
    ],
)
def test_bad_override_names_the_field(override: str, message: str) -> None:
    with pytest.raises(UserError, match="--set") as caught:
        apply_overrides(make_config("x"), [override])
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["- 1\n", "a: [", "seed: x\n", "preset: huge\n", "unknown: 1\n"])
def test_bad_file_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"settings\.yaml"):
        make_config("x", file=file)
    with pytest.raises(UserError, match="no such settings file"):
        make_config("x", file=tmp_path / "missing.yaml")


def test_every_field_is_described() -> None:
    stages = [RunConfig, *(field.annotation for field in RunConfig.model_fields.values())]
    for stage in stages:
        for name, field in getattr(stage, "model_fields", {}).items():
            assert field.description, f"{stage}.{name}"
