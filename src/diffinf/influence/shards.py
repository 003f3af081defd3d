"""Finished parts of a long scoring on disk: one small file a part, and which parts are whose.

A part is a run of samples under one checkpoint. Its file appears whole or not at all, so a killed run, on
one process or several, goes on with what is missing. `manifest.json` holds what the parts belong to.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffinf.errors import UserError
from diffinf.files import atomic_path, read_json, write_json

Values = npt.NDArray[np.float64]
_MANIFEST = "manifest.json"
_PATIENCE = 7  # days to wait for a slower process; torchrun ends all of them when one fails


@dataclass(frozen=True)
class Ranks:
    """This process among those that share the work: `rank` of `size`."""

    rank: int = 0
    size: int = 1

    @staticmethod
    def of_environment() -> Ranks:
        """What `torchrun` says in RANK and WORLD_SIZE; one process alone where it says nothing.

        Raises:
            UserError: they are no whole numbers with 0 <= RANK < WORLD_SIZE.
        """
        rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
            raise UserError(
                f"RANK={rank}, WORLD_SIZE={size}: expected whole numbers with 0 <= RANK < WORLD_SIZE, as "
                "torchrun sets them; unset both to use one process."
            )
        if int(size) > 1 and "MASTER_ADDR" not in os.environ:
            raise UserError(
                f"WORLD_SIZE={size}, but MASTER_ADDR is not set: the processes cannot find each other. Start "
                "them with torchrun, or unset WORLD_SIZE."
            )
        return Ranks(int(rank), int(size))


@dataclass(frozen=True)
class Shards:
    """The parts of `samples` samples under each of `checkpoints` models, `chunk` samples a part.

    With `directory` None nothing is kept.
    """

    directory: Path | None
    samples: int
    checkpoints: int
    chunk: int

    def open(self, settings: Mapping[str, Any]) -> None:
        """Write the manifest, or compare it with the one that is there.

        Raises:
            UserError: the directory holds parts of other samples or settings.
        """
        if self.directory is None:
            return
        mine = {"samples": self.samples, "checkpoints": self.checkpoints, "chunk": self.chunk, **settings}
        path = self.directory / _MANIFEST
        if not path.exists():
            write_json(path, mine)
            return
        theirs = read_json(path)
        different = [key for key in mine if theirs.get(key) != mine[key]]
        if different:
            key = different[0]
            raise UserError(
                f"{path}: the parts there are of {key} = {theirs.get(key)}, this run has {key} = {mine[key]}; "
                "use another directory, or empty this one."
            )

    @property
    def parts(self) -> int:
        """Parts of one checkpoint."""
        return -(-self.samples // self.chunk)

    def rows(self, part: int) -> slice:
        """The samples of a part."""
        return slice(part * self.chunk, min((part + 1) * self.chunk, self.samples))

    def mine(self, ranks: Ranks) -> Iterator[tuple[int, list[int]]]:
        """(checkpoint, its parts) of this process: dealt out in turn, each part to exactly one process."""
        for checkpoint in range(self.checkpoints):
            first = (ranks.rank - checkpoint * self.parts) % ranks.size
            yield checkpoint, list(range(first, self.parts, ranks.size))

    def done(self) -> npt.NDArray[np.bool_]:
        """Which parts are finished: (checkpoints, parts)."""
        mask = np.zeros((self.checkpoints, self.parts), dtype=bool)
        for checkpoint, part in np.ndindex(*mask.shape):
            path = self._path(checkpoint, part)
            mask[checkpoint, part] = path is not None and path.exists()
        return mask

    def _path(self, checkpoint: int, part: int) -> Path | None:
        if self.directory is None:
            return None
        return self.directory / f"norms-{checkpoint:03d}-{part * self.chunk:012d}.npy"

    def load(self, checkpoint: int, part: int) -> Values | None:
        """A finished part's values, or None where it has to be done (again: a file that does not fit)."""
        path = self._path(checkpoint, part)
        if path is None or not path.exists():
            return None
        try:
            values: Values = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError):
            return None
        rows = self.rows(part)
        return values if values.shape == (rows.stop - rows.start,) else None

    def keep(self, checkpoint: int, part: int, values: Values) -> None:
        """Write a part's values, whole or not at all."""
        path = self._path(checkpoint, part)
        if path is not None:
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.save(file, values)


def gathered(total: Values, ranks: Ranks) -> Values:
    """The sum (N,) over all processes, the same for each; they must all come here (gloo, over the network
    that torchrun set up)."""
    if ranks.size == 1:
        return total
    import torch
    from torch import distributed

    if not distributed.is_initialized():
        distributed.init_process_group(
            "gloo", rank=ranks.rank, world_size=ranks.size, timeout=timedelta(days=_PATIENCE)
        )
    # The default group may be for a GPU's tensors alone.
    own = distributed.get_backend() != "gloo"
    group = distributed.new_group(timeout=timedelta(days=_PATIENCE), backend="gloo") if own else None
    tensor = torch.from_numpy(total)
    distributed.all_reduce(tensor, group=group)  # type: ignore[arg-type]
    values: Values = tensor.numpy()
    return values
