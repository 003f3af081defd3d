import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from diffinf.evaluate.rca import confusion, rca_from_confusions, relative_classification_accuracy
from diffinf.evaluate.rca_metric import RelativeClassificationAccuracyMetric

NAMES = ["ann", "bea", "cid", "dan"]


def readings(accuracy, n=400, k=4, seed=0):
    """Labels, and readings that are right with this probability and one class too high otherwise."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % k
    return np.where(generator.random(n) < accuracy, labels, (labels + 1) % k), labels


def measure(accuracy, real_accuracy=0.9, **settings):
    return relative_classification_accuracy(
        *readings(accuracy), *readings(real_accuracy, seed=1), **({"class_names": NAMES} | settings)
    )


def test_is_the_ratio_of_the_accuracies():
    read, asked = readings(0.45)
    real_read, truth = readings(0.9, seed=1)
    found = measure(0.45)
    assert found.generated_accuracy.estimate == (read == asked).mean()
    assert found.real_accuracy.estimate == (real_read == truth).mean()
    assert found.rca.estimate == pytest.approx((read == asked).mean() / (real_read == truth).mean())
    own = found.per_class["cid"]
    expected = (read[2::4] == 2).mean() / (real_read[2::4] == 2).mean()
    assert own.rca.estimate == pytest.approx(expected) and (own.n_generated, own.n_real) == (100, 100)
    assert json.loads(json.dumps(found.to_dict()))["classes"] == NAMES


def test_names_in_the_arrays_give_the_same_as_indices():
    read, asked = readings(0.6)
    real_read, truth = readings(0.9, seed=1)
    names = np.array(NAMES)
    by_name = relative_classification_accuracy(
        names[read].astype(object), names[asked], names[real_read].tolist(), names[truth]
    )
    assert by_name == measure(0.6)


@pytest.mark.parametrize(
    ("accuracy", "words"),
    [
        (0.37, "Most generated images show another class"),
        (0.6, "less often than real ones"),
        (0.9, "about as often"),
        (1.0, "easier to read"),
    ],
)
def test_verdict(accuracy, words):
    assert words in measure(accuracy).verdict


def test_collapse_on_one_class_is_chance():
    asked = np.arange(400) % 4
    found = relative_classification_accuracy(
        np.zeros(400, int), asked, *readings(0.9, seed=1), class_names=NAMES
    )
    assert "no more often than chance" in found.verdict
    often = rca_from_confusions([[70, 0], [30, 0]], [[90, 10], [10, 90]], ["often", "rare"])
    assert often.generated_accuracy.estimate == 0.7 and "no more often than chance" in often.verdict
    few = relative_classification_accuracy(*readings(0.8, 24), *readings(0.9, 24), class_names=NAMES)
    assert "Too few" in few.verdict


def test_few_images_that_are_all_right_claim_no_certainty():
    few = rca_from_confusions(np.diag([2, 2]), np.diag([20, 20]), ["a", "b"])
    assert few.rca.estimate == few.balanced.estimate == 1 and few.rca.low < 0.7 and "Too few" in few.verdict
    many = rca_from_confusions(np.diag([200, 200]), np.diag([200, 200]), ["a", "b"])
    assert 0.98 < many.rca.low < 1 < many.rca.high and "about as often" in many.verdict
    half = rca_from_confusions([[10, 0], [10, 0]], np.diag([20, 20]), ["a", "b"])
    assert half.rca.low < 0.35 and half.rca.high > 0.65


@pytest.mark.parametrize(("real_accuracy", "words"), [(0.6, "errs too often"), (1.0, "too easy")])
def test_warns_of_an_oracle_out_of_range(real_accuracy, words):
    assert words in " ".join(measure(0.5, real_accuracy).warnings)
    assert measure(0.5).warnings == ()


def test_oracle_that_recognises_nothing_gives_no_figure():
    found = measure(0.5, 0.0)
    assert found.rca is None and found.balanced is None and "nothing can be said" in found.verdict
    assert all(part.rca is None for part in found.per_class.values())


def test_classes_of_one_side_are_left_out_and_named():
    read, asked = readings(0.5)
    real_read, truth = readings(0.9, seed=1)
    kept = truth != 3
    found = relative_classification_accuracy(read, asked, real_read[kept], truth[kept], class_names=NAMES)
    assert (found.n_generated, found.n_real) == (300, 300)
    assert "want of real images: dan" in " ".join(found.warnings)
    assert found.per_class["dan"].rca is None and found.per_class["dan"].real_accuracy is None
    # Left out of the asked classes, but still a reading: those of "cid" read as "dan" are wrong.
    assert found.generated_accuracy.estimate == (read == asked)[asked != 3].mean()


def test_balanced_does_not_depend_on_the_class_shares():
    """Plain accuracies shift when one side has more of what is easy to read."""
    even = np.array([[90, 10], [50, 50]])
    uneven = even * [[10], [1]]
    found = rca_from_confusions(uneven, even, ["easy", "hard"])
    assert found.balanced.estimate == pytest.approx(1) and found.rca.estimate > 1.2


def test_intervals_cover():
    """95 % intervals of the ratio .5 / .9 hold it about that often."""
    generator = np.random.default_rng(5)
    inside = 0
    for trial in range(200):
        tables = []
        for accuracy in (0.5, 0.9):
            hits = generator.binomial(40, accuracy, 4)
            tables.append(np.diag(hits) + np.roll(np.diag(40 - hits), 1, axis=1))
        interval = rca_from_confusions(*tables, NAMES, bootstrap=300, seed=trial).rca
        inside += interval.low <= 0.5 / 0.9 <= interval.high
    assert 180 <= inside <= 199


def test_few_images_all_right_do_not_claim_certainty():
    found = rca_from_confusions(np.diag([5, 50]), np.diag([5, 50]), ["few", "many"])
    few, many = found.per_class["few"].rca, found.per_class["many"].rca
    assert few.estimate == 1 and few.low < many.low < 1


def test_confusion_groups_and_pairs():
    asked = np.array([0] * 10 + [1] * 10 + [2] * 10 + [3] * 10)
    read = asked.copy()
    read[:6], read[6], read[10:14], read[30] = 1, 3, 0, 2
    found = relative_classification_accuracy(
        read, asked, asked, asked, class_names=NAMES, groups={"ann": "a", "bea": "a", "dan": "d"}
    )
    assert np.array_equal(
        found.generated_confusion, [[3, 6, 0, 1], [4, 6, 0, 0], [0, 0, 10, 0], [0, 0, 1, 9]]
    )
    assert np.array_equal(found.real_confusion, 10 * np.eye(4))
    assert list(found.groups) == ["a", "d"]
    alike = found.groups["a"]
    assert alike.classes == ("ann", "bea") and np.array_equal(alike.generated, [[3, 6], [4, 6]])
    assert alike.inside == 10 / 11 and alike.inside_by_chance == pytest.approx(1 / 3)
    assert found.groups["d"].inside == 0
    worst = found.confused[0]
    assert (worst.asked, worst.read, worst.n, worst.share, worst.real_share) == ("ann", "bea", 6, 0.6, 0)
    assert worst.examples == (0, 1, 2, 3)
    assert [pair.n for pair in found.confused] == [6, 4, 1, 1]


def test_bad_arguments_are_refused():
    read, asked = readings(0.5)
    for arguments, names, message in (
        ((read[:3], asked, read, asked), NAMES, "generated predictions and labels"),
        ((read, asked, [], []), NAMES, "real predictions and labels"),
        ((read, asked, read, asked + 3), NAMES, "row 1: class 4"),
        ((read + 0.5, asked, read, asked), NAMES, "whole numbers or names"),
        ((read.astype(str), asked, read, asked), NAMES, "indices"),
        (([0, 0], [0, 0], [1, 1], [1, 1]), NAMES, "no class has both"),
    ):
        with pytest.raises(ValueError, match=message):
            relative_classification_accuracy(*arguments, class_names=names)
    with pytest.raises(ValueError, match="zoe"):
        measure(0.5, groups={"zoe": "a"})
    with pytest.raises(ValueError, match="bootstrap"):
        measure(0.5, bootstrap=0)
    with pytest.raises(ValueError, match="confusions must be counts"):
        rca_from_confusions(np.eye(3), np.eye(4), NAMES)


tables = st.lists(st.integers(1, 30), min_size=9, max_size=9).map(lambda v: np.reshape(v, (3, 3)))


@settings(max_examples=60, deadline=None)
@given(tables, tables, st.permutations(range(3)))
def test_invariances(generated, real, order):
    found = rca_from_confusions(generated, real, NAMES[:3], bootstrap=20)
    assert found.rca is None or found.rca.estimate > 0
    names = [NAMES[k] for k in order]
    moved = rca_from_confusions(
        generated[np.ix_(order, order)], real[np.ix_(order, order)], names, bootstrap=20
    )
    assert moved.generated_accuracy == found.generated_accuracy and moved.real_accuracy == found.real_accuracy
    assert set(moved.per_class) == set(found.per_class)
    for name in names:
        assert moved.per_class[name].generated_accuracy == found.per_class[name].generated_accuracy
    same = rca_from_confusions(real, real, NAMES[:3], bootstrap=20)
    assert same.rca is None or same.rca.estimate == 1
    better = generated + np.diag([5, 5, 5])
    raised = rca_from_confusions(better, real, NAMES[:3], bootstrap=20)
    assert raised.generated_accuracy.estimate >= found.generated_accuracy.estimate


def test_metric_has_the_same_numbers():
    read, asked = readings(0.6)
    real_read, truth = readings(0.9, seed=1)
    expected = measure(0.6)
    metric = RelativeClassificationAccuracyMetric(NAMES)
    logits = torch.nn.functional.one_hot(torch.from_numpy(read), 4).float() * 3 - 1
    for rows in torch.arange(400).split(150):
        metric.update(logits[rows], torch.from_numpy(asked)[rows], real=False)
        metric.update(torch.from_numpy(real_read)[rows], torch.from_numpy(truth)[rows], real=True)
    found = metric.compute()
    for name in ("rca", "balanced", "generated_accuracy", "real_accuracy"):
        assert float(found[name]) == pytest.approx(getattr(expected, name).estimate)
    own = [expected.per_class[name].rca.estimate for name in NAMES]
    assert found["per_class"].tolist() == pytest.approx(own)
    result = metric.result()
    assert (result.rca, result.per_class, result.verdict) == (
        expected.rca,
        expected.per_class,
        expected.verdict,
    )
    metric.reset()
    metric.update(logits, torch.from_numpy(asked), real=False)
    assert metric.compute()["rca"].isnan() and metric.compute()["per_class"].shape == (4,)


def test_metric_in_a_forward_call_and_merged_with_another():
    halves = []
    for real, (read, asked) in ((False, readings(0.6)), (True, readings(0.9, seed=1))):
        metric = RelativeClassificationAccuracyMetric(NAMES)
        batch = metric(torch.from_numpy(read), torch.from_numpy(asked), real=real)
        assert batch["rca"].isnan()  # one side alone has no ratio
        halves.append(metric)
    halves[0].merge_state(halves[1])
    assert halves[0].result().rca == measure(0.6).rca


def test_metric_refuses_what_does_not_fit():
    metric = RelativeClassificationAccuracyMetric(NAMES)
    for preds, target in (
        (torch.zeros(3, 5), torch.zeros(3, dtype=torch.long)),
        (torch.zeros(2, dtype=torch.long), torch.zeros(3, dtype=torch.long)),
        (torch.tensor([4]), torch.tensor([0])),
        (torch.tensor([0]), torch.tensor([-1])),
        (torch.tensor([0.5]), torch.tensor([0])),
    ):
        with pytest.raises(ValueError):
            metric.update(preds, target, real=True)
    assert int(metric.real.sum()) == 0


def test_confusion_matches_scikit_learn():
    read, asked = readings(0.5)
    assert np.array_equal(confusion(asked, read, 4), confusion_matrix(asked, read))
