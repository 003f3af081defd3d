"""Contexts, as unit vectors: where they come from, and which one each is led away from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffinf.errors import UserError
from diffinf.training.loop import step_generator

Strategy = Literal["none", "null", "random", "close", "mid", "far"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
NO_CONTEXT = -1  # among indices: none of the run's contexts
SAME = 1 - 1e-6  # cosine from which on two contexts are one: float32 tells them no further apart
_UNIT = 1e-3  # a length so far from 1 is more than rounding
_BLOCK = 2**21  # cosines held at once
_DRAWS = 32


@dataclass(frozen=True)
class NegativeChoice:
    """Which context each of the chosen rows is led away from.

    Attributes:
        indices: int64 (R,), rows of the contexts; -1 for none and null.
        cosine: float32 (R,), between each context and its negative one; NaN for none and null.
        normalised: how many of the contexts were not of unit length, and were brought to it.
        duplicates: how many of the R contexts stand among the contexts more than once. A context's duplicates show the
            same person, and are never its negative.
    """

    indices: Tensor
    cosine: Tensor
    normalised: int
    duplicates: int


def unit_contexts(contexts: Tensor) -> tuple[Tensor, int]:
    """Return contexts (N, D) at unit length, float32, and how many were longer or shorter by more than 0.1 %.

    Raises:
        UserError: they are not a matrix with a row, or a row is not finite or 0.
    """
    if contexts.ndim != 2 or 0 in contexts.shape:
        raise UserError(f"contexts: expected shape (N, D), N and D at least 1, found {tuple(contexts.shape)}")
    vectors = contexts.to(torch.float32)
    length = vectors.norm(dim=1)
    wrong = ~(length.isfinite() & (length > 0))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise UserError(
            f"contexts: row {row} is {'0 throughout' if length[row] == 0 else 'not finite'} ({int(wrong.sum())} such "
            f"rows of {len(vectors)}); leave them out"
        )
    return F.normalize(vectors, dim=1), int(((length - 1).abs() > _UNIT).sum())


def choose_negative_contexts(
    contexts: Tensor, strategy: Strategy, seed: int = 0, *, rows: Tensor | None = None
) -> NegativeChoice:
    """Choose a negative context for each context, by cosine over all of them (NegFaceDiff, arXiv 2508.09661).

    "close": the most similar other; "far": the least similar; "mid": the median, of an even number of others the lower
    one; "random": any other, each as likely; "null": the denoiser's empty context; "none": no guidance. Cosines are
    computed in blocks of rows: memory grows with N, time with N².

    Args:
        contexts: (N, D), of any length but 0: one a person.
        strategy: see above.
        seed: of "random".
        rows: int64 (R,), whom to choose for; by default everybody.

    Raises:
        UserError: the strategy is unknown, a context is not finite or 0, or one has no other to choose from.
    """
    if strategy not in STRATEGIES:
        raise UserError(f"negative: expected one of {', '.join(STRATEGIES)}, found {strategy!r}")
    vectors, normalised = unit_contexts(contexts)
    asked = torch.arange(len(vectors)) if rows is None else rows.cpu()
    # Filled block by block: small tensors kept from each block would break up the memory that the next one needs.
    chosen, cosine = torch.full((len(asked),), NO_CONTEXT), torch.full((len(asked),), torch.nan)
    if strategy in ("none", "null"):
        return NegativeChoice(chosen, cosine, normalised, 0)
    # A draw depends on the seed and on N, not on the rows asked for: processes share them out.
    drawn = _draws(len(vectors), seed)[:, asked] if strategy == "random" else None
    duplicates = 0
    size = max(1, _BLOCK // len(vectors))
    for start in range(0, len(asked), size):
        part = asked[start : start + size]
        similar = vectors[part] @ vectors.T  # (B, N)
        excluded = similar >= SAME
        excluded[torch.arange(len(part)), part] = True
        if excluded.all(1).any():
            row = int(part[excluded.all(1)][0])
            said = (
                f"all other {len(vectors) - 1} are the same as row {row}"
                if len(vectors) > 1
                else "there is only one"
            )
            raise UserError(
                f"negative: {strategy} needs at least two different contexts, but {said}; give more contexts, or "
                "choose null or none"
            )
        duplicates += int((excluded.sum(1) > 1).sum())
        place = slice(start, start + size)
        found = _pick(similar, excluded, strategy, None if drawn is None else drawn[:, place], seed)
        chosen[place] = found
        cosine[place] = similar.gather(1, found[:, None]).squeeze(1)
    return NegativeChoice(chosen, cosine, normalised, duplicates)


def _pick(similar: Tensor, excluded: Tensor, strategy: Strategy, drawn: Tensor | None, seed: int) -> Tensor:
    """Return one column (B,) for each row of cosines (B, N), none of those excluded."""
    if strategy == "close":
        return similar.masked_fill(excluded, -torch.inf).argmax(1)
    if strategy == "far":
        return similar.masked_fill(excluded, torch.inf).argmin(1)
    others = (~excluded).sum(1)
    if drawn is None:
        ranked = similar.masked_fill(excluded, torch.inf)
        result = torch.empty(len(similar), dtype=torch.int64)
        for count in sorted(set(others.tolist())):  # one value, where there are no duplicates
            alike = others == count
            values = ranked[alike].numpy()
            place = (count - 1) // 2
            median = np.partition(values, place, axis=1)[:, place, None]  # twelve times as fast as kthvalue
            result[alike] = torch.from_numpy((values == median).argmax(1))
        return result
    free = ~excluded.gather(1, drawn.T)  # (B, draws)
    result = drawn.T.gather(1, free.long().argmax(1, keepdim=True)).squeeze(1)
    for row in (~free.any(1)).nonzero().squeeze(1).tolist():  # nearly all are duplicates
        left = (~excluded[row]).nonzero().squeeze(1)
        generator = step_generator(seed, "negative context", int(drawn[0, row]))
        result[row] = left[torch.randint(len(left), (1,), generator=generator)]
    return result


def _draws(n: int, seed: int) -> Tensor:
    """Return draws (_DRAWS, N) of any context but one's own; the first that is no duplicate counts."""
    drawn = torch.randint(
        0, max(1, n - 1), (_DRAWS, n), generator=step_generator(seed, "negative contexts", n)
    )
    return torch.where(drawn >= torch.arange(n), drawn + 1, drawn).clamp_max(n - 1)


def random_contexts(count: int, size: int, seed: int = 0) -> Tensor:
    """Return contexts (count, size) drawn evenly from the unit sphere.

    Raises:
        UserError: count or size is less than 1.
    """
    if count < 1 or size < 1:
        raise UserError(
            f"random contexts: expected at least one of at least one component, found {count} x {size}"
        )
    return F.normalize(
        torch.randn(count, size, generator=step_generator(seed, "random contexts", 0)).double(), dim=1
    ).float()


def identity_contexts(vectors: Tensor, identities: Tensor) -> Tensor:
    """Return the mean direction (P, D) of the vectors (N, D) of each of P identities.

    Args:
        vectors: embedded images, of any length but 0.
        identities: int64 (N,) in 0..P-1, each at least once.

    Raises:
        UserError: the shapes do not fit, an identity has no vector, or its vectors cancel.
    """
    unit, _ = unit_contexts(vectors)
    if identities.shape != (len(unit),):
        raise UserError(f"identities: expected shape ({len(unit)},), found {tuple(identities.shape)}")
    count = int(identities.max()) + 1
    sums = torch.zeros(count, unit.shape[1], dtype=torch.float64).index_add_(0, identities, unit.double())
    short = sums.norm(dim=1) < 1e-6
    if short.any():
        raise UserError(
            f"identities: number {int(short.nonzero()[0])} has no vector, or its vectors cancel; leave it out"
        )
    return F.normalize(sums, dim=1).float()


def perturbed_contexts(contexts: Tensor, degrees: float | tuple[float, float], seed: int = 0) -> Tensor:
    """Return contexts (N, D), each turned by an angle in a random direction.

    The direction u is drawn evenly from those at right angles to the context: c·cos(a) + u·sin(a). Between two angles
    a cosine is drawn evenly for each context; from 0 on, that is IDperturb (arXiv 2602.18831).

    Args:
        contexts: (N, D), of any length but 0.
        degrees: the exact angle, from 0 to 180, or the least and the largest one.
        seed: of the directions and angles.

    Raises:
        UserError: an angle is out of range, there is one component only, or a context is not finite or 0.
    """
    least, largest = degrees if isinstance(degrees, tuple) else (degrees, degrees)
    if not 0 <= least <= largest <= 180:
        found = f"{least:g}" if least == largest else f"{least:g} to {largest:g}"
        raise UserError(
            f"perturb: expected an angle from 0 to 180 degrees, or two, the smaller first, found {found}"
        )
    unit = F.normalize(unit_contexts(contexts)[0].double(), dim=1)
    if unit.shape[1] < 2:
        raise UserError("perturb: a context of one component cannot be turned")
    generator = step_generator(seed, "perturbed contexts", 0)
    noise = torch.randn(unit.shape, generator=generator, dtype=torch.float64)
    tangent = noise - (noise * unit).sum(1, keepdim=True) * unit
    bounds = torch.deg2rad(torch.tensor([least, largest], dtype=torch.float64))
    angle = bounds[0]
    if least < largest:
        place = torch.rand(len(unit), 1, generator=generator, dtype=torch.float64)
        angle = torch.lerp(bounds[0].cos(), bounds[1].cos(), place).clamp(-1, 1).acos()
    return (angle.cos() * unit + angle.sin() * F.normalize(tangent, dim=1)).float()
