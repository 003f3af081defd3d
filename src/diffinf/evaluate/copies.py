"""Memorisation: generated images that copy one training image."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffinf.evaluate.intervals import Floats, Ints, wilson_interval
from diffinf.evaluate.neighbours import checked_features, nearest_squared_distances

COPY_RATIO = 0.5  # alpha of arXiv 2301.13188, section 5.1
COPY_NEIGHBOURS = 50  # n of the same


@dataclass(frozen=True)
class NearCopies:
    """Generated samples that are suspiciously close to one training sample.

    Attributes:
        n: generated samples; n_copies of them have a ratio below the threshold; share: their share, ci its
            95 % Wilson interval.
        generated_indices, train_indices, ratios: the copies, the closest first: which generated sample, which
            training sample it copies, and the distance between them over the mean distance of the generated
            sample to its nearest training samples.
        held_out_share: the share that real held-out images reach by chance, held_out_ci its interval; None
            where none were given. Copies beyond it are memorised.
        threshold: the ratio below which a sample counts; neighbours: how many nearest samples the mean is over.
    """

    n: int
    n_copies: int
    share: float
    ci: tuple[float, float]
    generated_indices: tuple[int, ...]
    train_indices: tuple[int, ...]
    ratios: tuple[float, ...]
    held_out_share: float | None
    held_out_ci: tuple[float, float] | None
    threshold: float
    neighbours: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON knows them."""
        return asdict(self)


def near_copies(
    train: ArrayLike,
    generated: ArrayLike,
    *,
    held_out: ArrayLike | None = None,
    threshold: float = COPY_RATIO,
    neighbours: int = COPY_NEIGHBOURS,
) -> NearCopies:
    """Find generated samples that copy a training sample (arXiv 2301.13188, section 5.1).

    A sample is a near copy if its nearest training sample is closer than ``threshold`` times the mean distance
    to its nearest ``neighbours``: close to ONE image, not merely in a crowded place.

    Args:
        train: (N, D) features of what the generator was trained on, N >= neighbours.
        generated: (M, D).
        held_out: (H, D) real images that were not trained on, for the share to expect by chance.
        threshold: ratio in (0, 1].
        neighbours: at least 2, and more than the copies that the training set itself holds of an image.

    Raises:
        ValueError: if shapes do not fit, a value is not finite, or there are too few training samples.
    """
    x = checked_features(train, "train")
    y = checked_features(generated, "generated", x.shape[1])
    if len(x) < 2:
        raise ValueError("train: 1 sample; whether one of them is copied takes at least 2")
    if not 2 <= neighbours <= len(x) or not 0 < threshold <= 1:
        raise ValueError(
            f"neighbours must be in 2..{len(x)}, the training samples, and threshold in (0, 1], "
            f"got {neighbours} and {threshold}"
        )
    ratios, nearest = _copy_ratios(x, y, neighbours)
    found = np.flatnonzero(ratios < threshold)
    found = found[np.argsort(ratios[found], kind="stable")]
    by_chance = None
    if held_out is not None:
        others, _ = _copy_ratios(x, checked_features(held_out, "held_out", x.shape[1]), neighbours)
        by_chance = wilson_interval(int((others < threshold).sum()), len(others))
    share = wilson_interval(len(found), len(y))
    return NearCopies(
        n=len(y),
        n_copies=len(found),
        share=share.estimate,
        ci=share.ci,
        generated_indices=tuple(found.tolist()),
        train_indices=tuple(nearest[found].tolist()),
        ratios=tuple(ratios[found].tolist()),
        held_out_share=by_chance.estimate if by_chance else None,
        held_out_ci=by_chance.ci if by_chance else None,
        threshold=threshold,
        neighbours=neighbours,
    )


def _copy_ratios(train: NDArray[Any], samples: NDArray[Any], neighbours: int) -> tuple[Floats, Ints]:
    squared, indices = nearest_squared_distances(samples, train, neighbours)
    distances = np.sqrt(squared)
    mean = distances.mean(axis=1)
    # A sample on top of many training samples that are one another's copies is a copy too: 0 / 0 is 0 here.
    ratios = np.divide(distances[:, 0], mean, out=np.zeros(len(mean)), where=mean > 0)
    return ratios, indices[:, 0]
