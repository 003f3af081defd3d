import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffinf.evaluate.detection import detection


def test_perfect_scores_reach_one():
    wrong = np.array([True, True, False, False, False])
    found = detection([5, 4, 3, 2, 1], wrong, wrong, bootstrap=50)
    assert (found.average_precision, found.roc_auc) == (1.0, 1.0)
    assert (found.precision_at_flagged, found.recall_at_flagged, found.base_rate) == (1.0, 1.0, 0.4)
    assert (found.n, found.n_flagged, found.n_wrong) == (5, 2, 2)
    assert found.ci == (1.0, 1.0)


def test_precision_and_recall_count_the_flags():
    found = detection([4, 3, 2, 1], [True, True, True, False], [True, False, False, True], bootstrap=0)
    assert found.precision_at_flagged == pytest.approx(1 / 3)
    assert found.recall_at_flagged == pytest.approx(1 / 2)
    assert found.ci is None


@pytest.mark.parametrize("value", [True, False])
def test_no_wrong_or_no_right_label_leaves_ranking_undefined(value):
    found = detection([1, 2, 3], [False] * 3, [value] * 3)
    assert found.roc_auc is None and found.ci is None and found.curve == ()
    assert found.precision_at_flagged is None  # nothing flagged
    assert found.average_precision == (1.0 if value else None)


def test_interval_holds_the_estimate_and_depends_on_the_seed_alone():
    generator = np.random.default_rng(0)
    wrong = generator.random(300) < 0.3
    score = wrong + generator.normal(size=300)
    first, again = (detection(score, wrong, wrong, bootstrap=200, seed=3) for _ in range(2))
    assert first == again
    assert first.ci is not None and first.average_precision is not None
    assert first.ci[0] < first.average_precision < first.ci[1]
    assert first.ci != detection(score, wrong, wrong, bootstrap=200, seed=4).ci


def test_per_class_by_name_and_by_index_agree():
    labels = np.array([0, 0, 1, 1, 1])
    arrays = ([5, 1, 4, 3, 2], [True, False, True, False, False], [True, False, False, True, False])
    by_index = detection(*arrays, labels=labels, class_names=["old", "young"], bootstrap=0)
    by_name = detection(*arrays, labels=np.array(["old", "young"])[labels], bootstrap=0)
    assert by_index.per_class == by_name.per_class
    assert by_index.per_class["old"].average_precision == 1.0
    assert by_index.per_class["young"].precision_at_flagged == 0.0
    assert by_index.per_class["young"].base_rate == pytest.approx(1 / 3)


def test_curve_is_thinned_and_rises_in_recall():
    generator = np.random.default_rng(1)
    wrong = generator.random(5000) < 0.3
    curve = np.array(detection(generator.normal(size=5000), wrong, wrong, bootstrap=0).curve)
    assert len(curve) <= 200
    assert (np.diff(curve[:, 0]) >= 0).all()
    assert curve[0, 0] == 0 and curve[-1].tolist() == pytest.approx([1.0, wrong.mean()])


def test_to_dict_is_json():
    found = detection(
        [3, 2, 1], [True, False, False], [True, False, True], labels=["a", "a", "b"], bootstrap=20
    )
    assert json.loads(json.dumps(found.to_dict()))["per_class"]["a"]["n"] == 2


@pytest.mark.parametrize(
    "arrays",
    [([], [], []), ([1.0, 2.0], [True], [True, False]), ([1.0, np.nan], [True, False], [True, False])],
)
def test_bad_arrays_are_refused(arrays):
    with pytest.raises(ValueError):
        detection(*arrays)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5, width=16), st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_only_the_order_of_scores_matters(rows):
    score, flagged, wrong = (np.array(column) for column in zip(*rows, strict=True))
    plain = detection(score, flagged, wrong, bootstrap=0)
    stretched = detection(3 * score.astype(np.float64) + 7, flagged, wrong, bootstrap=0)
    assert plain == stretched
