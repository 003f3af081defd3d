import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffinf.evaluate import neighbours
from diffinf.evaluate.copies import near_copies
from diffinf.evaluate.fidelity import (
    FeatureMoments,
    by_class,
    frechet_distance,
    kernel_distance,
    precision_recall_density_coverage,
)


@pytest.fixture
def sets():
    generator = np.random.default_rng(0)
    return generator.normal(size=(120, 6)), generator.normal(0.3, 1.2, size=(90, 6))


MEASURES = {
    "frechet": frechet_distance,
    "kernel": kernel_distance,
    "prdc": precision_recall_density_coverage,
    "copies": lambda real, generated: near_copies(real, generated, neighbours=5),
}


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda x: np.where(np.arange(len(x))[:, None] == 17, np.nan, x), "row 17"),
        (lambda x: np.where(np.arange(len(x))[:, None] == 3, np.inf, x), "row 3"),
        (lambda x: x[:0], "at least 1"),
        (lambda x: x[:, :0], "at least 1"),
        (lambda x: x[0], "shape"),
        (lambda x: x[:, :4], "4"),
        (lambda x: x.astype(str), "numbers"),
    ],
)
def test_bad_features_are_refused(measure, damage, message, sets):
    real, generated = sets
    with pytest.raises(ValueError, match=message):
        measure(real, damage(generated))


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_results_are_json(measure, sets):
    assert json.loads(json.dumps(measure(*sets).to_dict()))


def test_moments_do_not_depend_on_the_batches(sets):
    features = sets[0] + 1e4  # far from the origin: sums of squares would lose digits
    parts = FeatureMoments(6).update(features[:1]).update(features[1:50])
    parts.merge(FeatureMoments(6)).merge(FeatureMoments.of(features[50:]))
    assert parts.n == 120
    np.testing.assert_allclose(parts.mean, features.mean(0), rtol=1e-13)
    np.testing.assert_allclose(parts.covariance, np.cov(features.T), rtol=1e-9)


def test_moments_take_float32_without_its_rounding(sets):
    single = sets[0].astype(np.float32)
    moments = FeatureMoments.of(single)
    np.testing.assert_allclose(moments.covariance, np.cov(single.astype(np.float64).T), rtol=1e-12)


def test_a_refused_batch_leaves_the_moments(sets):
    moments = FeatureMoments.of(sets[0])
    before = moments.mean.copy()
    with pytest.raises(ValueError, match="row 0"):
        moments.update(np.full((2, 6), np.nan))
    with pytest.raises(ValueError, match="merge"):
        moments.merge(FeatureMoments(5))
    assert moments.n == 120 and (moments.mean == before).all()


def test_frechet_needs_more_samples_than_features_or_says_so(sets):
    real, generated = sets
    with pytest.raises(ValueError, match="more than 6 samples, got 6 real and 90"):
        frechet_distance(real[:6], generated)
    assert not frechet_distance(real[:7], generated).singular
    few = frechet_distance(real[:6], generated, allow_singular=True)
    assert few.singular and few.distance > frechet_distance(real, generated).distance
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        frechet_distance(real[:1], generated, allow_singular=True)
    with pytest.raises(ValueError, match="at least 2"):
        kernel_distance(real[:1], generated)


def test_frechet_of_moments_is_that_of_features(sets):
    real, generated = sets
    expected = frechet_distance(real, generated)
    assert frechet_distance(FeatureMoments.of(real), FeatureMoments.of(generated)) == expected
    with pytest.raises(ValueError, match="6 features"):
        frechet_distance(FeatureMoments.of(real), generated[:, :5])


def test_frechet_by_hand():
    """Equal covariances leave the distance of the means; a scale s of one of them leaves tr (1 - s)^2 A."""
    real = np.random.default_rng(1).normal(size=(50, 4))
    shifted = frechet_distance(real, real + np.array([3.0, 4.0, 0.0, 0.0]))
    assert shifted.distance == pytest.approx(25.0) and shifted.covariance_term == pytest.approx(0, abs=1e-12)
    centred = real - real.mean(0)
    scaled = frechet_distance(centred, 3 * centred)
    assert scaled.distance == pytest.approx(4 * np.trace(np.cov(real.T)))


def test_kernel_distance_is_centred_on_zero_for_one_distribution():
    generator = np.random.default_rng(3)
    same = [
        kernel_distance(generator.normal(size=(60, 5)), generator.normal(size=(60, 5))).distance
        for _ in range(40)
    ]
    assert min(same) < 0 < max(same)  # a biased estimate is never negative
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(40)


def test_kernel_distance_blocks(sets):
    real, generated = sets
    one = kernel_distance(real, generated, blocks=20, block_size=40)
    assert one == kernel_distance(real, generated, blocks=20, block_size=40)
    assert one != kernel_distance(real, generated, blocks=20, block_size=40, seed=1)
    assert (one.blocks, one.block_size) == (20, 40) and one.std is not None and one.std > 0
    whole = kernel_distance(real[:90], generated)
    assert whole.blocks == 1 and whole.std is None and whole.block_size == 90
    assert kernel_distance(real[:90], generated[::-1]).distance == pytest.approx(whole.distance)


def test_prdc_needs_more_samples_than_neighbours(sets):
    real, generated = sets
    with pytest.raises(ValueError, match="real: nearest_k = 5 needs at least 6 samples, got 5"):
        precision_recall_density_coverage(real[:5], generated)
    with pytest.raises(ValueError, match="generated: nearest_k = 5"):
        precision_recall_density_coverage(real, generated[:5])
    with pytest.raises(ValueError, match="at least 1"):
        precision_recall_density_coverage(real, generated, nearest_k=0)
    precision_recall_density_coverage(real[:6], generated[:6])


def test_prdc_of_copies_and_of_strangers(sets):
    real, _ = sets
    same = precision_recall_density_coverage(real, real)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1) and same.density == 1
    far = precision_recall_density_coverage(real, real + 100)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)
    one_mode = precision_recall_density_coverage(real, np.repeat(real[:1], 100, axis=0))
    assert one_mode.precision == 1 and one_mode.recall == 0 and one_mode.coverage < 0.2


def test_prdc_does_not_depend_on_the_tiles(sets, monkeypatch):
    whole = precision_recall_density_coverage(*sets)
    copies = near_copies(*sets, neighbours=7, threshold=0.8)
    monkeypatch.setattr(neighbours, "_TILE", 13)
    assert precision_recall_density_coverage(*sets) == whole
    tiled = near_copies(*sets, neighbours=7, threshold=0.8)
    assert tiled.generated_indices == copies.generated_indices and copies.n_copies > 0
    assert tiled.train_indices == copies.train_indices


points = st.integers(7, 25).flatmap(
    lambda n: st.lists(st.lists(st.integers(-3, 3), min_size=2, max_size=2), min_size=n, max_size=n)
)


@settings(max_examples=60, deadline=None)
@given(points, points, st.integers(1, 5), st.integers(-1000, 1000))
def test_prdc_bounds_and_invariances(real, generated, k, shift):
    """Whole numbers are exact, so ties and copies are everywhere and nothing may depend on rounding."""
    x, y = np.array(real), np.array(generated)
    found = precision_recall_density_coverage(x, y, k)
    assert all(0 <= value <= 1 for value in (found.precision, found.recall, found.coverage))
    assert found.density * k >= found.precision
    assert precision_recall_density_coverage(x[::-1] + shift, y[::-1] + shift, k) == found
    swapped = precision_recall_density_coverage(y, x, k)
    assert (swapped.precision, swapped.recall) == (found.recall, found.precision)
    more = precision_recall_density_coverage(x, np.concatenate([y, x]), k)
    assert more.coverage >= found.coverage


@settings(max_examples=40, deadline=None)
@given(points, st.integers(-50, 50), st.integers(1, 9))
def test_frechet_bounds_and_invariances(real, shift, scale):
    x = np.array(real, dtype=float)
    y = x[::-1] * 2 + [1.0, -1.0]
    distance = frechet_distance(x, y).distance
    assert frechet_distance(x, x).distance == pytest.approx(0, abs=1e-6)
    assert distance >= 0
    assert frechet_distance(y, x).distance == pytest.approx(distance, rel=1e-6, abs=1e-9)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    moved = frechet_distance((x + shift) @ turn, (y + shift) @ turn).distance
    assert moved == pytest.approx(distance, rel=1e-6, abs=1e-6)
    assert frechet_distance(x * scale, y * scale).distance == pytest.approx(
        scale**2 * distance, rel=1e-6, abs=1e-6
    )


def test_near_copies_finds_what_was_planted_and_nothing_else():
    generator = np.random.default_rng(5)
    train, fresh = generator.normal(size=(200, 32)), generator.normal(size=(100, 32))
    generated = fresh.copy()
    generated[[7, 30]] = train[11] + 0.05, train[150]
    found = near_copies(train, generated, held_out=generator.normal(size=(80, 32)))
    assert found.generated_indices == (30, 7) and found.train_indices == (150, 11)  # the closest first
    assert found.ratios[0] == 0 and 0 < found.ratios[1] < 0.5
    assert (found.n_copies, found.share, found.held_out_share) == (2, 0.02, 0.0)
    assert found.held_out_ci is not None and found.held_out_ci[1] > 0
    assert near_copies(train, fresh).n_copies == 0


def test_near_copies_of_a_duplicated_training_image():
    """The ratio to the second nearest would be 1 here, and hide the copy."""
    train = np.random.default_rng(6).normal(size=(100, 8))
    train[:5] = train[0]
    assert near_copies(train, train[:1] + 0.01, neighbours=20).n_copies == 1
    assert near_copies(train, train[:1], neighbours=5).ratios == (0.0,)


def test_exact_copies_are_at_distance_zero():
    """By |x|² + |y|² - 2xy they would be at a small one, or at the root of a negative one."""
    train = 1e3 + 1e3 * np.random.default_rng(8).normal(size=(300, 257))
    found = near_copies(train, train[:200])
    assert found.n_copies == 200 and set(found.ratios) == {0.0}


def test_near_copies_grow_with_the_threshold(sets):
    counts = [near_copies(*sets, threshold=t, neighbours=10).n_copies for t in (0.3, 0.6, 0.8, 1.0)]
    assert counts == sorted(counts) and counts[0] < counts[-1]


@pytest.mark.parametrize(
    "setting", [{"neighbours": 121}, {"neighbours": 1}, {"threshold": 0}, {"threshold": 2}]
)
def test_near_copies_refuses_settings_out_of_range(sets, setting):
    with pytest.raises(ValueError, match=r"2\.\.120"):
        near_copies(*sets, **setting)


def test_by_class(sets):
    real, generated = sets
    real_labels, generated_labels = np.arange(120) % 2, np.arange(90) % 3
    found = by_class(
        frechet_distance, real, generated, real_labels, generated_labels, ["old", "young", "none"]
    )
    assert found == {
        "old": frechet_distance(real[::2], generated[::3]),
        "young": frechet_distance(real[1::2], generated[1::3]),
    }
    assert list(by_class(kernel_distance, real, generated, real_labels, generated_labels)) == ["0", "1"]
    with pytest.raises(ValueError, match="class '1': generated: nearest_k"):
        by_class(precision_recall_density_coverage, real, generated, real_labels, np.repeat([0, 1], [87, 3]))
    with pytest.raises(ValueError, match="no class"):
        by_class(kernel_distance, real, generated, real_labels, np.full(90, 7))
    with pytest.raises(ValueError, match="labels of shapes"):
        by_class(kernel_distance, real, generated, real_labels[:5], generated_labels)
