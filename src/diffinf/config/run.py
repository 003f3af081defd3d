"""All settings of a run: put together from presets, YAML and overrides; YAML out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError

from diffinf.config.data import DataConfig
from diffinf.config.presets import PresetName, check_preset, preset
from diffinf.config.stages import (
    AutoencoderConfig,
    ClassifierConfig,
    CompareConfig,
    GeneratorConfig,
    InfluenceConfig,
    RepairConfig,
    StageConfig,
)
from diffinf.errors import UserError


class RunConfig(StageConfig):
    """All settings of a run."""

    dataset: str = Field(description="folder of class folders, CSV/TSV/Parquet table")
    preset: PresetName = Field("cpu", description="the defaults that these settings started from")
    seed: int = Field(0, ge=0, description="every random draw is a function of it")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    data: DataConfig = Field(default_factory=DataConfig, description="reading")
    classifier: ClassifierConfig = Field(default_factory=ClassifierConfig, description="classifier")
    influence: InfluenceConfig = Field(default_factory=InfluenceConfig, description="scores and flags")
    autoencoder: AutoencoderConfig = Field(
        default_factory=AutoencoderConfig, description="diffusion autoencoder"
    )
    repair: RepairConfig = Field(default_factory=RepairConfig, description="edit and gate")
    compare: CompareConfig = Field(default_factory=CompareConfig, description="arms")
    generator: GeneratorConfig = Field(default_factory=GeneratorConfig, description="conditional generator")

    def to_yaml(self) -> str:
        """Return all settings as YAML, in the order of the stages."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    @classmethod
    def from_yaml(cls, path: Path) -> RunConfig:
        """Read settings; fields that are not there take their default. UserError names file and field."""
        return build(cls, read_yaml(path), str(path))


def build(model: type[RunConfig], values: Any, source: str) -> RunConfig:
    """Validate nested `values`; UserError names `source` and each field that is wrong."""
    if not isinstance(values, dict):
        raise UserError(f"{source}: expected settings by name, found {type(values).__name__}")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            field = ".".join(str(part) for part in item["loc"])
            if item["type"] == "extra_forbidden":
                lines.append(f"{field}: no such setting{_nearest(model, item['loc'])}")
            else:
                lines.append(f"{field}: {item['msg']}, found {item['input']!r}")
        raise UserError(f"{source}: " + "; ".join(lines)) from error


def _nearest(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """Say which settings there are where one was not found."""
    fields = model.model_fields
    for part in location[:-1]:
        inner = fields[str(part)].annotation if str(part) in fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return ""
        fields = inner.model_fields
    return f"; there are {', '.join(fields)}"


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings; UserError when it is missing or not a mapping."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such settings file") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not readable as YAML ({error})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected settings by name, found {type(values).__name__}")
    return values


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over` put over it, stage by stage."""
    result = dict(base)
    for name, value in over.items():
        below = result.get(name)
        result[name] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def parse_override(text: str) -> dict[str, Any]:
    """Turn "stage.field=value" (value in YAML: 3, 0.1, true, null, [a, b]) into nested settings."""
    name, equals, value = text.partition("=")
    path = [part.strip() for part in name.split(".")]
    if not equals or not all(path):
        raise UserError(f"--set {text}: expected stage.field=value, such as classifier.steps=2000")
    try:
        nested: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {text}: the value is not YAML ({error})") from error
    for part in reversed(path):
        nested = {part: nested}
    return dict(nested)


def apply_overrides(config: RunConfig, overrides: list[str]) -> RunConfig:
    """Return a copy of `config` with each "stage.field=value" applied in turn."""
    values = config.model_dump(mode="json")
    for text in overrides:
        values = merge(values, parse_override(text))
    return build(type(config), values, "--set") if overrides else config


def make_config(
    dataset: str,
    *,
    preset_name: PresetName = "cpu",
    file: Path | None = None,
    values: dict[str, Any] | None = None,
    overrides: list[str] | None = None,
) -> RunConfig:
    """Put settings together: defaults, preset, YAML file, `values`, "stage.field=value"; the later wins."""
    from_file = read_yaml(file) if file else {}
    chosen = check_preset(from_file.get("preset", preset_name), f"{file}: preset")
    nested = merge(merge(preset(chosen), from_file), values or {})
    nested.update(dataset=dataset, preset=chosen)
    return apply_overrides(build(RunConfig, nested, str(file) if file else "settings"), overrides or [])
