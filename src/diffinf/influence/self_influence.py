"""First-order self-influence of every sample over a training's checkpoints (TracIn, arXiv 2002.08484)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from diffinf.errors import UserError
from diffinf.influence.ghost import GradientNorms, Scope
from diffinf.influence.losses import PerSampleLoss
from diffinf.influence.shards import Ranks, Shards, gathered
from diffinf.influence.stream import Sliceable, Stream, ToInput
from diffinf.progress import Advance, progress_bar

logger = logging.getLogger(__name__)

# Samples a scratch file: small enough that a killed run loses seconds, large enough that files stay few. It
# does not depend on the batch size, which may be halved on the way.
CHUNK = 2048

Checkpoint = tuple[nn.Module | Callable[[], nn.Module], float]
"""A model, or a function that loads it when its turn comes, and its learning rate."""


def self_influence(
    checkpoints: Sequence[Checkpoint],
    images: Sliceable,
    labels: Sliceable | None,
    *,
    to_input: ToInput,
    scope: Scope = "all",
    loss: PerSampleLoss | str | None = None,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    scratch: Path | None = None,
    chunk: int = CHUNK,
    ids: Sequence[str] | None = None,
    ranks: Ranks | None = None,
    description: str = "self-influence",
) -> npt.NDArray[np.float64]:
    """S_i = Σ_c η_c · ||∇_θ loss(f_θc(x_i), y_i)||², in eval mode and without augmentation.

    Samples stream through in batches; the memory does not grow with their number (but for the result's 8
    bytes each). The batch is halved where the device's memory does not hold it. Under `torchrun` the parts of
    `chunk` samples are dealt out over the processes, and each of them returns the whole result.

    Args:
        checkpoints: (model, learning rate η_c), on `device`; a function that loads the model is called when
            its turn comes, so that one model is in memory at a time.
        images: (N, C, H, W) uint8, or anything with a length that can be sliced: `images[a:b]` goes to
            `to_input`. With `labels` None, `images[a:b]` is a pair (images, labels).
        labels: (N,) class indices, or what `loss` takes.
        to_input: `to_input(images, device)` gives what the model takes.
        scope: as in `squared_gradient_norms`.
        loss: `loss(output, labels) -> (N,)`, or the name of one in `losses.py`; cross-entropy when None.
        batch_size: samples of one backward at most; None chooses by what one sample takes.
        device: where the models are.
        scratch: a directory for finished parts, one small file each, so that a killed run goes on, with any
            number of processes; it must belong to these inputs alone.
        chunk: samples of one such part.
        ids: names of the samples for messages; their rows when None.
        ranks: this process among those that share the work; None as `torchrun` says, `Ranks()` alone.
        description: what the progress bar says.

    Returns:
        (N,) float64; +inf for a sample whose gradient is not finite (they are logged, by id).

    Raises:
        UserError: see `squared_gradient_norms`; checkpoints of different architectures; a `scratch` of other
            inputs; or not even one sample fits into memory.
    """
    if not checkpoints:
        raise UserError("self-influence needs at least one checkpoint; none was given.")
    stream = Stream(images, labels, to_input, torch.device(device), batch_size)
    if ids is not None and len(ids) != len(stream):
        raise UserError(f"{len(stream)} images but {len(ids)} ids: give one id for each image.")
    ranks = Ranks.of_environment() if ranks is None else ranks
    shards = Shards(scratch, len(stream), len(checkpoints), chunk)
    shards.open({"scope": scope if isinstance(scope, str) else list(scope), "loss": _name(loss)})
    done = shards.done()
    if done.any():
        logger.info("self-influence: %d of %d parts are there already", done.sum(), done.size)
    total = np.zeros(len(stream))
    mine = list(shards.mine(ranks))
    opened = _Checkpoints(checkpoints, stream.device, scope, loss)
    amount = sum(shards.rows(part).stop - shards.rows(part).start for _, parts in mine for part in parts)
    with progress_bar(description, amount) as advance:
        for checkpoint, parts in mine:
            rate = checkpoints[checkpoint][1]
            for part, values in _finished(shards, opened, checkpoint, parts, stream, ids, advance):
                total[shards.rows(part)] += rate * values
    total = gathered(total, ranks)
    _report_infinite(total, ids)
    return total


def layer_shares(
    checkpoints: Sequence[Checkpoint],
    images: Sliceable,
    labels: Sliceable | None,
    *,
    to_input: ToInput,
    scope: Scope = "all",
    loss: PerSampleLoss | str | None = None,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Which layers carry the score: {module: its share of the self-influence summed over all samples}.

    Exact, and as cheap as the scores; the arguments are those of `self_influence`.

    Returns:
        Shares in 0..1 that add up to 1, by the module that owns the parameters, in the model's order; the
        model's own parameters under "". Samples whose gradient is not finite are left out. All 0 where no
        gradient is different from 0.

    Raises:
        UserError: see `self_influence`.
    """
    if not checkpoints:
        raise UserError("self-influence needs at least one checkpoint; none was given.")
    stream = Stream(images, labels, to_input, torch.device(device), batch_size)
    sums: dict[str, float] = {}
    opened = _Checkpoints(checkpoints, stream.device, scope, loss)
    with progress_bar("layers", len(stream) * len(checkpoints)) as advance:
        for checkpoint, (_, rate) in enumerate(checkpoints):
            for name, value in _layer_sums(opened.norms(checkpoint), stream, advance).items():
                sums[name] = sums.get(name, 0.0) + rate * value
    whole = sum(sums.values())
    return {layer: value / whole if whole else 0.0 for layer, value in sums.items()}


def _name(loss: PerSampleLoss | str | None) -> str:
    return (
        loss if isinstance(loss, str) else getattr(loss or "cross_entropy", "__qualname__", "cross_entropy")
    )


class _Checkpoints:
    """Norms of each checkpoint; they must all be of one architecture."""

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        device: torch.device,
        scope: Scope,
        loss: PerSampleLoss | str | None,
    ) -> None:
        self._checkpoints, self._device, self._scope, self._loss = checkpoints, device, scope, loss
        self._first: tuple[int, dict[str, tuple[int, ...]]] | None = None

    def norms(self, number: int) -> GradientNorms:
        """Load checkpoint `number` if it is not; UserError where it is of another architecture."""
        entry = self._checkpoints[number][0]
        model = entry if isinstance(entry, nn.Module) else entry().to(self._device)
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        self._first = self._first or (number, shapes)
        before, first = self._first
        if shapes != first:
            name = next(n for n in [*first, *shapes] if first.get(n) != shapes.get(n))
            raise UserError(
                f"checkpoint {number} is of another architecture than checkpoint {before}: {name} has shape "
                f"{shapes.get(name, 'none')}, expected {first.get(name, 'none')}. Give the checkpoints of one "
                "training."
            )
        return GradientNorms(model, scope=self._scope, loss=self._loss)


def _finished(
    shards: Shards,
    opened: _Checkpoints,
    checkpoint: int,
    parts: Sequence[int],
    stream: Stream,
    ids: Sequence[str] | None,
    advance: Advance,
) -> Iterator[tuple[int, npt.NDArray[np.float64]]]:
    """(part, its norms (n,)) of one checkpoint, from the disk or computed and kept there."""
    norms: GradientNorms | None = None  # a model that nothing is missing of is not even loaded
    for part in parts:
        values = shards.load(checkpoint, part)
        if values is None:
            norms = norms or opened.norms(checkpoint)
            values = _part(stream, norms, shards.rows(part), ids, advance)
            shards.keep(checkpoint, part, values)
        else:
            advance(len(values))
        yield part, values


def _layer_sums(norms: GradientNorms, stream: Stream, advance: Advance) -> dict[str, float]:
    """Squared norms of each layer, summed over all samples with a finite gradient."""
    sums: dict[str, float] = {}
    everything = slice(0, len(stream))
    for _, found in stream.apply(norms.model, everything, lambda x, y, _: norms.breakdown(x, y)):
        finite = torch.stack(list(found.values())).sum(0).isfinite()
        advance(len(finite))
        for name, values in found.items():
            layer = name.rpartition(".")[0]
            sums[layer] = sums.get(layer, 0.0) + float(values[finite].cpu().double().sum())
    return sums


def _part(
    stream: Stream, norms: GradientNorms, rows: slice, ids: Sequence[str] | None, advance: Advance
) -> npt.NDArray[np.float64]:
    """Norms (n,) of the rows."""

    def score(inputs: Tensor, labels: Tensor, start: int) -> Tensor:
        norms.describe = lambda row: f"sample {start + row if ids is None else ids[start + row]}"
        return norms(inputs, labels)

    values = np.empty(rows.stop - rows.start)
    for part, found in stream.apply(norms.model, rows, score):
        values[part.start - rows.start : part.stop - rows.start] = found.cpu().double().numpy()
        advance(len(found))
    return values


def _report_infinite(total: npt.NDArray[np.float64], ids: Sequence[str] | None) -> None:
    """Log the samples that score +inf, by id."""
    infinite = np.flatnonzero(~np.isfinite(total))
    total[infinite] = np.inf
    if len(infinite):
        shown = [int(row) if ids is None else ids[row] for row in infinite[:20]]
        logger.warning(
            "%d samples have a gradient that is not finite and score +inf; %s %s%s",
            len(infinite),
            "rows" if ids is None else "ids",
            shown,
            " ..." if len(infinite) > 20 else "",
        )
