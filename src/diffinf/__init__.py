"""diffinf: find the samples whose label and face disagree, and edit the image instead of dropping it.

The public names are imported when they are first used, so that `import diffinf` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffinf.errors import UserError

if TYPE_CHECKING:
    from diffinf.config import RunConfig
    from diffinf.data.dataset import FaceDataset, open_dataset
    from diffinf.data.rendered.render import render_faces
    from diffinf.data.rendered.write import render_dataset
    from diffinf.diffusion.autoencoder import DiffusionAutoencoder
    from diffinf.influence.flag import flag
    from diffinf.influence.ghost import squared_gradient_norms
    from diffinf.influence.self_influence import self_influence
    from diffinf.pipeline import repair_dataset
    from diffinf.run import Run
    from diffinf.stages.editing import edit_images
    from diffinf.stages.restoring import restore_originals

__version__ = "0.1.0"

__all__ = [
    "DiffusionAutoencoder",
    "FaceDataset",
    "Run",
    "RunConfig",
    "UserError",
    "__version__",
    "edit_images",
    "flag",
    "open_dataset",
    "render_dataset",
    "render_faces",
    "repair_dataset",
    "restore_originals",
    "self_influence",
    "squared_gradient_norms",
]

_HOMES = {
    "DiffusionAutoencoder": "diffusion.autoencoder",
    "FaceDataset": "data.dataset",
    "Run": "run",
    "RunConfig": "config",
    "edit_images": "stages.editing",
    "flag": "influence.flag",
    "open_dataset": "data.dataset",
    "render_dataset": "data.rendered.write",
    "render_faces": "data.rendered.render",
    "repair_dataset": "pipeline",
    "restore_originals": "stages.restoring",
    "self_influence": "influence.self_influence",
    "squared_gradient_norms": "influence.ghost",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'diffinf' has no attribute {name!r}")
    value = getattr(import_module(f"diffinf.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
