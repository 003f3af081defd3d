"""The folder of a diffusion model: written whole, and read without trusting whoever wrote it.

model_index.json                          which class each component is, as diffusers writes it
COMPONENT/config.json                     its constructor's arguments
COMPONENT/diffusion_pytorch_model.safetensors
autoencoder.json, or as the layout says   format version, sizes, class names, statistics, hashes; written last
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import __version__ as diffusers_version
from torch import Tensor

from diffinf.diffusion.component import Component
from diffinf.diffusion.first_stage import KLStage, PatchComponents, PixelStage
from diffinf.diffusion.invert import INVERSES
from diffinf.diffusion.networks import CodeStatistics, Denoiser, Guide, SemanticEncoder
from diffinf.diffusion.prior import LatentPrior
from diffinf.errors import UserError
from diffinf.files import file_sha256, load_tensors, save_tensors, write_json, write_text

FORMAT_VERSION = 2
DESCRIPTION, INDEX, CONFIG = "autoencoder.json", "model_index.json", "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULER, SCHEDULER_CONFIG = "scheduler", "scheduler_config.json"

_AGAIN = "copy the folder again, or train again"


@dataclass(frozen=True)
class Layout:
    """What a folder of one kind of model holds.

    Attributes:
        noun: what it is called in messages, with its article.
        command: the command that writes it.
        pipeline: name of the pipeline's class.
        description: name of the file that is written last.
        modules: the classes that each component may be of. A folder only ever chooses among these: no module that it
            names is imported.
        schedulers: likewise, of the component scheduler.
        optional: components that may be missing.
        version: of the format.
    """

    noun: str
    command: str
    pipeline: str
    description: str
    modules: Mapping[str, tuple[type[Component], ...]]
    schedulers: tuple[type[Any], ...]
    optional: tuple[str, ...] = ()
    version: int = 1


AUTOENCODER = Layout(
    noun="an autoencoder",
    command="train-autoencoder",
    pipeline="DiffusionAutoencoder",
    description=DESCRIPTION,
    modules={
        "first_stage": (PatchComponents, KLStage, PixelStage),
        "encoder": (SemanticEncoder,),
        "denoiser": (Denoiser,),
        "guide": (Guide,),
        "statistics": (CodeStatistics,),
        "prior": (LatentPrior,),
    },
    schedulers=tuple(INVERSES),
    optional=("prior",),
    version=FORMAT_VERSION,
)


def _named(kind: type[Any]) -> list[str]:
    """Return library and class as diffusers names them in model_index.json."""
    module = kind.__module__
    return ["diffusers" if module.startswith("diffusers.") else module, kind.__name__]


def write_folder(
    directory: Path,
    components: Mapping[str, Any],
    description: Mapping[str, Any],
    dtype: torch.dtype,
    layout: Layout = AUTOENCODER,
) -> None:
    """Write the components (None where there is none) and `description`.

    The description's file goes first and comes last: a folder that a killed process left has none.
    """
    (directory / layout.description).unlink(missing_ok=True)
    hashes: dict[str, str] = {}
    index: dict[str, Any] = {"_class_name": layout.pipeline, "_diffusers_version": diffusers_version}
    for name, component in components.items():
        index[name] = [None, None] if component is None else _named(type(component))
        folder = directory / name
        if name == SCHEDULER:
            # As diffusers writes it: among the values may be an infinity.
            write_text(folder / SCHEDULER_CONFIG, component.to_json_string())
        elif component is not None:
            write_text(folder / CONFIG, component.to_json_string())
            state: dict[str, Tensor] = component.state_dict()
            tensors = {key: x.to(dtype) if x.is_floating_point() else x for key, x in state.items()}
            save_tensors(folder / WEIGHTS, tensors)
            hashes[f"{name}/{WEIGHTS}"] = file_sha256(folder / WEIGHTS)
    write_json(directory / INDEX, index)
    fields = {"format_version": layout.version, **description, "sha256": hashes}
    write_json(directory / layout.description, fields)


def read_folder(directory: Path, layout: Layout = AUTOENCODER) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the components (None where there is none) and the description without version and hashes.

    Raises:
        UserError: a file is missing, damaged, changed, of another format version, or names an unknown class.
    """
    description = _read_description(directory / layout.description, layout)
    hashes = description.pop("sha256", None)
    index = _read_fields(directory / INDEX, layout)
    components: dict[str, Any] = {}
    for name in (*layout.modules, SCHEDULER):
        kind = _kind(directory / INDEX, name, index.pop(name, [None, None]), layout)
        if name == SCHEDULER:
            components[name] = _read_scheduler(directory / name / SCHEDULER_CONFIG, kind, layout)
        else:
            components[name] = None if kind is None else _read_module(directory, name, kind, hashes, layout)
    if unknown := [name for name in index if not name.startswith("_")]:
        raise UserError(f"{directory / INDEX}: {', '.join(unknown)}: no such component of {layout.noun}")
    return components, description


def _read_fields(path: Path, layout: Layout) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: not there; expected {layout.noun} written by {layout.command}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); {_AGAIN}") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path}: expected fields by name, found {type(fields).__name__}; {_AGAIN}")
    return fields


def _read_description(path: Path, layout: Layout) -> dict[str, Any]:
    fields = _read_fields(path, layout)
    version = fields.pop("format_version", None)
    if version != layout.version:
        raise UserError(
            f"{path}: format version {version}, this diffinf reads {layout.version}; train or convert it again"
        )
    return fields


def _kind(path: Path, name: str, entry: Any, layout: Layout) -> type[Any] | None:
    """Return the class that model_index.json names for a component, if it is a known one."""
    known = layout.schedulers if name == SCHEDULER else layout.modules[name]
    for kind in known:
        if entry == _named(kind):
            return kind
    if name in layout.optional and entry in ([None, None], None):
        return None
    choices = ", ".join(".".join(_named(kind)) for kind in known)
    raise UserError(f"{path}: {name}: found {entry!r}, expected one of {choices}; nothing was imported")


def _read_scheduler(path: Path, kind: type[Any] | None, layout: Layout) -> Any:
    assert kind is not None
    fields = _read_fields(path, layout)
    try:
        return kind.from_config(fields)
    except (ValueError, TypeError, KeyError, RuntimeError, NotImplementedError, ImportError) as error:
        raise UserError(f"{path}: not a configuration of {kind.__name__} ({error}); {_AGAIN}") from error


def _read_module(directory: Path, name: str, kind: type[Any], hashes: Any, layout: Layout) -> Component:
    fields = _read_fields(directory / name / CONFIG, layout)
    try:
        module: Component = kind.from_fields(fields)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{directory / name / CONFIG}: not a configuration of {kind.__name__} ({error}); {_AGAIN}"
        ) from error
    path = directory / name / WEIGHTS
    if not path.is_file():
        raise UserError(f"{path}: not there; {_AGAIN}")
    expected = hashes.get(f"{name}/{WEIGHTS}") if isinstance(hashes, dict) else None
    if file_sha256(path) != expected:
        raise UserError(
            f"{path}: its sha256 is not the one in {layout.description}: truncated, changed or of another training; "
            f"{_AGAIN}"
        )
    tensors = {key: x.float() if x.is_floating_point() else x for key, x in load_tensors(path).items()}
    for key, values in tensors.items():
        if not values.isfinite().all():
            raise UserError(f"{path}: {key} holds values that are not finite; {_AGAIN}")
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise UserError(f"{path}: the weights do not fit {name}/{CONFIG}: {first}; {_AGAIN}") from error
    return module
