"""A training loop that can be killed at any moment and gives the same result when it is run again.

Nothing random survives between steps: batches, augmentation and noise are functions of (seed, purpose, step), so the
state to save is the modules', the optimiser's and the step alone.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch

from diffinf.errors import UserError
from diffinf.files import atomic_path
from diffinf.progress import progress_bar
from diffinf.training.health import diverged


class DivergedError(UserError, RuntimeError):
    """The loss of a training run became NaN or infinite; the message says where and what to try."""


class Stateful(Protocol):
    """Anything with a state to save: a module, an optimiser, a schedule."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Take the state."""


def step_generator(seed: int, purpose: str, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator that depends on (seed, purpose, step) alone."""
    generator = torch.Generator(device=device)
    generator.manual_seed(step_seed(seed, purpose, step))
    return generator


def step_seed(seed: int, purpose: str, step: int) -> int:
    """Return a seed that depends on (seed, purpose, step) alone, for what takes no generator of its own."""
    digest = hashlib.sha256(f"{seed}:{purpose}:{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed the global generators of the CPU and of `device` inside the block, and put them back after it.

    For what takes no generator of its own: initialisation, dropout, stochastic depth.
    """
    cuda = device is not None and device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if device is not None and device.type != "cpu":
            torch.manual_seed(seed)
        yield


def batch_indices(n: int, batch_size: int, seed: int, step: int) -> torch.Tensor:
    """Return the sample indices of one step's batch, shape (batch_size,), int64.

    Samples come in a fresh permutation each epoch; a batch may span two epochs, so every batch is full.
    """
    first = step * batch_size
    parts: list[torch.Tensor] = []
    while batch_size > 0:
        epoch, offset = divmod(first, n)
        order = torch.randperm(n, generator=step_generator(seed, "order", epoch))
        part = order[offset : offset + batch_size]
        parts.append(part)
        first += len(part)
        batch_size -= len(part)
    return torch.cat(parts)


def warmup_cosine(step: int, steps: int, warmup: float = 0.05, floor: float = 0.0) -> float:
    """Return the learning-rate factor in [floor, 1] at `step` of `steps`: linear warm-up, then half a cosine."""
    start = max(1, round(warmup * steps))
    if step < start:
        return (step + 1) / start
    progress = (step - start) / max(1, steps - start)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def fit(
    step: Callable[[int], dict[str, float]],
    *,
    steps: int,
    state: Mapping[str, Stateful],
    checkpoint: Path | None = None,
    save_every: int = 200,
    description: str | None = None,
    log_every: int = 50,
    advice: str = "lower the learning rate",
    leads: bool = True,
    resumed: Callable[[], None] | None = None,
) -> list[dict[str, float]]:
    """Run `step(i)` for i = 0..steps-1, resuming from `checkpoint` when it exists.

    Args:
        step: does one optimisation step and returns named scalars, "loss" among them.
        steps: total number of steps.
        state: what must be saved and restored, by name.
        checkpoint: where to save; None trains without saving. Removed by the caller once the result is written.
        save_every: steps between two saves.
        description: shown beside the progress bar; None trains silently.
        log_every: steps averaged into one entry of the history.
        advice: what to try when the loss diverges.
        leads: whether this process writes `checkpoint`: one of those that train together.
        resumed: called once the state to resume from was read, before the first step; processes that train together
            wait for one another here, since the next save replaces it.

    Returns:
        The history: one dict an interval, with "step" and the mean of each scalar.

    Raises:
        DivergedError: a loss was NaN or infinite.
    """
    first, history, window = 0, list[dict[str, float]](), list[dict[str, float]]()
    if checkpoint is not None and checkpoint.exists():
        payload = torch.load(checkpoint, weights_only=True, map_location="cpu")
        first, history, window = payload["step"], payload["history"], payload["window"]
        for name, part in state.items():
            part.load_state_dict(payload["state"][name])
    if resumed is not None:
        resumed()
    bar = progress_bar(description, steps) if description else nullcontext(lambda _done: None)
    with bar as advance:
        advance(first)
        for index in range(first, steps):
            scalars = step(index)
            if not math.isfinite(scalars["loss"]):
                raise DivergedError(diverged(description or "training", index, scalars, advice))
            window.append(scalars)
            done = index + 1
            if done % log_every == 0 or done == steps:
                means = {k: sum(s[k] for s in window) / len(window) for k in window[0]}
                history.append({"step": float(done), **means})
                window = []
            if leads and checkpoint is not None and done % save_every == 0 and done < steps:
                parts = {name: part.state_dict() for name, part in state.items()}
                payload = {"step": done, "history": history, "window": window, "state": parts}
                with atomic_path(checkpoint) as temporary:
                    torch.save(payload, temporary)
            advance(1)
    return history


def worker_count(requested: int | None = None) -> int:
    """Return how many single-threaded worker processes to use: the number asked for, else one a core."""
    if requested:
        return max(1, requested)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
