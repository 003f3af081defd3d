import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffinf.evaluate.gain import (
    arm_interval,
    balanced_accuracy,
    editing_gap_closed,
    holm,
    macro_f1,
    mean_absolute_error,
    paired_difference,
)

METRICS = ("balanced_accuracy", "accuracy", "macro_f1")


def make_arm(labels, accuracy, seeds=3, num_classes=3, start=0):
    """Logits (S, T, K) of an arm that is right with the probability ``accuracy``."""
    arms = []
    for seed in range(start, start + seeds):
        generator = np.random.default_rng(seed)
        right = generator.random(len(labels)) < accuracy
        predictions = np.where(
            right, labels, (labels + generator.integers(1, num_classes, len(labels))) % num_classes
        )
        arms.append(np.eye(num_classes)[predictions])
    return np.stack(arms)


@pytest.fixture
def labels():
    return np.random.default_rng(0).choice(3, size=400, p=[0.7, 0.25, 0.05])


def test_balanced_accuracy_averages_recalls_of_the_classes_asked():
    labels, predictions = np.array([0, 0, 0, 0, 1, 1, 2]), np.array([0, 0, 0, 1, 1, 0, 2])
    assert balanced_accuracy(predictions, labels) == pytest.approx((0.75 + 0.5 + 1) / 3)
    assert balanced_accuracy(predictions, labels, [0, 1]) == pytest.approx((0.75 + 0.5) / 2)
    assert balanced_accuracy(predictions, labels, [0, 9]) == pytest.approx(0.75)  # 9 is not there
    with pytest.raises(ValueError, match="none of the classes"):
        balanced_accuracy(predictions, labels, [9])


def test_interval_holds_the_mean_over_seeds(labels):
    logits = make_arm(labels, 0.7)
    for metric in METRICS:
        interval = arm_interval(logits, labels, metric, resamples=200)
        assert interval.low < interval.estimate < interval.high
    expected = np.mean([balanced_accuracy(arm.argmax(1), labels) for arm in logits])
    assert arm_interval(logits, labels, resamples=10).estimate == pytest.approx(expected)


def test_interval_is_wider_when_seeds_differ(labels):
    same = np.repeat(make_arm(labels, 0.7, seeds=1), 4, axis=0)
    mixed = np.concatenate([make_arm(labels, accuracy, seeds=1) for accuracy in (0.3, 0.6, 0.8, 1.0)])
    widths = [np.diff(arm_interval(arm, labels, resamples=200).ci)[0] for arm in (same, mixed)]
    assert widths[1] > 1.5 * widths[0]


def test_rare_class_is_in_every_resample():
    labels = np.array([0] * 50 + [1])
    interval = arm_interval(np.eye(2)[labels][None], labels, resamples=100)
    assert interval.ci == (1.0, 1.0)


def test_interval_covers_the_true_figure_about_as_often_as_it_says():
    covered = 0
    for repeat in range(60):
        labels = np.random.default_rng(repeat).integers(0, 3, 150)
        logits = make_arm(labels, 0.6, seeds=1, start=1000 + repeat)
        interval = arm_interval(logits, labels, "accuracy", resamples=150, seed=repeat)
        covered += not interval.excludes(0.6)
    assert 50 <= covered <= 60


def test_difference_is_paired(labels):
    baseline = make_arm(labels, 0.6)
    better = baseline.copy()
    fixed = np.random.default_rng(1).choice(len(labels), 40, replace=False)
    better[:, fixed] = np.eye(3)[labels[fixed]]
    difference = paired_difference(better, baseline, labels, "accuracy", resamples=400)
    unpaired = arm_interval(better, labels, "accuracy", resamples=400).low
    assert difference.low > 0 and difference.p_value < 0.01
    assert (
        unpaired < arm_interval(baseline, labels, "accuracy", resamples=400).high
    )  # unpaired intervals overlap
    reverse = paired_difference(baseline, better, labels, "accuracy", resamples=400)
    assert reverse.estimate == pytest.approx(-difference.estimate)
    assert (reverse.low, reverse.high) == pytest.approx((-difference.high, -difference.low))
    assert (difference.seeds, difference.n) == (3, len(labels))


def test_an_arm_does_not_differ_from_itself(labels):
    arm = make_arm(labels, 0.6)
    difference = paired_difference(arm, arm, labels, resamples=50)
    assert (difference.estimate, difference.low, difference.high, difference.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_gap_closed(labels):
    baseline, oracle = make_arm(labels, 0.6), np.repeat(np.eye(3)[labels][None], 3, axis=0)
    assert editing_gap_closed(oracle, baseline, oracle, labels, resamples=100).closed.ci == (1.0, 1.0)
    assert editing_gap_closed(baseline, baseline, oracle, labels, resamples=100).closed.estimate == 0.0
    no_gap = editing_gap_closed(oracle, baseline, baseline, labels, resamples=100)
    assert no_gap.closed is None and no_gap.gap.estimate == 0.0
    half = editing_gap_closed(
        make_arm(labels, 0.8), baseline, oracle, labels, "accuracy", resamples=200
    ).closed
    assert half.low < 0.5 < half.high


def test_results_are_json_and_repeatable(labels):
    baseline, arm = make_arm(labels, 0.6), make_arm(labels, 0.7)
    results = [paired_difference(arm, baseline, labels, resamples=30, seed=5).to_dict() for _ in range(2)]
    assert json.dumps(results[0]) == json.dumps(results[1])
    json.dumps(editing_gap_closed(arm, baseline, arm, labels, resamples=30).to_dict())


def test_bad_arrays_are_refused(labels):
    arm = make_arm(labels, 0.6)
    with pytest.raises(ValueError, match="seeds"):
        arm_interval(arm[0], labels)
    with pytest.raises(ValueError, match="seeds"):
        paired_difference(arm, arm[:2], labels)
    with pytest.raises(ValueError, match="diverged"):
        arm_interval(np.full_like(arm, np.nan), labels)
    with pytest.raises(ValueError, match="labels must lie"):
        arm_interval(arm, labels + 1)
    with pytest.raises(ValueError, match="unknown metric"):
        arm_interval(arm, labels, "precision")


def test_holm_closed_form():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({}) == {}
    with pytest.raises(ValueError):
        holm({"a": 1.2})


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=8))
def test_holm_never_lowers_and_keeps_the_order(p_values):
    adjusted = holm(p_values)
    assert list(adjusted) == list(p_values)
    for a in p_values:
        assert p_values[a] <= adjusted[a] <= 1
        assert all(adjusted[a] <= adjusted[b] for b in p_values if p_values[a] < p_values[b])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_measures_do_not_depend_on_the_order_of_samples(pairs):
    predictions, labels = np.array(pairs).T
    for measure in (balanced_accuracy, macro_f1):
        assert measure(predictions, labels) == pytest.approx(measure(predictions[::-1], labels[::-1]))
        assert measure(labels, labels) == 1.0


def test_mean_absolute_error_is_in_classes():
    assert mean_absolute_error([0, 3, 2], [1, 1, 2]) == 1
