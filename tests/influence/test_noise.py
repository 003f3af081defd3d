"""Noise estimates against synthetic noise with known truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import cross_val_predict

from diffinf.errors import UserError
from diffinf.influence.noise import (
    class_noise_rates,
    class_shares,
    confident_joint,
    error_log_odds,
    expected_precision,
    label_posterior,
    label_trust,
    ranked_trust,
    refined_joint,
)
from diffinf.influence.rivals import margin


def noisy(seed: int, n: int = 3000, classes: int = 4, spread: float = 1.8) -> tuple[np.ndarray, ...]:
    """Labels, truth, exact P(given | x) and P(true | x), transition [true, given], x of Gaussian classes."""
    generator = np.random.default_rng(seed)
    shares = generator.dirichlet(np.full(classes, 8.0))
    truth = generator.choice(classes, n, p=shares)
    centres = generator.normal(size=(classes, 4)) * spread
    x = centres[truth] + generator.normal(size=(n, 4))
    transition = np.eye(classes)
    for j in range(classes):
        rate = generator.uniform(0.05, 0.45)
        transition[j] = np.insert(generator.dirichlet(np.ones(classes - 1)) * rate, j, 1 - rate)
    labels = np.array([generator.choice(classes, p=transition[j]) for j in truth])
    logs = -((x[:, None] - centres) ** 2).sum(2) / 2 + np.log(shares)
    q = np.exp(logs - logs.max(1, keepdims=True))
    q /= q.sum(1, keepdims=True)
    return labels, truth, q @ transition, q, transition, x


def true_joint(labels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    joint = np.zeros((labels.max() + 1, labels.max() + 1))
    np.add.at(joint, (labels, truth), 1 / len(labels))
    return joint


def calibration_error(trust: np.ndarray, right: np.ndarray) -> float:
    parts = np.array_split(np.argsort(trust), 10)
    return float(sum(len(i) * abs(trust[i].mean() - right[i].mean()) for i in parts) / len(trust))


@pytest.mark.parametrize("seed", range(4))
def test_joint_and_rates_are_near_the_truth(seed: int) -> None:
    labels, truth, p, *_ = noisy(seed, spread=3.0)
    joint, expected = confident_joint(labels, p), true_joint(labels, truth)
    assert joint.sum() == pytest.approx(1)
    np.testing.assert_allclose(joint.sum(1), np.bincount(labels) / len(labels))
    assert np.abs(joint - expected).max() < 0.03
    assert np.abs(class_noise_rates(joint) - class_noise_rates(expected)).max() < 0.1


@pytest.mark.parametrize("seed", range(6))
def test_trust_finds_wrong_labels_better_than_the_margin_and_is_calibrated(seed: int) -> None:
    labels, truth, _, _, _, x = noisy(seed)
    p = cross_val_predict(LogisticRegression(max_iter=300), x, labels, cv=4, method="predict_proba")
    trust = label_trust(labels, p, confident_joint(labels, p))
    wrong = labels != truth
    rival = average_precision_score(wrong, margin(labels, np.log(np.maximum(p, 1e-9))))
    assert average_precision_score(wrong, 1 - trust) >= rival
    assert calibration_error(trust, ~wrong) < 0.15
    assert abs((1 - trust).mean() - wrong.mean()) < 0.1
    flagged = trust < np.quantile(trust, 0.2)
    # Where classes are this well separated the few deconvolution steps make the estimate a cautious one.
    assert wrong[flagged].mean() - 0.35 < expected_precision(trust, flagged) < wrong[flagged].mean() + 0.1


@pytest.mark.parametrize("seed", range(3))
def test_posterior_under_the_true_noise_is_calibrated(seed: int) -> None:
    labels, truth, p, q, transition, _ = noisy(seed, spread=3.0)
    posterior = label_posterior(labels, p, true_joint(labels, truth))
    exact = q * transition[:, labels].T
    exact /= exact.sum(1, keepdims=True)
    assert np.abs(posterior - exact).mean() < 0.08
    np.testing.assert_allclose(posterior.sum(1), 1)


def test_clean_labels_are_trusted() -> None:
    labels = np.arange(300) % 3
    p = np.eye(3)[labels] * 0.97 + 0.01
    joint = confident_joint(labels, p)
    assert np.trace(joint) == pytest.approx(1)
    assert (class_noise_rates(joint) == 0).all()
    np.testing.assert_allclose(label_trust(labels, p, joint), 1)


def test_a_class_without_labels_or_confidence_is_no_error() -> None:
    labels = np.array([0, 0, 1, 1, 1])
    p = np.full((5, 3), 1 / 3)
    joint = confident_joint(labels, p)
    assert np.isfinite(joint).all() and joint.sum() == pytest.approx(1)
    assert class_noise_rates(joint)[2] == 0
    trust = label_trust(labels, p, joint)
    assert np.isfinite(trust).all()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 60))
def test_anything_valid_gives_distributions(seed: int, classes: int, n: int) -> None:
    generator = np.random.default_rng(seed)
    p = generator.dirichlet(np.full(classes, 0.3), n)
    labels = generator.integers(classes, size=n)
    joint = confident_joint(labels, p)
    for table in (joint, refined_joint(labels, p, joint)):
        assert table.sum() == pytest.approx(1) and (table >= 0).all()
        np.testing.assert_allclose(table.sum(1), np.bincount(labels, minlength=classes) / n, atol=1e-9)
    trust = label_trust(labels, p, joint)
    assert ((trust >= 0) & (trust <= 1 + 1e-9)).all()
    assert ((class_noise_rates(joint) >= 0) & (class_noise_rates(joint) <= 1)).all()


def test_bad_input_is_named() -> None:
    p = np.full((2, 2), 0.5)
    with pytest.raises(UserError, match="label 2 of row 1"):
        confident_joint([0, 2], p)
    with pytest.raises(UserError, match="NaN"):
        confident_joint([0, 1], p * np.nan)
    with pytest.raises(UserError, match="logits"):
        confident_joint([0, 1], p * 4)
    with pytest.raises(UserError, match="expected shapes"):
        confident_joint([0, 1, 1], p)
    assert np.isnan(expected_precision([0.5, 0.5], np.zeros(2, dtype=bool)))


def fitted(seed: int) -> tuple[np.ndarray, ...]:
    """Labels, truth and the mean probabilities of models that were trained on the samples."""
    labels, truth, _, _, _, x = noisy(seed)
    parts = np.random.default_rng(seed).integers(4, size=len(labels))
    total = np.zeros((len(labels), labels.max() + 1))
    for part in range(4):
        model = LogisticRegression(max_iter=300).fit(x[parts != part], labels[parts != part])
        total += model.predict_proba(x)
    return labels, truth, total / 4


@pytest.mark.parametrize("seed", range(6))
def test_log_odds_find_wrong_labels_better_than_the_margin(seed: int) -> None:
    labels, truth, p = fitted(seed)
    wrong = labels != truth
    rival = average_precision_score(wrong, margin(labels, np.log(np.maximum(p, 1e-9))))
    assert average_precision_score(wrong, error_log_odds(labels, p)) > rival


def test_log_odds_are_the_posterior_where_nothing_is_noisy() -> None:
    labels = np.arange(300) % 3
    score = error_log_odds(labels, np.eye(3)[labels] * 0.97 + 0.01)
    assert (score < -5).all() and np.ptp(score) < 1e-6


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 60))
def test_log_odds_are_finite_and_know_no_order(seed: int, classes: int, n: int) -> None:
    generator = np.random.default_rng(seed)
    p = generator.dirichlet(np.full(classes, 0.1), n)
    labels = generator.integers(classes, size=n)
    score, order = error_log_odds(labels, p), generator.permutation(n)
    assert np.isfinite(score).all()
    np.testing.assert_allclose(error_log_odds(labels[order], p[order]), score[order], atol=1e-6)


def test_ranked_trust_deals_the_values_out_in_the_order_of_suspicion() -> None:
    trust = ranked_trust([0.9, 0.1, 0.5, 0.3], [2.0, -1.0, 7.0, 2.0])
    np.testing.assert_allclose(trust, [0.4, 0.9, 0.1, 0.4])  # the two that tie share .3 and .5


def test_log_odds_still_rank_where_every_label_was_fitted() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(600) % 3
    wrong = generator.random(600) < 0.2
    own = np.where(wrong, generator.uniform(0.55, 0.9, 600), generator.uniform(0.8, 0.999, 600))
    p = np.tile(((1 - own) / 2)[:, None], 3)
    p[np.arange(600), labels] = own
    assert (p.argmax(1) == labels).all(), "nothing contradicts a label"
    score = error_log_odds(labels, p)
    assert len(np.unique(score)) == 600
    assert average_precision_score(wrong, score) >= average_precision_score(wrong, 1 - own) - 1e-9


def test_class_shares_are_the_posterior_under_the_refined_joint() -> None:
    labels, _, p, *_ = noisy(1, n=400)
    shares = class_shares(labels, p)
    joint = refined_joint(labels, p, confident_joint(labels, p))
    np.testing.assert_allclose(shares, label_posterior(labels, p, joint))
    np.testing.assert_allclose(shares.sum(1), 1)
    assert shares.shape == p.shape and (shares >= 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_class_shares_are_nearer_to_the_truth_than_the_labels(seed: int) -> None:
    labels, truth, p, *_ = noisy(seed)
    rows = np.arange(len(labels))
    shares = class_shares(labels, p)
    assert (shares.argmax(1) == truth).mean() > (labels == truth).mean()
    assert shares[rows, truth].mean() > (labels == truth).mean()


def test_class_shares_of_clean_labels_are_the_labels() -> None:
    labels = np.arange(300) % 3
    shares = class_shares(labels, np.eye(3)[labels] * 0.97 + 0.01)
    np.testing.assert_allclose(shares, np.eye(3)[labels], atol=1e-9)


def test_class_shares_refuse_what_are_no_probabilities() -> None:
    with pytest.raises(UserError, match="logits"):
        class_shares([0, 1], np.full((2, 2), 2.0))
