"""All measures of an arm, its calibration and its logits without the training prior."""

import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score
from sklearn.metrics import confusion_matrix as reference_confusion

from diffinf.evaluate.gain import arm_interval
from diffinf.evaluate.measures import adjusted_logits, arm_measures, expected_calibration_error
from diffinf.evaluate.resampling import confusions


@pytest.fixture
def arm():
    """Logits (3, 300, 4) that know a little, and labels (300,) without the last class."""
    generator = np.random.default_rng(0)
    labels = generator.choice(4, size=300, p=[0.6, 0.3, 0.1, 0])
    return generator.normal(size=(3, 300, 4)) + 1.5 * np.eye(4)[labels], labels


def test_measures_are_those_of_scikit_learn(arm):
    logits, labels = arm
    found = arm_measures(logits, labels, classes=[0, 1], resamples=50)
    seeds = logits.argmax(-1)
    assert found.accuracy.estimate == pytest.approx(np.mean([accuracy_score(labels, p) for p in seeds]))
    recalls = np.mean(
        [recall_score(labels, p, labels=[0, 1, 2], average=None, zero_division=0) for p in seeds], axis=0
    )
    assert [interval.estimate for interval in found.recalls[:3]] == pytest.approx(recalls.tolist())
    assert found.recalls[3] is None, "no test image is of the class"
    assert found.balanced_accuracy.estimate == pytest.approx(recalls.mean())
    assert found.primary.estimate == pytest.approx(recalls[:2].mean())
    f1 = [f1_score(labels, p, labels=[0, 1, 2], average="macro", zero_division=0) for p in seeds]
    assert found.macro_f1.estimate == pytest.approx(np.mean(f1))
    errors = [expected_calibration_error(row, labels) for row in logits]
    assert found.ece.estimate == pytest.approx(np.mean(errors))
    assert (found.seeds, found.n) == (3, 300)
    json.dumps(found.to_dict())


def test_intervals_are_those_of_the_measure_alone(arm):
    logits, labels = arm
    found = arm_measures(logits, labels, classes=[0, 2], resamples=80, seed=3)
    for metric, mine in (("accuracy", found.accuracy), ("macro_f1", found.macro_f1)):
        alone = arm_interval(logits, labels, metric, resamples=80, seed=3)
        assert (mine.low, mine.high) == pytest.approx(alone.ci)
    recall = arm_interval(logits, labels, classes=[2], resamples=80, seed=3)
    assert found.recalls[2].ci == pytest.approx(recall.ci)
    assert found.ece.low < found.ece.high


def test_confusions_are_those_of_scikit_learn(arm):
    logits, labels = arm
    found = confusions(logits.argmax(-1), labels, 4)
    for matrix, predicted in zip(found, logits.argmax(-1), strict=True):
        assert (matrix == reference_confusion(labels, predicted, labels=range(4))).all()


def test_calibration_error_closed_form():
    # Confidence .9 on ten images of which six are right, .6 on ten of which six are right.
    logits = np.log(np.array([[0.9, 0.1]] * 10 + [[0.6, 0.4]] * 10))
    labels = np.array(([0] * 6 + [1] * 4) * 2)
    assert expected_calibration_error(logits, labels) == pytest.approx(0.5 * 0.3)
    certain = np.array([[800.0, -800.0]] * 4)
    assert expected_calibration_error(certain, [0, 0, 0, 0]) == 0
    assert expected_calibration_error(certain, [1, 1, 1, 1]) == 1


def test_calibration_error_is_that_of_torchmetrics(arm):
    torch = pytest.importorskip("torch")
    classification = pytest.importorskip("torchmetrics.classification")
    logits, labels = arm
    reference = classification.MulticlassCalibrationError(num_classes=4, n_bins=15, norm="l1")
    expected = float(reference(torch.tensor(logits[0]).softmax(-1), torch.tensor(labels)))
    assert expected_calibration_error(logits[0], labels) == pytest.approx(expected, abs=1e-6)


def test_adjusted_logits_undo_the_prior():
    # Two classes of the same Gaussian width: the posterior under a prior of 9 to 1 becomes that under equal ones.
    x = np.linspace(-3, 3, 101)
    likelihoods = np.stack([np.exp(-((x + 1) ** 2) / 2), np.exp(-((x - 1) ** 2) / 2)], axis=1)
    skewed = np.log(likelihoods * [0.9, 0.1])
    adjusted = adjusted_logits(skewed, [900, 100])
    assert (
        (adjusted[:, 1] > adjusted[:, 0]) == (np.log(likelihoods)[:, 1] > np.log(likelihoods)[:, 0])
    ).all()
    assert np.diff(adjusted, axis=1) == pytest.approx(np.diff(np.log(likelihoods), axis=1))
    assert adjusted_logits(skewed, [900, 100], tau=0) == pytest.approx(skewed)


def test_adjusted_logits_raise_balanced_accuracy_where_a_class_is_rare():
    generator = np.random.default_rng(1)
    labels = np.repeat([0, 1], 500)
    x = generator.normal(np.where(labels == 0, -1, 1))
    logits = np.stack([np.log(0.95) - (x + 1) ** 2 / 2, np.log(0.05) - (x - 1) ** 2 / 2], axis=1)
    before, after = logits.argmax(1), adjusted_logits(logits, [950, 50]).argmax(1)
    assert balanced_accuracy_score(labels, after) > balanced_accuracy_score(labels, before) + 0.05


def test_a_class_without_training_samples_is_finite():
    adjusted = adjusted_logits(np.zeros((2, 3)), [10, 0, 10])
    assert np.isfinite(adjusted).all()
    for counts in ([1, 2], [1, -1, 2], [1, np.nan, 2]):
        with pytest.raises(ValueError, match="counts"):
            adjusted_logits(np.zeros((2, 3)), counts)


def test_bad_arrays_are_refused(arm):
    logits, labels = arm
    with pytest.raises(ValueError, match="seeds"):
        arm_measures(logits[0], labels)
    with pytest.raises(ValueError, match="none of the classes"):
        arm_measures(logits, labels, classes=[3], resamples=5)
    with pytest.raises(ValueError, match="diverged"):
        arm_measures(np.full_like(logits, np.nan), labels)
