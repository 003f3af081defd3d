"""Which sample belongs to which split, and which are kept under a limit: functions of ids, not of order."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction

from diffinf.data.readers.base import SPLITS, Records, split_name
from diffinf.errors import UserError

_TEST, _VALIDATION = 0.2, 0.1  # of all samples, or of `train` where a dataset lacks the split


def _position(key: str) -> float:
    """A number in [0, 1) that depends on nothing but `key`."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64


def assign_splits(records: Records, rows: Sequence[int] | None = None) -> tuple[list[str], list[str]]:
    """The split of each row, and notes on what was decided here.

    Only `rows` (default: all) count when it is asked which splits there are.

    Without splits: 70 % train, 10 % validation, 20 % test, by sha256 of the identity, else of the id. A split
    that the dataset lacks is taken out of train the same way (validation 10 %, test 20 % of it). A row keeps
    its split whatever happens to other rows.

    Raises:
        UserError: a split's name is unknown or missing, or a split would be empty.
    """
    identities = records.identities or [None] * len(records.ids)
    keys = [person or key for person, key in zip(identities, records.split_keys, strict=True)]
    if records.splits is None:
        splits = ["train"] * len(keys)
        notes = ["no splits given: 70 % train, 10 % validation, 20 % test by a hash of the id"]
    else:
        splits = [_known_split(text, records.places[row]) for row, text in enumerate(records.splits)]
        notes = []
    counted = range(len(splits)) if rows is None else rows
    missing = [split for split in SPLITS if all(splits[row] != split for row in counted)]
    if "train" in missing:
        raise UserError(f"{records.source.name}: no row is in the train split; expected some: see --split")
    if missing:
        splits = [_carve(split, key, missing) for split, key in zip(splits, keys, strict=True)]
        if records.splits is not None:
            notes = [f"no {split} split given: taken out of train by a hash of the id" for split in missing]
    for split in SPLITS:
        if all(splits[row] != split for row in counted):
            raise UserError(
                f"{records.source.name}: {len(counted)} samples are too few to take a {split} split from;"
                " add samples, or give splits of your own (--split, or folders train, validation, test)"
            )
    return splits, notes


def given_splits(records: Records) -> tuple[list[str], list[str]]:
    """The split of each row as the source has it, "test" for all where it has none; and no notes.

    Raises:
        UserError: a split's name is unknown or missing.
    """
    if records.splits is None:
        return ["test"] * len(records.ids), []
    return [_known_split(text, records.places[row]) for row, text in enumerate(records.splits)], []


def _known_split(text: str | None, place: str) -> str:
    split = None if text is None else split_name(text)
    if split is None:
        raise UserError(
            f"{place}: split is {text!r}; expected train, validation or test (or Training, val, dev ...)"
        )
    return split


def _carve(split: str, key: str, missing: Sequence[str]) -> str:
    if split != "train":
        return split
    position = _position(key)
    if position < _TEST:
        return "test" if "test" in missing else "train"
    inside = position < _TEST + _VALIDATION and "validation" in missing
    return "validation" if inside else "train"


def limited(
    ids: Sequence[str], splits: Sequence[str], labels: Sequence[str], limit: int, seed: int
) -> list[int]:
    """Rows kept under a limit: shares by (split, class) as in the whole, by largest remainder.

    Within a cell the smallest sha256 of "seed:id" are kept, so a larger limit keeps those of a smaller one
    as far as quotas allow.

    Returns:
        Rows, ascending, `limit` of them or all.
    """
    if limit >= len(ids):
        return list(range(len(ids)))
    cells: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, cell in enumerate(zip(splits, labels, strict=True)):
        cells[cell].append(row)
    exact = {cell: Fraction(limit * len(rows), len(ids)) for cell, rows in cells.items()}
    quotas = {cell: int(share) for cell, share in exact.items()}
    by_remainder = sorted(exact, key=lambda cell: (quotas[cell] - exact[cell], cell))
    for cell in by_remainder[: limit - sum(quotas.values())]:
        quotas[cell] += 1
    kept = []
    for cell, rows in cells.items():
        rows.sort(key=lambda row: hashlib.sha256(f"{seed}:{ids[row]}".encode()).digest())
        kept.extend(rows[: quotas[cell]])
    return sorted(kept)
