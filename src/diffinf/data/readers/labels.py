"""From what a source writes as a label to the name of a class, and back."""

from __future__ import annotations

import math
import re
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

MISSING = frozenset({"", "nan", "null"})


@dataclass(frozen=True)
class LabelCoding:
    """How a class is written in the source.

    Attributes:
        codes: class name -> what the source writes; a class that is not there is written by its name.
        bins: lower edges of the classes that a number was sorted into; none: the label is no number.
    """

    codes: Mapping[str, str] = field(default_factory=dict)
    bins: tuple[float, ...] = ()

    def written(self, class_name: str, before: str) -> str:
        """What stands for `class_name` where `before` stood: of a bin, the number nearest to the old one."""
        if not self.bins:
            return self.codes.get(class_name, class_name)
        number = bin_names(self.bins).index(class_name)
        low = self.bins[number]
        high = self.bins[number + 1] if number + 1 < len(self.bins) else math.inf
        value = float(before)
        if value < low:
            return _number(low)
        whole = value.is_integer() and float(high).is_integer()
        return _number(value if value < high else high - 1 if whole else math.nextafter(high, low))


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(value)


def bin_names(edges: Sequence[float]) -> tuple[str, ...]:
    """Names of the classes [e0, e1), [e1, e2) ... [en, inf): "0-12", "13-19", "20+" for whole edges."""
    names = []
    for low, high in pairwise(edges):
        if float(low).is_integer() and float(high).is_integer():
            names.append(_number(low) if high - low == 1 else f"{_number(low)}-{_number(high - 1)}")
        else:
            names.append(f"{_number(low)} to {_number(high)}")
    return (*names, f"{_number(edges[-1])}+")


def bin_of(text: str, edges: Sequence[float]) -> int:
    """The number of the bin that the number `text` falls into; -1 below the first edge.

    Raises:
        ValueError: `text` is no finite number.
    """
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return bisect_right(edges, value) - 1


def spelling_variants(labels: Sequence[str | None]) -> list[dict[str, int]]:
    """Classes written in several ways ("Happiness", "happiness "): spelling -> count, most frequent first.

    Case, blanks at the ends, how Unicode writes a letter, and whether words are joined by blanks, "_" or "-" make no
    difference.
    """
    counts = Counter(label for label in labels if label is not None)
    families: dict[str, dict[str, int]] = {}
    for spelling, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        plain = unicodedata.normalize("NFKC", spelling).strip()
        key = re.sub(r"(?<=\w)[\s_-]+(?=[^\W\d])", " ", plain).casefold()
        families.setdefault(key, {})[spelling] = count
    return [family for family in families.values() if len(family) > 1]
