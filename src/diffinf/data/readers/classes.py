"""Which class a row belongs to: missing labels, numbers cut into bins, spellings of one class."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from diffinf.data.readers.base import Records
from diffinf.data.readers.labels import bin_names, bin_of, spelling_variants
from diffinf.errors import UserError

if TYPE_CHECKING:
    from diffinf.config import DataConfig

_NAMED = 5  # ids, or families of spellings, named in a message


def name_classes(records: Records, config: DataConfig) -> list[str]:
    """Turn what the source says into class names, in place; rows without a class become faults.

    With `config.bins` labels are numbers, and the classes the bins that occur, in order; else `config.order` may name
    them from low to high. With `config.normalise_labels` the spellings of a class are merged into the most frequent
    one.

    Returns:
        Notes on what was decided, one sentence each.

    Raises:
        UserError: a label that is no number where bins are given; a class that is missing in the order; no row has a
            label.
    """
    for row, label in enumerate(records.labels):
        if label is None:
            records.faults.setdefault(row, "no label (empty, null or NaN)")
    if config.bins:
        _cut(records, tuple(config.bins))
    notes = _spellings(records, merge=config.normalise_labels)
    if config.order:
        _put_in_order(records, config.order)
    if len(records.faults) == len(records.ids):
        first = min(records.faults)
        raise UserError(
            f"{records.source.name}: not one of {len(records.ids)} rows has a label; the first,"
            f" {records.ids[first]}: {records.faults[first]}"
        )
    if records.faults:
        reasons: dict[str, list[int]] = {}
        for row, reason in sorted(records.faults.items()):
            reasons.setdefault(reason, []).append(row)
        for reason, rows in sorted(reasons.items(), key=lambda item: -len(item[1]))[:_NAMED]:
            some = [records.ids[row] for row in rows[:_NAMED]]
            more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
            notes.append(f"{len(rows)} rows left out, {', '.join(some)}{more}: {reason}")
        if len(reasons) > _NAMED:
            rest = len(records.faults) - sum(sorted(map(len, reasons.values()))[-_NAMED:])
            notes.append(f"{rest} more rows left out for {len(reasons) - _NAMED} other reasons")
    return notes


def _cut(records: Records, edges: tuple[float, ...]) -> None:
    names = bin_names(edges)
    for row, label in enumerate(records.labels):
        if label is None or row in records.faults:
            continue
        try:
            number = bin_of(label, edges)
        except ValueError as error:
            raise UserError(
                f"{records.source.name}: {records.places[row]}: label {label!r} is no number; data.bins cuts"
                " numbers: leave it out, or name another column with --label"
            ) from error
        if number < 0:
            records.faults[row] = f"{label} lies below the first of data.bins, {names[0]}"
        records.labels[row] = None if number < 0 else names[number]
    if records.ballots is not None:
        for annotator, said in records.ballots.choices.items():
            records.ballots.choices[annotator] = [_bin(choice, edges, annotator, records) for choice in said]
    present = set(records.labels)
    records.class_names = tuple(name for name in names if name in present)
    records.ordered = True
    records.source = replace(records.source, coding=replace(records.source.coding, bins=edges))


def _bin(choice: str | None, edges: tuple[float, ...], annotator: str, records: Records) -> str | None:
    """The class of an annotator's number; below the first edge it is that number, which is no class."""
    try:
        number = -1 if choice is None else bin_of(choice, edges)
    except ValueError as error:
        raise UserError(
            f"{records.source.name}: {annotator} is {choice!r} somewhere, no number; data.bins cuts numbers: leave it "
            "out, or name other annotators"
        ) from error
    return choice if number < 0 else bin_names(edges)[number]


def _put_in_order(records: Records, order: list[str]) -> None:
    """Take the user's order of the classes, which must name all that occur."""
    present = {label for row, label in enumerate(records.labels) if label and row not in records.faults}
    unnamed = sorted(present - set(order))
    if unnamed:
        raise UserError(
            f"{records.source.name}: data.order does not name the class {unnamed[0]!r}; expected all from low to high: "
            f"{', '.join(sorted(present))}"
        )
    records.class_names = tuple(name for name in order if name in present)
    records.ordered = True


def _spellings(records: Records, *, merge: bool) -> list[str]:
    """Report classes of several spellings, and merge them if asked to."""
    families = spelling_variants(records.labels)
    if not families:
        return []
    told = [
        " = ".join(f"{spelling!r} ({count})" for spelling, count in family.items())
        for family in families[:_NAMED]
    ]
    listed = "; ".join(told) + (f" and {len(families) - _NAMED} more" if len(families) > _NAMED else "")
    if not merge:
        return [f"labels that look like one class: {listed}; data.normalise_labels=true takes them for one"]
    # The chosen spelling must not itself end in a blank: it names a class, perhaps a folder.
    chosen = {
        spelling: next((name for name in family if name == name.strip()), next(iter(family)))
        for family in families
        for spelling in family
    }
    records.labels = [None if label is None else chosen.get(label, label) for label in records.labels]
    if records.ballots is not None:
        records.ballots.choices = {
            annotator: [None if choice is None else chosen.get(choice, choice) for choice in said]
            for annotator, said in records.ballots.choices.items()
        }
    if records.class_names is not None:
        records.class_names = tuple(dict.fromkeys(chosen.get(name, name) for name in records.class_names))
    return [f"spellings of one class taken together: {listed}"]
