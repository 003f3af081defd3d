"""First-order self-influence of every sample over a training's checkpoints (TracIn, arXiv 2002.08484)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from diffinf.errors import UserError
from diffinf.influence.fallback import PerSampleLoss
from diffinf.influence.ghost import GradientNorms, Scope
from diffinf.progress import progress_bar
from diffinf.run import atomic_path

logger = logging.getLogger(__name__)

# Samples a scratch file: small enough that a killed run loses seconds, large enough that files stay few. It
# does not depend on the batch size, which may be halved on the way.
CHUNK = 2048


def self_influence(
    checkpoints: Sequence[tuple[nn.Module, float]],
    images: Tensor,
    labels: Tensor,
    *,
    to_input: Callable[[Tensor, torch.device], Tensor],
    scope: Scope = "all",
    loss: PerSampleLoss | None = None,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    scratch: Path | None = None,
    chunk: int = CHUNK,
) -> npt.NDArray[np.float64]:
    """S_i = Σ_c η_c · ||∇_θ loss(f_θc(x_i), y_i)||², in eval mode and without augmentation.

    Samples stream through in batches; the memory does not grow with their number. The batch is halved where
    the device's memory does not hold it.

    Args:
        checkpoints: (model, learning rate η_c), on `device`.
        images: (N, C, H, W) uint8, or anything of that shape that can be sliced.
        labels: (N,) class indices, or what `loss` takes.
        to_input: `to_input(images, device)` gives what the model takes.
        scope: as in `squared_gradient_norms`.
        loss: `loss(output, labels) -> (N,)`; cross-entropy when None.
        batch_size: samples of one backward at most.
        device: where the models are.
        scratch: a directory for finished parts, one small file each, so that a killed run goes on; it must
            belong to these inputs alone.
        chunk: samples of one such part.

    Returns:
        (N,) float64; +inf for a sample whose gradient is not finite (their number is logged).

    Raises:
        UserError: see `squared_gradient_norms`; or not even one sample fits into memory.
    """
    if not checkpoints:
        raise UserError("self-influence needs at least one checkpoint; none was given.")
    if len(images) != len(labels):
        raise UserError(f"{len(images)} images but {len(labels)} labels: give one label for each image.")
    total = np.zeros(len(labels))
    device = torch.device(device)
    size = batch_size
    with progress_bar("self-influence", len(labels) * len(checkpoints)) as advance:
        for c, (model, rate) in enumerate(checkpoints):
            norms = GradientNorms(model, scope=scope, loss=loss)
            for start in range(0, len(labels), chunk):
                rows = slice(start, min(start + chunk, len(labels)))
                path = None if scratch is None else scratch / f"norms-{c:03d}-{start:09d}.npy"
                values = _finished(path, rows.stop - rows.start)
                if values is None:
                    values, size = _chunk_norms(norms, images, labels, rows, to_input, size, device, advance)
                    _keep(path, values)
                else:
                    advance(len(values))
                total[rows] += rate * values
    infinite = np.flatnonzero(~np.isfinite(total))
    total[infinite] = np.inf
    if len(infinite):
        logger.warning(
            "%d samples have a gradient that is not finite and score +inf; rows %s%s",
            len(infinite),
            infinite[:20].tolist(),
            " ..." if len(infinite) > 20 else "",
        )
    return total


def _chunk_norms(
    norms: GradientNorms,
    images: Tensor,
    labels: Tensor,
    rows: slice,
    to_input: Callable[[Tensor, torch.device], Tensor],
    size: int,
    device: torch.device,
    advance: Callable[[int], None],
) -> tuple[npt.NDArray[np.float64], int]:
    """Norms (n,) of the rows and the batch size that fitted."""
    values = np.empty(rows.stop - rows.start)
    done = 0
    while done < len(values):
        part = slice(rows.start + done, min(rows.start + done + size, rows.stop))
        try:
            found = norms(to_input(images[part], device), labels[part].to(device))
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            if size == 1:
                raise UserError(
                    "self-influence: one sample alone does not fit into memory; choose smaller images, a "
                    'smaller classifier, or scope "head".'
                ) from error
            size = (size + 1) // 2
            logger.warning("out of memory: self-influence goes on with batches of %d", size)
        else:
            values[done : done + len(found)] = found.double().cpu().numpy()
            advance(len(found))
            done += len(found)
            continue
        if device.type == "cuda":
            torch.cuda.empty_cache()  # after the error is gone: its traceback holds the batch's arrays
    return values, size


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)


def _finished(path: Path | None, count: int) -> npt.NDArray[np.float64] | None:
    if path is None or not path.exists():
        return None
    values: npt.NDArray[np.float64] = np.load(path, allow_pickle=False)
    return values if values.shape == (count,) else None


def _keep(path: Path | None, values: npt.NDArray[np.float64]) -> None:
    if path is not None:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, values)
