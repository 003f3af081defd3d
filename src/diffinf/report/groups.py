"""Flags, repairs and accuracy by group, as summary.json has them, and warnings in words."""

from __future__ import annotations

from typing import Any

from diffinf.report.files import RunFiles
from diffinf.report.words import count, number, percent

_SHOWN = ("baseline", "diffinf")  # arms that the first table has: before and after
_MEASURES = {"flagged": "Flags fall", "edited": "Edits fall"}


def groups(files: RunFiles) -> dict[str, Any] | None:
    """Tables by column, and warnings; None where no group was named, or nothing was scored."""
    columns = files.summary.get("groups") or {}
    if not columns:
        return None
    tables = [
        {
            "name": name,
            "rows": [{"value": value, **figures} for value, figures in values.items()],
            "arms": _arms(values),
        }
        for name, values in columns.items()
        if values
    ]
    return {
        "tables": tables,
        "shown": _SHOWN,
        "repaired": any(row["edited"] is not None for table in tables for row in table["rows"]),
        "retrained": any(row["accuracy"] for table in tables for row in table["rows"]),
        "warnings": [warning(uneven) for uneven in files.summary.get("group_warnings") or []],
    }


def _arms(values: dict[str, Any]) -> list[str]:
    """The arms that were trained, where there are more than the two that the first table has."""
    arms = list(dict.fromkeys(arm for figures in values.values() for arm in figures["accuracy"]))
    return arms if set(arms) - set(_SHOWN) else []


def warning(uneven: dict[str, Any]) -> str:
    """One sentence about a group that flags or edits fall on far more often than on the others."""
    share, elsewhere = uneven["share"], uneven["share_elsewhere"]
    times = f"{number(share / elsewhere, 1)} times as often as on" if elsewhere else "and on none of"
    p = uneven["p_value"]
    return (
        f"{_MEASURES[uneven['measure']]} on {uneven['column']} = {uneven['group']} {times} the others: on "
        f"{percent(share)} of {count(uneven['n'])} training samples, elsewhere on {percent(elsewhere)} of "
        f"{count(uneven['n_elsewhere'])} (p {'< 0.001' if p < 0.001 else '= ' + number(p, 3)})."
    )
