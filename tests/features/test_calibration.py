"""Thresholds of identity against numpy, and the samples they are taken on."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import betainc

from diffinf.features.calibration import calibrate, sample_rows


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.99])
def test_the_threshold_is_the_quantile_of_pairs_of_different_persons(quantile: float) -> None:
    rng = np.random.default_rng(0)
    persons = rng.integers(0, 6, 40)
    vectors = rng.normal(size=(6, 5))[persons] + 0.5 * rng.normal(size=(40, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    same, other = [], []
    for i in range(40):
        for j in range(i):
            (same if persons[i] == persons[j] else other).append(vectors[i] @ vectors[j])
    found = calibrate(torch.from_numpy(vectors), persons, quantile)
    threshold = np.quantile(other, quantile)
    assert found.threshold == pytest.approx(threshold)
    assert found.accepted == pytest.approx(np.mean(np.array(same) >= threshold))
    assert (found.pairs_same, found.pairs_other, found.persons) == (len(same), len(other), 6)
    for shares, values in ((found.same, same), (found.other, other)):
        counts = np.histogram(values, found.edges)[0]
        assert counts.sum() == len(values)
        np.testing.assert_allclose(shares, counts / len(values))


def test_the_threshold_of_random_directions_is_the_closed_form() -> None:
    # For directions in d dimensions (1 + cosine) / 2 has the beta distribution with both parameters (d - 1) / 2.
    vectors = F.normalize(torch.randn(800, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    found = calibrate(vectors, np.arange(800), 0.99)
    assert betainc(2, 2, (1 + found.threshold) / 2) == pytest.approx(0.99, abs=0.002)
    assert found.pairs_other == 800 * 799 // 2


def test_where_nobody_names_persons_all_pairs_are_of_others() -> None:
    vectors = F.normalize(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    found = calibrate(vectors, np.arange(20), 0.99)
    assert (found.pairs_same, found.accepted, found.same) == (0, None, ())
    json.dumps(asdict(found), allow_nan=False)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_with_one_person_everybody_is_that_person(count: int) -> None:
    found = calibrate(F.normalize(torch.ones(count, 3), dim=1), np.zeros(count, dtype=np.int64), 0.99)
    assert found.threshold == -1 and found.other == ()
    assert found.accepted == (1.0 if count > 1 else None)


def test_only_so_many_samples_are_compared() -> None:
    vectors = F.normalize(torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    persons = np.arange(30) % 3
    found = calibrate(vectors, persons, 0.9, most=12)
    assert found == calibrate(vectors[:12], persons[:12], 0.9)
    assert found.pairs_same + found.pairs_other == 12 * 11 // 2


def test_samples_are_drawn_once_and_the_same_again() -> None:
    rows = sample_rows(100, 30, 0, None)
    assert len(rows) == 30 and torch.equal(rows, rows.unique())
    assert torch.equal(rows, sample_rows(100, 30, 0, None))
    assert not torch.equal(rows, sample_rows(100, 30, 1, None))
    assert torch.equal(sample_rows(10, 30, 0, None), torch.arange(10))


def test_of_known_persons_all_pictures_are_taken() -> None:
    persons = np.arange(200) % 50
    chosen, counts = np.unique(persons[sample_rows(200, 40, 0, persons).numpy()], return_counts=True)
    assert len(chosen) == 10 and (counts == 4).all()
    assert chosen.tolist() != list(range(10))
