"""Measures against scikit-learn, torchmetrics and SciPy on random data."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    roc_auc_score,
)
from torchmetrics.functional.classification import (
    binary_average_precision,
    multiclass_accuracy,
    multiclass_f1_score,
)

from diffinf.evaluate.detection import detection
from diffinf.evaluate.gain import arm_interval, balanced_accuracy, macro_f1
from diffinf.evaluate.intervals import wilson_interval

REFERENCES = {
    "balanced_accuracy": balanced_accuracy_score,
    "accuracy": accuracy_score,
    "macro_f1": lambda labels, predictions: f1_score(labels, predictions, average="macro"),
}


@pytest.fixture
def sample():
    generator = np.random.default_rng(7)
    return generator.integers(0, 4, 500), generator.normal(size=(3, 500, 4))


@pytest.mark.parametrize("metric", sorted(REFERENCES))
def test_arm_measure_matches_scikit_learn(sample, metric):
    labels, logits = sample
    expected = np.mean([REFERENCES[metric](labels, arm.argmax(1)) for arm in logits])
    assert arm_interval(logits, labels, metric, resamples=2).estimate == pytest.approx(expected, abs=1e-12)


def test_measures_match_torchmetrics(sample):
    labels, logits = sample
    predictions = logits[0].argmax(1)
    tensors = torch.from_numpy(predictions), torch.from_numpy(labels)
    recall = float(multiclass_accuracy(*tensors, num_classes=4, average="macro"))
    f1 = float(multiclass_f1_score(*tensors, num_classes=4, average="macro"))
    assert balanced_accuracy(predictions, labels) == pytest.approx(recall, abs=1e-6)
    assert macro_f1(predictions, labels) == pytest.approx(f1, abs=1e-6)


def test_bootstrap_matches_scikit_learn_on_the_same_resamples():
    generator = np.random.default_rng(2)
    labels, logits = generator.integers(0, 3, 60), generator.normal(size=(1, 60, 3))
    from diffinf.evaluate.resampling import confusions, draws, from_confusion

    seeds, rows = next(draws(labels, 1, 1, 9))
    predictions = logits[0].argmax(1)[rows]
    assert seeds.tolist() == [0] and np.bincount(labels[rows]).tolist() == np.bincount(labels).tolist()
    confusion = confusions(predictions[None], labels[rows], 3)
    assert from_confusion(confusion, "balanced_accuracy", np.arange(3)) == pytest.approx(
        balanced_accuracy_score(labels[rows], predictions)
    )


def test_detection_matches_scikit_learn_and_torchmetrics():
    generator = np.random.default_rng(3)
    wrong = generator.random(800) < 0.3
    score = np.round(wrong + generator.normal(size=800), 1)  # rounded: ties matter
    found = detection(score, wrong, wrong, bootstrap=0)
    assert found.average_precision == pytest.approx(average_precision_score(wrong, score))
    assert found.roc_auc == pytest.approx(roc_auc_score(wrong, score))
    torch_score = torch.from_numpy(score).sigmoid()
    expected = float(binary_average_precision(torch_score, torch.from_numpy(wrong).long()))
    assert found.average_precision == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (0, 20), (7, 20), (20, 20), (450, 1000)])
def test_wilson_matches_scipy(successes, n):
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    ours = wilson_interval(successes, n)
    assert ours.ci == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert ours.estimate == successes / n


def test_wilson_refuses_what_is_not_a_share():
    for successes, n in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError):
            wilson_interval(successes, n)
