"""A process of its own that scores 67 samples under two checkpoints: `scoring_process.py FOLDER [--slow]`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from diffinf import progress
from diffinf.influence.self_influence import self_influence

N = 67


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


class Drawn:
    """Samples that are drawn when they are asked for, and counted."""

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause
        self.asked = np.zeros(N, dtype=int)

    def __len__(self) -> int:
        return N

    def __getitem__(self, rows: slice) -> tuple[Tensor, list[int]]:
        self.asked[rows] += 1
        time.sleep(self.pause)
        images = [torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(N)[rows]]
        return torch.stack(images), [i % 3 for i in range(N)[rows]]


def score(samples: Drawn, parts: Path | None = None) -> np.ndarray:
    """Scores (N,) of the samples; finished parts under `parts`."""
    return self_influence(
        [(network(0), 0.1), (network(1), 0.02)],
        samples,
        None,
        to_input=lambda x, device: x.to(device),
        batch_size=5,
        scratch=parts,
        chunk=10,
    )


def main() -> None:
    progress.set_quiet(True)
    out, rank = Path(sys.argv[1]), os.environ.get("RANK", "0")
    samples = Drawn(0.1 if "--slow" in sys.argv else 0.0)
    np.save(out / f"scores-{rank}.npy", score(samples, out / "parts"))
    np.save(out / f"computed-{rank}.npy", samples.asked)
    np.save(out / f"again-{rank}.npy", score(samples, out / "parts"))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # else gloo's threads may abort the interpreter's end


if __name__ == "__main__":
    main()
