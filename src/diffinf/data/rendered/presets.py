"""Frozen recipes of rendered datasets, so that figures made on them can be compared."""

from __future__ import annotations

from dataclasses import dataclass

from diffinf.data.rendered.annotate import Noise
from diffinf.data.rendered.tasks import Task
from diffinf.errors import UserError


@dataclass(frozen=True)
class RenderPlan:
    """Everything but the seed that determines a rendered dataset; counts are (train, validation, test)."""

    task: Task
    size: int  # pixels
    pictures: tuple[int, int, int]
    identities: tuple[int, int, int]
    noise: Noise
    rate: float  # share of wrong labels in train and validation together
    similarity: float = 0.0  # of the identities, 0..1
    nuisance: float = 1.0  # strength of pose, light, framing and sensor noise


PRESETS: dict[str, RenderPlan] = {
    "bench-1": RenderPlan(
        task="expression",
        size=64,
        pictures=(4000, 600, 2000),
        identities=(500, 75, 250),
        noise="confounded",
        rate=0.27,
    ),
}


def preset_plan(name: str) -> RenderPlan:
    """Return the plan of a preset; raises UserError for a name that is none."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; choose one of: {', '.join(PRESETS)}")
    return PRESETS[name]
