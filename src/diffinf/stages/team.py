"""Processes that `torchrun` started together: one leads the run, the others help with what can be split."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal, get_args

import torch
from torch import distributed

from diffinf.influence.shards import Ranks

# What the helpers can be called to; none of it: home.
Work = Literal["self-influence", "autoencoder"]
_WORK: tuple[Work, ...] = get_args(Work)
_PATIENCE = timedelta(days=7)  # helpers wait through the leader's trainings; torchrun ends all when one fails


class Team:
    """The leader (rank 0) calls the helpers to a piece of work or sends them home; alone, it does neither."""

    def __init__(self) -> None:
        """Join the others; UserError where the environment is not as torchrun sets it."""
        self.ranks = Ranks.of_environment()
        self._joined = self.ranks.size > 1 and not distributed.is_initialized()
        if self._joined:
            # GPUs average the gradients of a training between them.
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            distributed.init_process_group(
                backend, rank=self.ranks.rank, world_size=self.ranks.size, timeout=_PATIENCE
            )

    @property
    def leads(self) -> bool:
        """Whether this process writes the run."""
        return self.ranks.rank == 0

    def call(self, work: Work) -> None:
        """Have the helpers take part in the work that the leader begins now."""
        self._say(1 + _WORK.index(work))

    def dismiss(self) -> None:
        """Send the helpers home, and part from them."""
        self._say(0)
        self._part()

    def called(self) -> Work | None:
        """In a helper: wait until there is work, and say which; None when there is none any more."""
        if said := self._say(0):
            return _WORK[said - 1]
        self._part()
        return None

    def _part(self) -> None:
        # Left to the end of the interpreter, gloo's threads now and then abort it.
        if self._joined:
            distributed.destroy_process_group()
            self._joined = False

    def _say(self, number: int) -> int:
        if self.ranks.size == 1:
            return 0
        said = torch.tensor([number])
        distributed.broadcast(said, src=0)
        return int(said.item())
