"""What an embedder's similarities mean: how alike it finds pictures that do, and do not, show one person."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffinf.training.loop import step_generator

_BINS = 40


@dataclass(frozen=True)
class IdentityCalibration:
    """What an embedder's similarities mean, measured on persons, or pictures, that it was not trained on.

    Attributes:
        threshold: cosine in [-1, 1] that pairs of different persons exceed with probability 1 - quantile.
        accepted: share of pairs of one person above the threshold; None where nobody has two pictures.
        persons: persons looked at; where nobody names them, pictures.
        pairs_same: pairs of one person looked at.
        pairs_other: pairs of different persons looked at.
        edges: of a histogram of the cosines, (41,).
        same: share of the pairs of one person in each bin, (40,); empty where there are none.
        other: share of the pairs of different persons in each bin, (40,); empty where there are none.
    """

    threshold: float
    accepted: float | None
    persons: int
    pairs_same: int
    pairs_other: int
    edges: tuple[float, ...]
    same: tuple[float, ...]
    other: tuple[float, ...]


def calibrate(
    vectors: Tensor, persons: npt.NDArray[np.int64], quantile: float, *, most: int = 2000
) -> IdentityCalibration:
    """Find the similarity that different persons rarely exceed, from unit vectors (N, D) and persons (N,).

    At most the first `most` samples are compared, all pairs of them. Where nobody knows persons, give each sample a
    number of its own: the threshold is then that of pairs of different pictures, some of which may show one person,
    which makes it stricter.
    """
    vectors, persons = vectors[:most], persons[:most]
    cosine = (vectors @ vectors.T).numpy()
    same = persons[:, None] == persons[None, :]
    upper = np.triu(np.ones_like(same), k=1)
    genuine, impostor = cosine[same & upper], cosine[~same & upper]
    # With nobody to be mistaken for, every edit is of the same person.
    threshold = float(np.quantile(impostor, quantile)) if len(impostor) else -1.0
    accepted = float((genuine >= threshold).mean()) if len(genuine) else None
    every = np.concatenate([genuine, impostor])
    edges = np.histogram_bin_edges(every, bins=_BINS)
    return IdentityCalibration(
        threshold,
        accepted,
        len(np.unique(persons)),
        len(genuine),
        len(impostor),
        tuple(edges.tolist()),
        _shares(genuine, edges),
        _shares(impostor, edges),
    )


def _shares(values: npt.NDArray[np.float32], edges: npt.NDArray[np.float64]) -> tuple[float, ...]:
    """Share of values in each bin; empty for no values."""
    if not len(values):
        return ()
    shares: list[float] = (np.histogram(values, edges)[0] / len(values)).tolist()
    return tuple(shares)


def sample_rows(count: int, most: int, seed: int, persons: npt.NDArray[np.int64] | None) -> Tensor:
    """Choose at most `most` of `count` samples, in ascending order, (M,).

    Where `persons` (count,) are known, whole persons are taken one after the other, so that pairs of one person are
    among the samples; else samples at random.
    """
    generator = step_generator(seed, "identity samples", 0)
    order = torch.randperm(count, generator=generator)
    if persons is not None:
        rank = torch.randperm(int(persons.max()) + 1, generator=generator)[torch.from_numpy(persons)]
        order = order[torch.argsort(rank[order], stable=True)]
    return order[:most].sort().values
