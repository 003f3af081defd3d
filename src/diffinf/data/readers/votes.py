"""What several annotators said of an image: columns that the user names, counted by class."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from diffinf.data.readers.columns import ColumnFiles, as_text
from diffinf.data.votes import Ballots, Votes
from diffinf.errors import UserError

if TYPE_CHECKING:
    from diffinf.config import DataConfig
    from diffinf.data.readers.base import Records


def read_ballots(
    name: str, table: ColumnFiles, config: DataConfig, codes: Mapping[str, str]
) -> Ballots | None:
    """Read the columns `config.votes` or `config.annotators`; None where there are none.

    Args:
        name: of the table, for messages.
        table: has all of these columns.
        config: names of columns.
        codes: what annotators write -> class name; empty: they write names.

    Raises:
        UserError: both are named, or a column that holds the truth.
    """
    named = [*config.votes, *config.annotators]
    if not named:
        return None
    if config.votes and config.annotators:
        raise UserError(f"{name}: data.votes and data.annotators are both set; name one of them")
    secret = next((column for column in named if column.startswith("truth") or column in config.truth), None)
    if secret is not None:
        raise UserError(f"{name}: column {secret!r} holds the truth, which no training may read; name others")
    data = table.read(list(dict.fromkeys(named)))
    if config.annotators:
        choices = {}
        for column in config.annotators:
            title = f"{name}: column {column!r}"
            texts = as_text(
                data.column(column), table.class_names(column), title, fractions=bool(config.bins)
            )
            choices[column] = [None if text is None else codes.get(text.strip(), text) for text in texts]
        return Ballots(choices=choices)
    if len(config.votes) == 1:
        return Ballots(counts=data.column(config.votes[0]).to_pylist())
    columns = [data.column(column).to_pylist() for column in config.votes]
    return Ballots(counts=[list(cells) for cells in zip(*columns, strict=True)], of=tuple(config.votes))


def tally(records: Records, rows: Sequence[int], names: Sequence[str]) -> Votes | None:
    """Count the votes of rows by class; None where no votes were asked for.

    Args:
        records: with classes named.
        rows: N positions.
        names: of the K classes, in order.

    Raises:
        UserError: a row with numbers of the wrong length, negative or not finite ones, or something that is no class.
    """
    ballots = records.ballots
    if ballots is None:
        return None
    counts = np.zeros((len(rows), len(names)))
    others = np.array([ballots.others[row] for row in rows] if ballots.others else np.zeros(len(rows)))
    if ballots.choices:
        _count_choices(records, ballots, rows, names, counts, others)
        return Votes(counts, others)
    order = list(range(len(names)))
    if ballots.of:
        if sorted(ballots.of) != sorted(names):
            raise UserError(
                f"{records.source.name}: data.votes names the columns {', '.join(ballots.of)}; expected one for each "
                f"class, called as it is: {', '.join(names)}"
            )
        order = [ballots.of.index(name) for name in names]
    for number, row in enumerate(rows):
        if (found := _numbers(ballots.counts[row], len(names), names, records.places[row])) is not None:
            counts[number] = [found[at] for at in order]
    return Votes(counts, others)


def _count_choices(
    records: Records, ballots: Ballots, rows: Sequence[int], names: Sequence[str], counts: Any, others: Any
) -> None:
    code_of = {name: code for code, name in enumerate(names)}
    for annotator, said in ballots.choices.items():
        for number, row in enumerate(rows):
            choice = said[row]
            if choice is None:
                continue
            if choice in code_of:
                counts[number, code_of[choice]] += 1
            elif records.source.coding.bins:  # a bin that no label lies in is no class
                others[number] += 1
            else:
                raise UserError(
                    f"{records.places[row]}: {annotator} is {choice!r}; expected one of {', '.join(names)}, or nothing"
                )


def _numbers(cell: Any, expected: int, names: Sequence[str], place: str) -> list[float] | None:
    """The votes in one cell, or in one row of several; None where there are none."""
    if isinstance(cell, str):
        if not cell.strip():
            return None
        try:
            cell = json.loads(cell)
        except ValueError as error:
            raise UserError(f"{place}: votes are {cell[:40]!r}; expected a list such as [3, 0, 7]") from error
    if cell is None or (isinstance(cell, list) and cell and all(value in (None, "") for value in cell)):
        return None
    if not isinstance(cell, list) or len(cell) != expected:
        count = f"{len(cell)} numbers" if isinstance(cell, list) else f"{type(cell).__name__}, no list"
        raise UserError(
            f"{place}: votes are {count}; expected {expected}, one for each class in this order: {', '.join(names)}"
        )
    try:
        values = [float(value) for value in cell]
    except (TypeError, ValueError) as error:
        raise UserError(f"{place}: votes are {cell}; expected numbers") from error
    if any(value < 0 or not math.isfinite(value) for value in values):
        raise UserError(f"{place}: votes are {cell}; expected finite numbers of at least 0")
    return values
