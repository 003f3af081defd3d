import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffinf.evaluate.gain import arm_interval
from diffinf.evaluate.groups import accuracy_by_group, count_groups, group_names, uneven_groups
from diffinf.evaluate.intervals import wilson_interval

GROUPS = ["f", "f", "m", None, "m", "m"]


def test_counts_by_group_leave_out_who_is_unknown():
    found = count_groups(GROUPS, [1, 3, 5, 9, np.nan, 7], [1, 0, 1, 1, 1, 0], [1, 0, 0, 1, 1, 0])
    assert list(found) == ["f", "m"]
    assert (found["f"].n, found["f"].n_flagged, found["f"].n_edited, found["f"].median_score) == (2, 1, 1, 2)
    assert (found["m"].n, found["m"].n_flagged, found["m"].n_edited, found["m"].median_score) == (3, 2, 1, 6)
    assert found["m"].flagged == wilson_interval(2, 3) and found["m"].edited == wilson_interval(1, 3)
    plain = json.loads(json.dumps(found["m"].to_dict()))
    assert plain["flagged"] == 2 and plain["flagged_share"] == pytest.approx(2 / 3)
    assert plain["edited_ci"] == list(wilson_interval(1, 3).ci)


def test_before_the_repair_nothing_is_said_of_edits():
    found = count_groups(["a"], [np.inf], [True])["a"]
    assert found.n_edited is None and found.edited is None and found.median_score is None
    assert found.to_dict()["edited"] is None and found.to_dict()["edited_ci"] is None


def test_the_interval_of_a_median_holds_it_as_often_as_it_says():
    def interval(values):
        return count_groups(["a"] * len(values), values, [False] * len(values))["a"].median_ci

    # The textbook's ranks: of 6 scores the first and last, of 20 the 6th and 15th, of 100 the 40th and 61st.
    for n, ranks in ((5, None), (6, (1, 6)), (20, (6, 15)), (100, (40, 61))):
        assert interval(np.arange(n, 0, -1.0)) == ranks
    assert interval([*range(1, 7), np.nan]) == (1, 6)
    draws = np.random.default_rng(0).exponential(size=(400, 25))
    held = [low <= np.log(2) <= high for low, high in map(interval, draws)]
    assert np.mean(held) > 0.93


def test_the_most_frequent_groups_are_told_apart():
    groups = [f"g{index:02}" for index in range(40) for _ in range(index + 1)]
    assert group_names(groups) == [f"g{index:02}" for index in range(16, 40)]
    assert group_names([None, None]) == []


def marked(**shares):
    """Groups and marks: name=(marked, n)."""
    groups = [name for name, (_, n) in shares.items() for _ in range(n)]
    return groups, [index < hits for hits, n in shares.values() for index in range(n)]


def test_a_group_that_has_far_more_is_named():
    (found,) = uneven_groups(*marked(f=(60, 300), m=(30, 300), other=(10, 100)))
    assert (found.group, found.share, found.n) == ("f", 0.2, 300)
    assert (found.share_elsewhere, found.n_elsewhere) == (0.1, 400)
    assert found.p_value < 0.01


@pytest.mark.parametrize(
    "shares",
    [
        {"f": (3000, 10000), "m": (2200, 10000)},  # certain, and not far more
        {"f": (2, 5), "m": (5, 50)},  # far more, and not certain
        {"f": (1, 1), "m": (30, 300)},  # a normal approximation would be certain of one sample
        {"f": (0, 100), "m": (0, 100)},
        {"only": (50, 100)},
    ],
)
def test_what_is_small_or_uncertain_is_not_warned_of(shares):
    assert uneven_groups(*marked(**shares)) == []


def test_all_on_one_group():
    (found,) = uneven_groups(*marked(f=(40, 100), m=(0, 100)))
    assert found.share_elsewhere == 0


def test_chance_alone_warns_rarely():
    generator = np.random.default_rng(0)
    groups = generator.integers(0, 8, 400).astype(str).tolist()
    warned = sum(bool(uneven_groups(groups, generator.random(400) < 0.15)) for _ in range(200))
    assert warned <= 6  # 1 % of 200, and some


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.booleans()), min_size=1, max_size=60))
def test_the_groups_add_up(rows):
    groups, marks = [row[0] for row in rows], [row[1] for row in rows]
    found = count_groups(groups, np.zeros(len(rows)), marks, marks)
    assert sum(part.n for part in found.values()) == sum(group is not None for group in groups)
    assert all(part.n_flagged == part.n_edited <= part.n for part in found.values())
    assert {part.group for part in uneven_groups(groups, marks)} <= set(found)


def test_accuracy_is_that_of_the_rows():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 60)
    logits = generator.normal(size=(2, 60, 3))
    groups = [("x", "y", None)[index % 3] for index in range(60)]
    found = accuracy_by_group(groups, logits, labels)
    assert list(found) == ["x", "y"]
    for start, name in enumerate(found):
        n, interval = found[name]
        right = logits[:, start::3].argmax(-1) == labels[start::3]
        assert n == 20 and interval.estimate == pytest.approx(right.mean())
        assert interval == arm_interval(logits[:, start::3], labels[start::3], "accuracy")


@pytest.mark.parametrize(
    "call",
    [
        lambda: count_groups(["a"], [1, 2], [True]),
        lambda: count_groups(["a"], [1], [True, False]),
        lambda: uneven_groups(["a", "b"], [True]),
        lambda: accuracy_by_group(["a"], np.zeros((1, 2, 2)), [0, 1]),
    ],
)
def test_lengths_that_differ_are_refused(call):
    with pytest.raises(ValueError, match="groups"):
        call()
