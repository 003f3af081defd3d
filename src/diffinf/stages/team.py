"""Processes that `torchrun` started together: one leads the run, the others help with what can be split."""

from __future__ import annotations

from datetime import timedelta

import torch
from torch import distributed

from diffinf.influence.shards import Ranks

_PATIENCE = timedelta(days=7)  # helpers wait through the leader's trainings; torchrun ends all when one fails


class Team:
    """The leader (rank 0) calls the helpers to a piece of work or sends them home; alone, it does neither."""

    def __init__(self) -> None:
        """Join the others; UserError where the environment is not as torchrun sets it."""
        self.ranks = Ranks.of_environment()
        if self.ranks.size > 1 and not distributed.is_initialized():
            distributed.init_process_group(
                "gloo", rank=self.ranks.rank, world_size=self.ranks.size, timeout=_PATIENCE
            )

    @property
    def leads(self) -> bool:
        """Whether this process writes the run."""
        return self.ranks.rank == 0

    def call(self) -> None:
        """Have the helpers take part in the self-influence that the leader begins now."""
        self._say(True)

    def dismiss(self) -> None:
        """Send the helpers home."""
        self._say(False)

    def called(self) -> bool:
        """In a helper: wait until there is work (True) or none any more (False)."""
        return self._say(False)

    def _say(self, work: bool) -> bool:
        if self.ranks.size == 1:
            return False
        said = torch.tensor([int(work)])
        distributed.broadcast(said, src=0)
        return bool(said.item())
