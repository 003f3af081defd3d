"""Batches of a dataset of any size through a model, as large as memory allows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from diffinf.errors import UserError

logger = logging.getLogger(__name__)

ToInput = Callable[[Any, torch.device], Tensor]
Result = TypeVar("Result")

# Bytes that a batch's arrays may take on a CPU: beyond it nothing is gained, and page faults cost.
_CPU_BYTES = 2**28
_LARGEST = 512


class Sliceable(Protocol):
    """Anything with a length that can be sliced by a range: a tensor, an array, a lazy dataset."""

    def __len__(self) -> int:
        """Samples."""

    def __getitem__(self, rows: slice, /) -> Any:
        """The samples of `rows`, in order."""


class Stream:
    """Samples and their labels, a batch at a time on a device.

    The batch size is found at the first batch unless it is given, and halved when memory runs out.
    """

    def __init__(
        self,
        images: Sliceable,
        labels: Sliceable | None,
        to_input: ToInput,
        device: torch.device,
        batch_size: int | None = None,
    ) -> None:
        """Check the lengths.

        Args:
            images: `images[slice]` goes to `to_input`; with `labels` None it is a pair (images, labels).
            labels: `labels[slice]` is what the loss takes.
            to_input: `to_input(images, device)` gives what the model takes.
            device: where the model is.
            batch_size: samples at once; None for the most that `fitting_batch` finds.

        Raises:
            UserError: lengths differ, or a batch size below 1.
        """
        if labels is not None and len(images) != len(labels):
            raise UserError(f"{len(images)} images but {len(labels)} labels: give one label for each image.")
        if batch_size is not None and batch_size < 1:
            raise UserError(f"batch_size: expected at least 1, got {batch_size}.")
        self._images, self._labels, self._to_input = images, labels, to_input
        self.device = device
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Samples."""
        return len(self._images)

    def batch(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Model inputs (n, ...) and labels (n, ...) of the rows."""
        images = self._images[rows]
        images, labels = images if self._labels is None else (images, self._labels[rows])
        return self._to_input(images, self.device), torch.as_tensor(labels).to(self.device)

    def apply(
        self, model: nn.Module, rows: slice, function: Callable[[Tensor, Tensor, int], Result]
    ) -> Iterator[tuple[slice, Result]]:
        """Yield (rows, `function(inputs, labels, first row)`) of the batches that make up `rows`.

        Raises:
            UserError: one sample alone does not fit into memory.
        """
        start = rows.start
        if self.batch_size is None and start < rows.stop:
            self.batch_size = fitting_batch(model, self.batch(slice(start, min(start + 2, len(self))))[0])
        while start < rows.stop:
            assert self.batch_size is not None
            part = slice(start, min(start + self.batch_size, rows.stop))
            try:
                found = function(*self.batch(part), start)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                if self.batch_size == 1:
                    raise UserError(
                        "self-influence: one sample alone does not fit into memory; choose smaller images, a "
                        'smaller classifier, or scope "head".'
                    ) from error
                self.batch_size = (self.batch_size + 1) // 2
                logger.warning("out of memory: self-influence goes on with batches of %d", self.batch_size)
            else:
                yield part, found
                start = part.stop
                continue
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # after the error is gone: its traceback holds the batch's arrays


def fitting_batch(model: nn.Module, inputs: Tensor) -> int:
    """Samples of one batch, a power of two: by what one sample's forward keeps for its backward.

    Args:
        model: the model; it runs once in eval mode, and is left in the mode it was in.
        inputs: a few of its inputs (n, ...).
    """
    seen: dict[int, int] = {}

    def count(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return x

    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            model(inputs.detach().clone().requires_grad_(inputs.is_floating_point()))
    finally:
        for module, mode in modes:
            module.training = mode
    for p in model.parameters():
        seen.pop(p.untyped_storage().data_ptr(), None)
    each = max(1, sum(seen.values()) // len(inputs))
    space = torch.cuda.mem_get_info(inputs.device)[0] // 4 if inputs.is_cuda else _CPU_BYTES
    most = int(min(_LARGEST, max(1, space // each)))
    return 1 << (most.bit_length() - 1)


def _is_out_of_memory(error: RuntimeError) -> bool:
    # On CPUs torch raises a plain RuntimeError, in the words of Windows or of Linux.
    words = ("not enough memory", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)
