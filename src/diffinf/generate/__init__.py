"""Generation under positive and negative context; the public names are imported when they are first used.

- `negative_guidance`, `Schedule`, `parse_schedule`: the rule and how strong it is over the noise levels
- `choose_negative_contexts`: which context each one is led away from
- `random_contexts`, `identity_contexts`, `perturbed_contexts`: where contexts come from
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffinf.generate.contexts import (
        NegativeChoice,
        choose_negative_contexts,
        identity_contexts,
        perturbed_contexts,
        random_contexts,
        unit_contexts,
    )
    from diffinf.generate.negative import Schedule, negative_guidance, parse_schedule

__all__ = [
    "NegativeChoice",
    "Schedule",
    "choose_negative_contexts",
    "identity_contexts",
    "negative_guidance",
    "parse_schedule",
    "perturbed_contexts",
    "random_contexts",
    "unit_contexts",
]

_HOMES = {
    "NegativeChoice": "contexts",
    "Schedule": "negative",
    "choose_negative_contexts": "contexts",
    "identity_contexts": "contexts",
    "negative_guidance": "negative",
    "parse_schedule": "negative",
    "perturbed_contexts": "contexts",
    "random_contexts": "contexts",
    "unit_contexts": "contexts",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'diffinf.generate' has no attribute {name!r}")
    value = getattr(import_module(f"diffinf.generate.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
