"""How well identities keep apart: genuine (same identity) against impostor (two identities) scores.

All figures are exact for any number of pairs, without holding them: see `diffinf.evaluate.thresholds`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffinf.evaluate.fidelity import FeatureMoments
from diffinf.evaluate.intervals import Floats, Ints
from diffinf.evaluate.neighbours import checked_features
from diffinf.evaluate.thresholds import Criterion, Point, ScoreBins, Scores, first_thresholds

_SHOWN_BINS = 128  # for a plot; divides the bins that are counted


@dataclass(frozen=True)
class Separability:
    """Separation of genuine and impostor scores; error rates in 0..1, lower is better.

    A pair matches at threshold t if its score is t or above. FMR is the share of impostor pairs that match,
    FNMR that of genuine pairs that do not.

    Attributes:
        fdr: Fisher discriminant ratio (mean_g - mean_i)² / (var_g + var_i), population variances; higher is
            better, blind to which side scores higher; None if no score varies.
        eer: equal error rate: FMR = FNMR, or their mean at whichever of the two thresholds around the crossing
            has the smaller sum (the convention of FVC2000).
        fmr100: the least FNMR where FMR <= 1/100; fmr1000: where FMR <= 1/1000. With fewer than that many
            impostor pairs not one may match.
        eer_threshold, fmr100_threshold, fmr1000_threshold: thresholds where they are reached; of the last two the
            least such.
        genuine_mean, genuine_std, impostor_mean, impostor_std: of the scores.
        n_genuine, n_impostor: pairs.
        histogram_edges: (B + 1,) edges over the scores' range; genuine_histogram, impostor_histogram: (B,) counts.
    """

    fdr: float | None
    eer: float
    fmr100: float
    fmr1000: float
    eer_threshold: float
    fmr100_threshold: float
    fmr1000_threshold: float
    genuine_mean: float
    genuine_std: float
    impostor_mean: float
    impostor_std: float
    n_genuine: int
    n_impostor: int
    histogram_edges: tuple[float, ...]
    genuine_histogram: tuple[int, ...]
    impostor_histogram: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON knows them."""
        return asdict(self)


@dataclass(frozen=True)
class IdentitySeparability:
    """Separability of embedded images, and how much the images of one identity differ.

    Attributes:
        separability: over all pairs of different images, scored by cosine similarity.
        diversity: mean over identities of 1 - mean cosine similarity of their pairs, in 0..2: 0 where every
            image of a person is the same. Higher is more varied, or less of one person.
        least_diverse: the identity with the least, and its value.
        n_images, n_identities: of these n_single have one image, hence no genuine pair.
        normalised: images whose embedding did not come at unit length (to 1e-3) and was brought to it.
    """

    separability: Separability
    diversity: float
    least_diverse: tuple[str, float]
    n_images: int
    n_identities: int
    n_single: int
    normalised: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON knows them."""
        return asdict(self)


def separability(genuine: ArrayLike, impostor: ArrayLike) -> Separability:
    """Separation of two sets of similarity scores (distances: give their negatives).

    Args:
        genuine: (G,) scores of pairs of one identity.
        impostor: (I,) scores of pairs of two identities.

    Raises:
        ValueError: if either is empty or not one-dimensional, or a score is not finite.
    """
    sides = [np.asarray(genuine, dtype=np.float64), np.asarray(impostor, dtype=np.float64)]
    for name, scores in zip(("genuine", "impostor"), sides, strict=True):
        if scores.ndim != 1 or not len(scores):
            raise ValueError(f"{name} scores must have shape (N,), N > 0, got {scores.shape}")
        if not np.isfinite(scores).all():
            bad = ~np.isfinite(scores)
            raise ValueError(
                f"{name}: {int(bad.sum())} of {len(scores)} scores are not finite, the first is {int(bad.argmax())}"
            )
    low, high = min(side.min() for side in sides), max(side.max() for side in sides)
    return streamed_separability(lambda: [(sides[0], sides[1])], float(low), float(high))


def identity_separability(
    embeddings: ArrayLike, identities: ArrayLike, *, block: int = 2048
) -> IdentitySeparability:
    """Separability of every pair of images, in blocks: memory O(N D + block²), time O(N² D), twice.

    Args:
        embeddings: (N, D) of an embedder that had no part in making the images.
        identities: (N,) who each image shows.
        block: images a side of a block.

    Raises:
        ValueError: if shapes do not fit, a value is not finite, an embedding is zero, an identity is missing,
            there is one identity only, or none has two images.
    """
    vectors = checked_features(embeddings, "embeddings")
    names, codes = _identities(identities, len(vectors))
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    if not lengths.all():
        raise ValueError(f"embeddings: row {int((lengths == 0).argmax())} is zero and has no direction")
    counts = np.bincount(codes)
    if len(names) < 2 or counts.max() < 2:
        raise ValueError(
            f"{len(vectors)} images of {len(names)} identities: separability needs at least two identities, one "
            "of them with two images"
        )
    diversity = _diversity(vectors, lengths, codes, counts)
    repeated = np.flatnonzero(counts > 1)
    least = repeated[np.argmin(diversity[repeated])]
    return IdentitySeparability(
        separability=streamed_separability(lambda: _pair_scores(vectors, lengths, codes, block), -1.0, 1.0),
        diversity=float(diversity[repeated].mean()),
        least_diverse=(str(names[least]), float(diversity[least])),
        n_images=len(vectors),
        n_identities=len(names),
        n_single=int((counts == 1).sum()),
        normalised=int((np.abs(lengths - 1) > 1e-3).sum()),
    )


def streamed_separability(scores: Callable[[], Scores], low: float, high: float) -> Separability:
    """Separability of scores that arrive in blocks, several times, bit for bit the same each time.

    Args:
        scores: called once for each pass; yields blocks of (genuine (G,), impostor (I,)), either may be empty.
        low: about the smallest score; high: about the largest. Scores beyond them count all the same.

    Raises:
        ValueError: if there are no genuine or no impostor scores, or one is not finite.
    """
    whole = ScoreBins(low, high)
    moments = FeatureMoments(1, "genuine scores"), FeatureMoments(1, "impostor scores")
    for sides in scores():
        for side, (values, moment) in enumerate(zip(sides, moments, strict=True)):
            if len(values):
                moment.update(values[:, None])
                whole.add(side, values)
    for name, moment in zip(("genuine", "impostor"), moments, strict=True):
        if not moment.n:
            raise ValueError(f"there are no {name} scores")
    n_genuine, n_impostor = (moment.n for moment in moments)
    criteria: list[Criterion] = [
        lambda below, above: below * n_impostor >= above * n_genuine,  # FNMR >= FMR, in whole numbers
        lambda below, above: above * 100 <= n_impostor,
        lambda below, above: above * 1000 <= n_impostor,
    ]
    crossing, at_100, at_1000 = first_thresholds(scores, whole, (n_genuine, n_impostor), criteria)
    (g_mean, g_var), (i_mean, i_var) = (
        (float(moment.mean[0]), float(moment.scatter[0, 0]) / moment.n) for moment in moments
    )
    eer, eer_threshold = _equal_error(crossing, n_genuine, n_impostor)
    shown = whole.counts.reshape(2, _SHOWN_BINS, -1).sum(axis=2)
    return Separability(
        fdr=(g_mean - i_mean) ** 2 / (g_var + i_var) if g_var + i_var > 0 else None,
        eer=eer,
        fmr100=at_100[1].below / n_genuine,
        fmr1000=at_1000[1].below / n_genuine,
        eer_threshold=eer_threshold,
        fmr100_threshold=at_100[1].threshold,
        fmr1000_threshold=at_1000[1].threshold,
        genuine_mean=g_mean,
        genuine_std=math.sqrt(g_var),
        impostor_mean=i_mean,
        impostor_std=math.sqrt(i_var),
        n_genuine=n_genuine,
        n_impostor=n_impostor,
        histogram_edges=tuple(np.linspace(low, high, _SHOWN_BINS + 1).tolist()),
        genuine_histogram=tuple(shown[0].tolist()),
        impostor_histogram=tuple(shown[1].tolist()),
    )


def _equal_error(crossing: tuple[Point, Point], n_genuine: int, n_impostor: int) -> tuple[float, float]:
    # Whole numbers again: rates that are equal must not differ by rounding.
    before, after = crossing
    if after.below * n_impostor == after.above * n_genuine:
        return after.below / n_genuine, after.threshold
    sums = [point.below * n_impostor + point.above * n_genuine for point in crossing]
    chosen = before if sums[0] <= sums[1] else after
    return (chosen.below / n_genuine + chosen.above / n_impostor) / 2, chosen.threshold


def _identities(identities: ArrayLike, n: int) -> tuple[NDArray[Any], Ints]:
    given = np.asarray(identities)
    if given.shape != (n,):
        raise ValueError(f"identities must have shape ({n},), one for each embedding, got {given.shape}")
    for index, value in enumerate(given.tolist()):
        if value is None or value != value:
            raise ValueError(f"identities: row {index} has none")
    return np.unique(given, return_inverse=True)


def _diversity(vectors: NDArray[Any], lengths: Floats, codes: Ints, counts: Ints) -> Floats:
    sums = np.zeros((len(counts), vectors.shape[1]))
    for start in range(0, len(vectors), 4096):
        rows = slice(start, start + 4096)
        np.add.at(sums, codes[rows], vectors[rows] / lengths[rows, None])
    # The square of a sum of unit vectors is their number and twice the cosine of each pair.
    pairs = np.maximum(counts * (counts - 1), 1)
    diversity: Floats = 1 - ((sums * sums).sum(axis=1) - counts) / pairs
    return np.maximum(diversity, 0.0)  # copies: not below 0 by rounding


def _pair_scores(
    vectors: NDArray[Any], lengths: Floats, codes: Ints, block: int
) -> Iterator[tuple[Floats, Floats]]:
    """Cosine similarities of every pair once, block by block."""
    for i in range(0, len(vectors), block):
        rows = slice(i, i + block)
        x = vectors[rows] / lengths[rows, None]
        for j in range(i, len(vectors), block):
            columns = slice(j, j + block)
            cosines = x @ (vectors[columns] / lengths[columns, None]).T
            same = codes[rows, None] == codes[columns]
            wanted = np.triu(np.ones(cosines.shape, dtype=bool), k=1) if i == j else np.ones_like(same)
            yield cosines[same & wanted], cosines[~same & wanted]
