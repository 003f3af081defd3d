"""Rival scores against their closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from diffinf.errors import UserError
from diffinf.influence.rivals import cleanlab_issues, knn_disagreement, rival_scores


@pytest.fixture
def arrays() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (30,), generator=generator)
    return (
        labels,
        torch.randn(30, 4, generator=generator) * 3,
        torch.randn(30, 6, generator=generator),
        torch.randn(5, 30, 4, generator=generator),
    )


def test_closed_forms(arrays: tuple[torch.Tensor, ...]) -> None:
    labels, logits, features, dynamics = arrays
    scores = rival_scores(labels, logits, features, dynamics)
    p = logits.double().softmax(1)
    target = F.one_hot(labels, 4).double()
    own = (p * target).sum(1)
    others = (p - 2 * target).max(1).values
    expected = {
        "loss": F.cross_entropy(logits.double(), labels, reduction="none"),
        "margin": others - own,
        "squared_error": (p - target).square().sum(1),
        "entropy": torch.distributions.Categorical(p).entropy(),
        "self_confidence": 1 - own,
        "aum": torch.stack(
            [
                torch.stack(
                    [row[torch.arange(4) != y].max() - row[y] for row, y in zip(z, labels, strict=True)]
                )
                for z in dynamics.double()
            ]
        ).mean(0),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(scores[name], values.numpy(), rtol=1e-6, atol=1e-9, err_msg=name)
    assert set(scores) - {"confident_learning"} == {*expected, "knn_agreement", "forgetting"}
    assert all(v.dtype == np.float64 and v.shape == (30,) for v in scores.values())


def test_every_score_but_entropy_puts_a_wrong_label_first() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1, 1])  # row 3 looks like class 0
    logits = np.array([[4.0, 0.0]] * 4 + [[0.0, 4.0]] * 3)
    features = logits + 0.01 * np.arange(14).reshape(7, 2)
    scores = rival_scores(labels, logits, features, np.stack([logits, logits]), neighbours=2)
    assert all(scores[name].argmax() == 3 for name in scores if name != "entropy")


def test_a_class_without_a_sample_does_not_blind_cleanlab() -> None:
    pytest.importorskip("cleanlab")
    shown = np.repeat([0, 2], 15)
    labels = shown.copy()
    labels[3] = 2
    issues = cleanlab_issues(labels, 6.0 * np.eye(3)[shown])
    assert np.flatnonzero(issues).tolist() == [3]
    assert not cleanlab_issues(np.zeros(4, dtype=np.int64), np.zeros((4, 3))).any()


def test_neighbours_leave_the_sample_itself_out() -> None:
    labels = np.array([0, 1, 0, 0])
    features = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    np.testing.assert_allclose(knn_disagreement(labels, features, 1), [1, 1, 0, 0])
    assert knn_disagreement(labels[:1], features[:1]).tolist() == [0]


def test_forgetting_counts_falls_and_never_right() -> None:
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    dynamics = np.array(
        [[right, wrong, right], [wrong, wrong, right], [right, wrong, right], [wrong, wrong, right]]
    )
    scores = rival_scores(np.zeros(3, dtype=int), dynamics[-1], None, dynamics)
    assert scores["forgetting"].tolist() == [2, 4, 0]
    assert "knn_agreement" not in scores


def test_extreme_logits_stay_finite() -> None:
    scores = rival_scores([0, 1], np.array([[1e4, -1e4], [1e4, -1e4]]))
    assert all(np.isfinite(v).all() for v in scores.values())


def test_bad_input_is_named() -> None:
    logits = np.zeros((3, 2))
    with pytest.raises(UserError, match="label 5 of row 2"):
        rival_scores([0, 1, 5], logits)
    with pytest.raises(UserError, match="row 1 are NaN"):
        rival_scores([0, 1, 1], np.array([[0, 0], [np.nan, 0], [0, 0]]))
    with pytest.raises(UserError, match="float64"):
        rival_scores([0.0, 1.0, 1.0], logits)
    with pytest.raises(UserError, match="dynamics"):
        rival_scores([0, 1, 1], logits, None, np.zeros((2, 4, 2)))
    with pytest.raises(UserError, match="features"):
        rival_scores([0, 1, 1], logits, np.zeros((2, 4)))
