"""Flags: counts, order, ties, and that nothing is a legal answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffinf.errors import UserError
from diffinf.influence.flag import flag

few_values = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0, float("inf")]), min_size=1, max_size=40)


def named(n: int) -> np.ndarray:
    return np.array([f"id{i:03d}" for i in range(n)])


@settings(max_examples=60, deadline=None)
@given(few_values, st.floats(0, 1), st.integers(0, 2**31))
def test_share_flags_the_highest_and_ignores_the_order_of_rows(
    values: list[float], share: float, seed: int
) -> None:
    scores, ids = np.array(values), named(len(values))
    result = flag(scores, ids, share=share)
    expected = 0 if share < 0.01 else np.floor(share * len(scores) + 0.5)
    assert result.flagged.sum() == expected
    if expected:
        assert result.threshold == scores[result.flagged].min()
        assert (scores[~result.flagged] <= result.threshold).all()
        tied = scores == result.threshold
        # Ids are in order here, so among ties the first rows are flagged.
        assert np.array_equal(result.flagged[tied], np.sort(result.flagged[tied])[::-1])
    else:
        assert result.threshold is None
    order = np.random.default_rng(seed).permutation(len(scores))
    assert set(ids[order][flag(scores[order], ids[order], share=share).flagged]) == set(ids[result.flagged])


@settings(max_examples=40, deadline=None)
@given(few_values, st.integers(0, 50))
def test_count_flags_that_many(values: list[float], count: int) -> None:
    result = flag(values, named(len(values)), method="count", count=count)
    assert result.flagged.sum() == min(count, len(values))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 2)), min_size=1, max_size=60), st.floats(0.01, 1))
def test_class_share_takes_the_same_share_of_each_class(rows: list[tuple[float, int]], share: float) -> None:
    scores, labels = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    result = flag(scores, named(len(rows)), method="class_share", share=share, labels=labels)
    for k in np.unique(labels):
        mine = labels == k
        assert result.flagged[mine].sum() == np.floor(share * mine.sum() + 0.5)
        if result.flagged[mine].any():
            assert result.class_thresholds is not None
            assert result.class_thresholds[k] == scores[mine & result.flagged].min()


def test_auto_flags_the_upper_hump() -> None:
    generator = np.random.default_rng(0)
    scores = np.exp(np.concatenate([generator.normal(0, 0.5, 800), generator.normal(5, 0.5, 200)]))
    result = flag(scores, named(1000), method="auto")
    assert result.flagged[800:].all() and not result.flagged[:800].any()
    assert result.mixture is not None and result.mixture.preferred and result.mixture.log_scale
    assert result.mixture.weights[1] == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_auto_flags_nothing_in_one_hump(seed: int) -> None:
    generator = np.random.default_rng(seed)
    for scores in (np.exp(generator.normal(size=1000)), generator.normal(size=1000), np.ones(1000)):
        result = flag(scores, named(1000), method="auto")
        assert not result.flagged.any() and result.threshold is None


def test_auto_does_not_flag_the_far_low_side() -> None:
    generator = np.random.default_rng(0)
    scores = np.concatenate([generator.normal(0, 0.1, 500), generator.normal(4, 1.0, 500), [-50.0]])
    result = flag(scores, named(1001), method="auto")
    assert result.flagged[500:1000].mean() > 0.95 and not result.flagged[1000]


def test_infinite_scores_come_first_in_every_method() -> None:
    scores = np.random.default_rng(0).normal(size=50)
    scores[7] = np.inf
    for options in ({"method": "auto"}, {"method": "count", "count": 1}, {"share": 0.02}):
        assert flag(scores, named(50), **options).flagged[7]


def test_given_ids_and_no_noise() -> None:
    result = flag([1.0, 2.0, 3.0], named(3), method="ids", given=["id001"])
    assert result.flagged.tolist() == [False, True, False] and result.threshold is None
    assert not flag([1.0, 2.0], named(2), method="ids", given=[]).flagged.any()
    assert not flag(np.arange(500.0), named(500), share=0.005).flagged.any()


def test_bad_input_is_named() -> None:
    ids = named(3)
    with pytest.raises(UserError, match="id001 is NaN"):
        flag([0.0, np.nan, 1.0], ids, share=0.3)
    with pytest.raises(UserError, match="share is None"):
        flag([0.0, 1.0, 2.0], ids)
    with pytest.raises(UserError, match=r"share is 1\.5"):
        flag([0.0, 1.0, 2.0], ids, share=1.5)
    with pytest.raises(UserError, match="more than once"):
        flag([0.0, 1.0, 2.0], np.array(["a", "b", "a"]), share=0.5)
    with pytest.raises(UserError, match="id9"):
        flag([0.0, 1.0, 2.0], ids, method="ids", given=["id9"])
    with pytest.raises(UserError, match="needs the labels"):
        flag([0.0, 1.0, 2.0], ids, method="class_share", share=0.5)
    with pytest.raises(UserError, match="count is None"):
        flag([0.0, 1.0, 2.0], ids, method="count")
    with pytest.raises(UserError, match="unknown"):
        flag([0.0, 1.0, 2.0], ids, method="guess")  # type: ignore[arg-type]
