"""The arms of a comparison by name, and the one main knob of each that has one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# Arms that say what is trained on, and arms that say how.
DATA_ARMS = (
    "baseline",
    "filter",
    "down-weight",
    "relabel",
    "resample",
    "roundtrip",
    "cleanlab",
    "diffinf",
    "diffinf-paper",
    "diffinf-edit-or-relabel",
    "diffinf-edit-or-drop",
    "diffinf-edit-or-resample",
    "clean",
    "true-flags",
    "oracle-edit",
)
ROBUST_ARMS = ("gce", "sce", "elr", "aldr-kl", "co-teaching", "sam")


class Knob(NamedTuple):
    """The main setting of a method.

    Attributes:
        symbol: what the literature calls it.
        default: used where `compare.knobs` says nothing.
        low: least value, itself allowed only where `closed`.
        high: largest value, allowed; infinity: none.
        closed: whether `low` is allowed.
    """

    symbol: str
    default: float
    low: float
    high: float = math.inf
    closed: bool = False


KNOBS: dict[str, Knob] = {
    "gce": Knob("q", 0.7, 0.0, 1.0),
    "sce": Knob("beta", 1.0, 0.0, closed=True),
    "elr": Knob("lambda", 3.0, 0.0, closed=True),
    "aldr-kl": Knob("lambda0", 10.0, 0.0),
    "co-teaching": Knob("forget rate", 0.2, 0.0, 0.95, closed=True),
    "sam": Knob("rho", 0.05, 0.0),
    "down-weight": Knob("weight of a flagged sample", 0.5, 0.0, 1.0, closed=True),
}


def split_arm(name: str) -> tuple[str, str | None]:
    """Return what the arm `name` trains on and its robust method, if any: "diffinf+gce" is ("diffinf", "gce").

    Raises:
        ValueError: there is no such arm.
    """
    if name in DATA_ARMS:
        return name, None
    if name in ROBUST_ARMS:
        return "baseline", name
    data, plus, method = name.partition("+")
    if plus and data in DATA_ARMS and data != "baseline" and method in ROBUST_ARMS:
        return data, method
    raise ValueError(
        f"there is no arm {name!r}; expected some of {', '.join((*DATA_ARMS, *ROBUST_ARMS))}, "
        "or two of them as in diffinf+gce: what to train on, and one of "
        f"{', '.join(ROBUST_ARMS)}"
    )


def check_arms(names: Sequence[str]) -> None:
    """Raise ValueError where a name is no arm, or is there twice."""
    for position, name in enumerate(names):
        split_arm(name)
        if name in names[:position]:
            raise ValueError(f"the arm {name!r} is there twice; name each once")


def check_knobs(knobs: Mapping[str, float]) -> None:
    """Raise ValueError where a name has no knob, or a value is out of its range."""
    for name, value in knobs.items():
        knob = KNOBS.get(name)
        if knob is None:
            raise ValueError(f"{name!r} has no knob; those that have one are {', '.join(KNOBS)}")
        above = value >= knob.low if knob.closed else value > knob.low
        if not (above and value <= knob.high and math.isfinite(value)):
            least = f"{'at least' if knob.closed else 'above'} {knob.low:g}"
            most = f" and at most {knob.high:g}" if math.isfinite(knob.high) else ""
            raise ValueError(f"{name} ({knob.symbol}) must be {least}{most}, found {value:g}")
