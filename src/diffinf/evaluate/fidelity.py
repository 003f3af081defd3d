"""How close generated images come to real ones, in the features of a named extractor, class by class too.

The extractor's name is part of every figure: figures of two extractors do not compare.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffinf.evaluate.intervals import Floats
from diffinf.evaluate.neighbours import checked_features, membership, squared_radii


@dataclass(frozen=True)
class FrechetDistance:
    """Fréchet distance of two Gaussians fitted to features; 0 for equal moments, in squared feature units.

    Attributes:
        distance: mean_term + covariance_term.
        mean_term: squared distance of the means.
        covariance_term: tr(A + B - 2 (AB)^1/2) of the covariances.
        n_real, n_generated: samples; dimensions: features a sample.
        singular: there are not more samples than dimensions: the figure depends on their number above all.
    """

    distance: float
    mean_term: float
    covariance_term: float
    n_real: int
    n_generated: int
    dimensions: int
    singular: bool

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON knows them."""
        return asdict(self)


@dataclass(frozen=True)
class KernelDistance:
    """Kernel distance (KID): squared maximum mean discrepancy, unbiased, so it may fall below 0.

    Attributes:
        distance: mean over the blocks; std: their standard deviation, None for one block.
        blocks: number of blocks, each of block_size real and as many generated samples.
        n_real, n_generated: samples that the blocks were drawn from.
    """

    distance: float
    std: float | None
    blocks: int
    block_size: int
    n_real: int
    n_generated: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON knows them."""
        return asdict(self)


@dataclass(frozen=True)
class PrecisionRecallDensityCoverage:
    """Fidelity (precision, density) and variety (recall, coverage) by balls around samples.

    Attributes:
        precision: share of generated samples in at least one real sample's ball.
        recall: share of real samples in at least one generated sample's ball.
        density: mean number of real balls that hold a generated sample, over k; may exceed 1.
        coverage: share of real samples whose ball holds a generated sample.
        nearest_k: a ball reaches to its sample's k-th nearest neighbour in its own set.
        n_real, n_generated: samples.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    nearest_k: int
    n_real: int
    n_generated: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON knows them."""
        return asdict(self)


class FeatureMoments:
    """Mean and covariance of features that arrive in batches, in float64 (Chan's pairwise update).

    Args:
        dimensions: features a sample.
        name: what messages call the features.
    """

    def __init__(self, dimensions: int, name: str = "features") -> None:
        """Start empty."""
        self.n = 0
        self.name = name
        self.mean: Floats = np.zeros(dimensions)
        self.scatter: Floats = np.zeros((dimensions, dimensions))

    @classmethod
    def of(cls, features: ArrayLike, name: str = "features") -> Self:
        """The moments of features (N, D)."""
        array = checked_features(features, name)
        return cls(array.shape[1], name).update(array)

    def update(self, features: ArrayLike) -> Self:
        """Add a batch (B, D).

        Raises:
            ValueError: if the shape does not fit or a value is not finite; nothing is added then.
        """
        batch = checked_features(features, self.name, len(self.mean)).astype(np.float64)
        mean = batch.mean(axis=0)
        centred = batch - mean
        self._add(len(batch), mean, centred.T @ centred)
        return self

    def merge(self, other: FeatureMoments) -> Self:
        """Add what another accumulator saw, such as another process's."""
        if len(other.mean) != len(self.mean):
            raise ValueError(f"{self.name}: cannot merge {len(other.mean)} with {len(self.mean)} features")
        if other.n:
            self._add(other.n, other.mean, other.scatter)
        return self

    @property
    def covariance(self) -> Floats:
        """Unbiased covariance (D, D).

        Raises:
            ValueError: if there are fewer than two samples.
        """
        if self.n < 2:
            raise ValueError(f"{self.name}: a covariance needs at least 2 samples, got {self.n}")
        return self.scatter / (self.n - 1)

    def _add(self, n: int, mean: Floats, scatter: Floats) -> None:
        total = self.n + n
        step = mean - self.mean
        self.scatter = self.scatter + scatter + np.outer(step, step) * (self.n * n / total)
        self.mean = self.mean + step * (n / total)
        self.n = total


def frechet_distance(
    real: ArrayLike | FeatureMoments,
    generated: ArrayLike | FeatureMoments,
    *,
    allow_singular: bool = False,
) -> FrechetDistance:
    """Fréchet distance of real and generated features (arXiv 1706.08500).

    Args:
        real: (N, D), or their moments.
        generated: (M, D), or their moments.
        allow_singular: compute it from D samples or fewer too. That is defined, but a small sample alone
            makes it large, so such figures compare at equal sample sizes only.

    Raises:
        ValueError: if shapes do not fit, a value is not finite, a set has fewer than two samples, or D samples
            or fewer without ``allow_singular``.
    """
    first = real if isinstance(real, FeatureMoments) else FeatureMoments.of(real, "real")
    second = generated if isinstance(generated, FeatureMoments) else FeatureMoments.of(generated, "generated")
    dimensions = len(first.mean)
    if len(second.mean) != dimensions:
        raise ValueError(f"real samples have {dimensions} features, generated ones {len(second.mean)}")
    a, b = first.covariance, second.covariance
    singular = min(first.n, second.n) <= dimensions
    if singular and not allow_singular:
        raise ValueError(
            f"a covariance of {dimensions} features needs more than {dimensions} samples, got {first.n} real and "
            f"{second.n} generated: take more, use kernel_distance, or pass allow_singular=True"
        )
    step = first.mean - second.mean
    # tr (AB)^1/2 is the sum of the singular values of A^1/2 B^1/2: no complex root, no ill-conditioned one.
    overlap = np.linalg.svd(_root(a) @ _root(b), compute_uv=False).sum()
    mean_term = float(step @ step)
    covariance_term = max(0.0, float(np.trace(a) + np.trace(b) - 2 * overlap))
    return FrechetDistance(
        distance=mean_term + covariance_term,
        mean_term=mean_term,
        covariance_term=covariance_term,
        n_real=first.n,
        n_generated=second.n,
        dimensions=dimensions,
        singular=singular,
    )


def kernel_distance(
    real: ArrayLike, generated: ArrayLike, *, blocks: int = 100, block_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """Kernel distance with the cubic kernel (x·y/D + 1)³, averaged over random blocks (arXiv 1801.01401).

    Args:
        real: (N, D) features.
        generated: (M, D) features.
        blocks: number of blocks; one is enough, and is taken, where a block is all there is.
        block_size: samples of each side in a block, drawn without replacement; at most min(N, M).
        seed: seed of the drawing.

    Raises:
        ValueError: if shapes do not fit, a value is not finite, or there are fewer than two samples a side.
    """
    x, y = _pair(real, generated)
    size = min(block_size, len(x), len(y))
    if size < 2 or blocks < 1:
        raise ValueError(f"needs a block of at least 2 samples a side, got {blocks} blocks of {size}")
    if size == len(x) == len(y):
        blocks = 1
    generator = np.random.default_rng([seed, 0x51D])
    draws = np.array(
        [
            _discrepancy(
                x[generator.choice(len(x), size, replace=False)],
                y[generator.choice(len(y), size, replace=False)],
            )
            for _ in range(blocks)
        ]
    )
    return KernelDistance(
        distance=float(draws.mean()),
        std=float(draws.std(ddof=1)) if blocks > 1 else None,
        blocks=blocks,
        block_size=size,
        n_real=len(x),
        n_generated=len(y),
    )


def precision_recall_density_coverage(
    real: ArrayLike, generated: ArrayLike, nearest_k: int = 5
) -> PrecisionRecallDensityCoverage:
    """Precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797).

    Args:
        real: (N, D) features, N > nearest_k.
        generated: (M, D) features, M > nearest_k.
        nearest_k: a ball around a sample reaches to its k-th nearest other sample of the same set.

    Raises:
        ValueError: if shapes do not fit, a value is not finite, or there are too few samples for ``nearest_k``.
    """
    x, y = _pair(real, generated)
    radii, generated_radii = squared_radii(x, nearest_k, "real"), squared_radii(y, nearest_k, "generated")
    found = membership(x, y, radii, generated_radii)
    assert found.recalled is not None
    return PrecisionRecallDensityCoverage(
        precision=float((found.balls > 0).mean()),
        recall=float(found.recalled.mean()),
        density=float(found.balls.mean() / nearest_k),
        coverage=float(found.covered.mean()),
        nearest_k=nearest_k,
        n_real=len(x),
        n_generated=len(y),
    )


T = TypeVar("T")


def by_class(
    measure: Callable[[NDArray[Any], NDArray[Any]], T],
    real: ArrayLike,
    generated: ArrayLike,
    real_labels: ArrayLike,
    generated_labels: ArrayLike,
    class_names: Sequence[str] | None = None,
) -> dict[str, T]:
    """A measure of this module within each class that both sides have.

    Args:
        measure: called with the real and the generated features of a class.
        real: (N, D) features.
        generated: (M, D) features.
        real_labels: (N,) classes: indices into ``class_names``, or names.
        generated_labels: (M,) classes in the same coding.
        class_names: names of the classes, if labels are indices.

    Raises:
        ValueError: if the shapes do not fit, no class is on both sides, or the measure refuses a class, which is named.
    """
    x, y = _pair(real, generated)
    x_labels, y_labels = np.asarray(real_labels), np.asarray(generated_labels)
    if x_labels.shape != (len(x),) or y_labels.shape != (len(y),):
        raise ValueError(
            f"{len(x)} real and {len(y)} generated samples, labels of shapes {x_labels.shape} and {y_labels.shape}"
        )
    shared = np.intersect1d(x_labels, y_labels)
    if not len(shared):
        raise ValueError("no class has both real and generated samples")
    result = {}
    for label in shared:
        name = str(label) if class_names is None else class_names[int(label)]
        try:
            result[name] = measure(x[x_labels == label], y[y_labels == label])
        except ValueError as error:
            raise ValueError(f"class {name!r}: {error}") from error
    return result


def _pair(real: ArrayLike, generated: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    x = checked_features(real, "real")
    return x, checked_features(generated, "generated", x.shape[1])


def _root(covariance: Floats) -> Floats:
    values, vectors = np.linalg.eigh(covariance)
    # Eigenvalues that are 0 come as rounding of either sign.
    root: Floats = (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T
    return root


def _discrepancy(x: NDArray[Any], y: NDArray[Any]) -> float:
    x, y = x.astype(np.float64), y.astype(np.float64)
    n, dimensions = x.shape
    within = [(z @ z.T / dimensions + 1) ** 3 for z in (x, y)]
    across = (x @ y.T / dimensions + 1) ** 3
    pairs = sum(float(kernel.sum() - np.trace(kernel)) for kernel in within)
    return float(pairs / (n * (n - 1)) - 2 * across.mean())
