"""Settings: one model a stage, every field described, unknown names refused; YAML in and out."""

from diffinf.config.arms import DATA_ARMS, KNOBS, ROBUST_ARMS, Knob, split_arm
from diffinf.config.data import DataConfig, DataFormat
from diffinf.config.presets import (
    PresetName,
    check_preset,
    preset,
)
from diffinf.config.run import (
    RunConfig,
    apply_overrides,
    build,
    make_config,
    merge,
    parse_override,
    read_yaml,
)
from diffinf.config.stages import (
    AutoencoderConfig,
    ClassifierConfig,
    CompareConfig,
    EditorName,
    GeneratorConfig,
    Identity,
    InfluenceConfig,
    Policy,
    RepairConfig,
    StageConfig,
)

__all__ = [
    "DATA_ARMS",
    "KNOBS",
    "ROBUST_ARMS",
    "AutoencoderConfig",
    "ClassifierConfig",
    "CompareConfig",
    "DataConfig",
    "DataFormat",
    "EditorName",
    "GeneratorConfig",
    "Identity",
    "InfluenceConfig",
    "Knob",
    "Policy",
    "PresetName",
    "RepairConfig",
    "RunConfig",
    "StageConfig",
    "apply_overrides",
    "build",
    "check_preset",
    "make_config",
    "merge",
    "parse_override",
    "preset",
    "read_yaml",
    "split_arm",
]
