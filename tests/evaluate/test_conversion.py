import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffinf.evaluate.conversion import conversion


def example(**changes):
    """Four wrong labels and one false flag; the label is 1 everywhere and the truth of the wrong ones 0."""
    arrays = {
        "wrong": [True, True, True, True, False],
        "accepted": [True, True, True, False, True],
        "judged_edited": [1, 1, 0, 1, 1],
        "judged_original": [0, 0, 0, 1, 1],
        "judged_roundtrip": [0, 0, 1, 1, 1],
        "labels": [1, 1, 1, 1, 1],
    }
    return conversion(**(arrays | changes))


def test_counts_accepted_and_judged_as_the_label():
    result = example()
    assert result.conversion == 0.5 and result.n_converted == 2
    assert (result.before, result.roundtrip, result.attempted) == (0.25, 0.5, 0.75)
    assert (result.n, result.n_accepted) == (4, 3)
    assert (result.false_flags, result.false_flags_changed) == (1, 1)
    assert not result.identity_judged


def test_identity_below_the_threshold_or_not_judged_does_not_count():
    result = example(identity_similarity=[0.9, 0.2, 0.9, 0.9, np.nan], identity_threshold=0.5)
    assert result.conversion == 0.25 and result.identity_judged
    assert example(identity_similarity=[np.nan] * 5, identity_threshold=0.5).conversion == 0.0


def test_no_wrong_flag_is_not_zero_but_undefined():
    result = example(wrong=[False] * 5)
    assert result.conversion is None and result.ci is None and result.before is None
    assert (result.n, result.false_flags, result.false_flags_changed) == (0, 5, 4)
    assert conversion(**{name: [] for name in NAMES}).n == 0


NAMES = ("wrong", "accepted", "judged_edited", "judged_original", "judged_roundtrip", "labels")


def test_to_dict_is_json():
    assert json.loads(json.dumps(example().to_dict()))["n"] == 4


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="together"):
        example(identity_threshold=0.5)
    with pytest.raises(ValueError, match="one row"):
        example(labels=[1, 1])


row = st.tuples(*[st.booleans()] * 2, *[st.integers(0, 2)] * 4, st.floats(-1, 1))


@settings(max_examples=60, deadline=None)
@given(st.lists(row, min_size=1, max_size=25), st.floats(-1, 1))
def test_bounds_hold(rows, threshold):
    *columns, similarity = (np.array(column) for column in zip(*rows, strict=True))
    arrays = dict(zip(NAMES, columns, strict=True))
    free = conversion(**arrays)
    strict = conversion(**arrays, identity_similarity=similarity, identity_threshold=threshold)
    assert strict.n_converted <= free.n_converted <= free.n_accepted <= free.n
    assert free.n + free.false_flags == len(rows)
    assert free.false_flags_changed + free.n_accepted == int(columns[1].sum())
    if free.conversion is not None:
        assert free.attempted is not None and free.ci is not None
        assert 0 <= free.ci[0] <= free.conversion <= free.ci[1] <= 1
        assert free.conversion <= free.attempted
