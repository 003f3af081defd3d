import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffinf.evaluate import thresholds
from diffinf.evaluate.separability import identity_separability, separability


def brute_force(genuine, impostor):
    """FDR, EER, FMR100, FMR1000 by trying every score, and one above them all, in exact fractions."""
    genuine, impostor = [float(v) for v in genuine], [float(v) for v in impostor]
    points = []
    for threshold in [*sorted({*genuine, *impostor}), np.inf]:
        fmr = Fraction(sum(v >= threshold for v in impostor), len(impostor))
        fnmr = Fraction(sum(v < threshold for v in genuine), len(genuine))
        points.append((fmr, fnmr))
    before = [point for point in points if point[1] <= point[0]][-1]
    after = next(point for point in points if point[1] >= point[0])
    eer = sum(before if sum(before) <= sum(after) else after) / 2
    spread = np.var(genuine) + np.var(impostor)
    return (
        (np.mean(genuine) - np.mean(impostor)) ** 2 / spread if spread > 0 else None,
        float(eer),
        float(min(fnmr for fmr, fnmr in points if fmr <= Fraction(1, 100))),
        float(min(fnmr for fmr, fnmr in points if fmr <= Fraction(1, 1000))),
    )


def figures(found):
    return found.fdr, found.eer, found.fmr100, found.fmr1000


def check(found, expected):
    assert (found.fdr is None) == (expected[0] is None)
    assert figures(found)[1:] == pytest.approx(expected[1:], abs=1e-12)
    if expected[0] is not None:
        assert found.fdr == pytest.approx(expected[0], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("digits", [1, 2, 15])
@pytest.mark.parametrize(("n_genuine", "n_impostor"), [(1, 1), (40, 30), (37, 1500), (300, 2500)])
@pytest.mark.parametrize("shift", [-2.0, 0.0, 1.0, 3.0])
def test_matches_brute_force(digits, n_genuine, n_impostor, shift):
    """One digit: ties everywhere. A negative shift: impostors score higher."""
    generator = np.random.default_rng([n_genuine, digits])
    genuine = generator.normal(shift, 1.5, n_genuine).round(digits)
    impostor = generator.normal(size=n_impostor).round(digits)
    check(separability(genuine, impostor), brute_force(genuine, impostor))


@pytest.mark.parametrize("limit", [1, 7])
def test_bins_that_are_cut_again_change_nothing(limit, monkeypatch):
    monkeypatch.setattr(thresholds, "_HELD", limit)
    monkeypatch.setattr(thresholds, "_BINS", 128)
    generator = np.random.default_rng(2)
    for digits in (1, 3, 15):
        genuine, impostor = (
            generator.normal(1, 1, 90).round(digits),
            generator.normal(size=1200).round(digits),
        )
        check(separability(genuine, impostor), brute_force(genuine, impostor))


def test_scores_next_to_each_other_are_told_apart(monkeypatch):
    monkeypatch.setattr(thresholds, "_BINS", 128)
    monkeypatch.setattr(thresholds, "_HELD", 2)
    one = 0.7
    two, three = np.nextafter(one, 1), np.nextafter(np.nextafter(one, 1), 1)
    impostor, genuine = [one, two, one, -1.0], [two, three, three, 1.0]
    check(separability(genuine, impostor), brute_force(genuine, impostor))


scores = st.lists(st.integers(-8, 8).map(lambda v: v / 8), min_size=1, max_size=40)


@settings(max_examples=150, deadline=None)
@given(scores, scores)
def test_bounds_and_invariances(genuine, impostor):
    found = separability(genuine, impostor)
    check(found, brute_force(genuine, impostor))
    assert 0 <= found.eer <= 1 and 0 <= found.fmr100 <= found.fmr1000 <= 1
    # A rising map of the scores moves no rate; turning both sides around and swapping them neither.
    assert separability(np.array(genuine) * 4 - 1, np.array(impostor) * 4 - 1).eer == found.eer
    assert separability(-np.array(impostor), -np.array(genuine)).fdr == pytest.approx(found.fdr)
    better = separability(np.array(genuine) + 0.125, impostor)
    # (Not so the equal error rate: which of two thresholds it is taken at may change.)
    assert better.fmr100 <= found.fmr100 and better.fmr1000 <= found.fmr1000
    assert sum(found.genuine_histogram) == len(genuine) and sum(found.impostor_histogram) == len(impostor)
    # The thresholds do what is said of them.
    for threshold, most, fnmr in (
        (found.fmr100_threshold, 0.01, found.fmr100),
        (found.fmr1000_threshold, 0.001, found.fmr1000),
    ):
        assert np.mean(np.array(impostor) >= threshold) <= most
        assert np.mean(np.array(genuine) < threshold) == fnmr


def test_apart_and_together():
    apart = separability([0.8, 0.9], [0.0, 0.1])
    assert figures(apart)[1:] == (0, 0, 0) and 0.1 < apart.eer_threshold <= 0.8
    assert apart.fdr == pytest.approx(0.8**2 / (2 * 0.05**2))
    reversed_ = separability([0.0, 0.1], [0.8, 0.9])
    assert figures(reversed_)[1:] == (1, 1, 1) and reversed_.fdr == pytest.approx(apart.fdr)
    equal = separability([0.5, 0.5], [0.5])
    assert equal.fdr is None and equal.eer == 0.5
    assert json.loads(json.dumps(apart.to_dict()))["n_genuine"] == 2


def test_bad_scores_are_refused():
    for genuine, impostor, message in (
        ([], [0.1], "genuine scores must"),
        ([0.1], [], "impostor scores must"),
        ([[0.1]], [0.1], "shape"),
        ([0.1, 0.2, np.nan], [0.1], "genuine: 1 of 3 scores are not finite, the first is 2"),
        ([0.1], [np.inf], "impostor"),
    ):
        with pytest.raises(ValueError, match=message):
            separability(genuine, impostor)


@pytest.fixture
def images():
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(12, 8))
    identities = np.repeat(np.arange(12), 9)[generator.permutation(108)]
    return centres[identities] + 0.8 * generator.normal(size=(108, 8)), identities


def all_pairs(embeddings, identities):
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    rows, columns = np.triu_indices(len(unit), 1)
    cosines = (unit @ unit.T)[rows, columns]
    same = identities[rows] == identities[columns]
    return cosines[same], cosines[~same]


@pytest.mark.parametrize("block", [9, 50, 2048])
def test_embeddings_in_blocks_match_brute_force_over_all_pairs(images, block):
    found = identity_separability(*images, block=block)
    genuine, impostor = all_pairs(*images)
    check(found.separability, brute_force(genuine, impostor))
    assert (found.separability.n_genuine, found.separability.n_impostor) == (len(genuine), len(impostor))
    assert found.separability.genuine_std == pytest.approx(np.std(genuine))
    expected, _ = np.histogram(impostor, found.separability.histogram_edges)
    assert np.array_equal(found.separability.impostor_histogram, expected)


def test_diversity_is_by_identity_whatever_their_size(images):
    embeddings, identities = images
    embeddings, identities = embeddings[identities < 3], identities[identities < 3]
    kept = (identities != 0) | (np.cumsum(identities == 0) <= 2)  # two images of the first
    embeddings, identities = embeddings[kept], identities[kept]
    by_hand = [
        1 - all_pairs(embeddings[identities == i], identities[identities == i])[0].mean() for i in range(3)
    ]
    found = identity_separability(embeddings, identities)
    assert found.diversity == pytest.approx(np.mean(by_hand))
    assert found.least_diverse == (str(np.argmin(by_hand)), pytest.approx(min(by_hand)))


def test_copies_separate_well_and_have_no_diversity(images):
    """What fools separability alone."""
    embeddings, identities = images
    copies = embeddings[[np.flatnonzero(identities == i)[0] for i in identities]]
    found, honest = identity_separability(copies, identities), identity_separability(embeddings, identities)
    assert found.separability.fdr > honest.separability.fdr and found.separability.eer == 0
    assert 0 <= found.diversity == pytest.approx(0, abs=1e-12) and honest.diversity > 0.2


def test_lengths_do_not_matter_and_are_counted(images):
    embeddings, identities = images
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    assert identity_separability(unit, identities).normalised == 0
    longer = unit.copy()
    longer[[3, 5]] *= 7
    found = identity_separability(longer, identities)
    assert found.normalised == 2
    assert found.separability.fdr == pytest.approx(identity_separability(unit, identities).separability.fdr)
    single = identity_separability(unit.astype(np.float32), identities)
    assert single.normalised == 0 and single.separability.eer == pytest.approx(
        found.separability.eer, abs=1e-3
    )


def test_identities_by_name_and_single_images(images):
    embeddings, identities = images
    names = np.array([f"person {i}" for i in identities], dtype=object)
    names[identities == 0] = [f"once {i}" for i in range(9)]
    found = identity_separability(embeddings, names)
    assert (found.n_images, found.n_identities, found.n_single) == (108, 20, 9)
    assert found.least_diverse[0].startswith("person")


def test_bad_images_are_refused(images):
    embeddings, identities = images
    zero, missing = embeddings.copy(), [None, *identities[1:].tolist()]
    zero[4] = 0
    for vectors, people, message in (
        (np.where(np.arange(108)[:, None] == 6, np.nan, embeddings), identities, "row 6"),
        (zero, identities, "row 4 is zero"),
        (embeddings, identities[:5], "shape"),
        (embeddings, missing, "row 0 has none"),
        (embeddings, np.zeros(108), "of 1 identities"),
        (embeddings, np.arange(108), "of 108 identities"),
        (embeddings[:0], identities[:0], "at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            identity_separability(vectors, people)
