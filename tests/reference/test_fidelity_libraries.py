"""Fidelity against SciPy's closed form, scikit-learn's kernels and neighbours, and the papers' definitions."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors

from diffinf.evaluate.copies import near_copies
from diffinf.evaluate.fidelity import (
    frechet_distance,
    kernel_distance,
    precision_recall_density_coverage,
)


def correlated(generator, n, dimensions, shift=0.0):
    mixing = generator.normal(size=(dimensions, dimensions))
    return generator.normal(size=(n, dimensions)) @ mixing + shift


@pytest.mark.parametrize(("n", "m", "dimensions"), [(60, 80, 3), (300, 200, 16), (400, 400, 96)])
def test_frechet_matches_scipy(n, m, dimensions):
    generator = np.random.default_rng(dimensions)
    x, y = correlated(generator, n, dimensions), correlated(generator, m, dimensions, 0.5)
    a, b = np.cov(x.T), np.cov(y.T)
    step = x.mean(0) - y.mean(0)
    expected = step @ step + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    assert frechet_distance(x, y).distance == pytest.approx(expected, rel=1e-6)


def test_singular_frechet_matches_the_closed_form_on_the_spanned_subspace():
    """Features that never vary add nothing: the singular figure is that of the others, which SciPy can do."""
    generator = np.random.default_rng(1)
    x, y = correlated(generator, 50, 8), correlated(generator, 50, 8, 1.0)
    pad = np.zeros((50, 60))
    turn, _ = np.linalg.qr(generator.normal(size=(68, 68)))
    found = frechet_distance(np.hstack([x, pad]) @ turn, np.hstack([y, pad]) @ turn, allow_singular=True)
    assert found.singular and found.distance == pytest.approx(frechet_distance(x, y).distance, rel=1e-6)


def test_kernel_distance_matches_scikit_learn():
    generator = np.random.default_rng(2)
    x, y = correlated(generator, 70, 12), correlated(generator, 70, 12, 0.2)
    n = 70
    xx, yy, xy = (polynomial_kernel(a, b, degree=3, coef0=1) for a, b in ((x, x), (y, y), (x, y)))
    off = ~np.eye(n, dtype=bool)
    expected = xx[off].mean() + yy[off].mean() - 2 * xy.mean()
    assert kernel_distance(x, y).distance == pytest.approx(expected, rel=1e-10)


def definitions(real, generated, k):
    """The four measures as the papers write them, over all pairs."""

    def radius(points):
        distances = cdist(points, points)
        return [sorted(np.delete(row, i))[k - 1] for i, row in enumerate(distances)]

    real_radius, generated_radius = radius(real), radius(generated)
    n, m = len(real), len(generated)
    distance = cdist(real, generated)
    in_real = [[distance[i, j] < real_radius[i] for i in range(n)] for j in range(m)]
    in_generated = [[distance[i, j] < generated_radius[j] for j in range(m)] for i in range(n)]
    return (
        sum(any(row) for row in in_real) / m,
        sum(any(row) for row in in_generated) / n,
        sum(sum(row) for row in in_real) / (k * m),
        sum(min(distance[i]) < real_radius[i] for i in range(n)) / n,
    )


@pytest.mark.parametrize("kind", ["spread", "far from the origin", "ties"])
@pytest.mark.parametrize(("n", "m", "k"), [(60, 45, 5), (30, 80, 1), (12, 13, 10)])
def test_prdc_matches_the_definitions(kind, n, m, k):
    generator = np.random.default_rng(n)
    real, generated = correlated(generator, n, 4), correlated(generator, m, 4, 0.7)
    if kind == "far from the origin":
        real, generated = real + 1e5, generated + 1e5
    if kind == "ties":
        real, generated = real.round(), generated.round()
    found = precision_recall_density_coverage(real, generated, k)
    values = found.precision, found.recall, found.density, found.coverage
    assert values == pytest.approx(definitions(real, generated, k), abs=1e-12)


def test_copy_ratios_match_scikit_learn():
    generator = np.random.default_rng(4)
    train, generated = correlated(generator, 150, 3), correlated(generator, 60, 3)
    found = near_copies(train, generated, neighbours=20, threshold=1.0)
    distances, indices = NearestNeighbors(n_neighbors=20).fit(train).kneighbors(generated)
    ratios = distances[:, 0] / distances.mean(1)
    assert found.n_copies == 60
    order = np.argsort(ratios)
    assert found.generated_indices == tuple(order) and found.train_indices == tuple(indices[order, 0])
    assert found.ratios == pytest.approx(ratios[order])
