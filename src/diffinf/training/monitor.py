"""Watching a training: when to look, what is kept, and signs of trouble that are said once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from diffinf.training.acceleration import Acceleration
from diffinf.training.health import Finding, loss_findings
from diffinf.training.loop import step_generator

SHEETS = "sheets"  # folder below the model's
BANDS = 5  # of noise levels, each of the same width
CHECKS = 8  # times the held-out images are looked at, fewer in short trainings
_LOOKS = (
    320  # evaluations of held-out images at a check, about; with few images each is asked at several levels
)
_LEAST, _MOST, _LARGEST_SHARE = 32, 512, 0.1

Tell = Callable[..., Any]  # called with an event's name and its fields


class TrainingWarning(UserWarning):
    """An early sign that a training is broken."""


def held_out(n: int, share: float, seed: int) -> Tensor:
    """Return the indices of the images that are held out of n, ascending, int64.

    At least 32 and at most 512; none where 32 would be more than a tenth of all, or where `share` is 0.
    """
    count = max(_LEAST, min(_MOST, round(share * n)))
    if share == 0 or count > max(round(share * n), int(_LARGEST_SHARE * n)):
        return torch.empty(0, dtype=torch.int64)
    return torch.randperm(n, generator=step_generator(seed, "held out", 0))[:count].sort().values


def repeats(count: int) -> int:
    """How many noise levels each of `count` held-out images is asked at in one check."""
    return max(1, round(_LOOKS / count))


def check_count(steps: int) -> int:
    """How often the held-out images are looked at."""
    return max(2, min(CHECKS, steps // 100))


def moments(steps: int, count: int) -> set[int]:
    """Return `count` steps, evenly spaced, the last among them."""
    return {max(1, round(steps * (k + 1) / count)) for k in range(count)}


class TrainingMonitor:
    """Watches one training; its state is saved with the training's, so that a killed one has the same record.

    Attributes:
        history: means of the losses over some steps each.
        validation: one dict a check of the held-out images.
        warnings: findings in words, each kind once, with the step.
    """

    what: str  # is trained, in words
    section: str  # of its settings
    losses: tuple[str, ...]  # whose course is looked at

    def __init__(
        self, acceleration: Acceleration, *, steps: int, sheets: int, checked: bool, tell: Tell | None
    ) -> None:
        """Take when to look.

        Args:
            acceleration: has the tracker.
            steps: of the training.
            sheets: how often sheets are written.
            checked: images are held out to look at.
            tell: hears of checks, sheets and warnings.
        """
        self.acceleration, self.steps, self.tell = acceleration, steps, tell or (lambda *_, **__: None)
        self.checks = moments(steps, check_count(steps)) if checked else set()
        self.sheets = moments(steps, sheets) if sheets else set()
        self.interval = max(1, min(50, steps // 8))
        self.window: list[dict[str, float]] = []
        self.history: list[dict[str, float]] = []
        self.validation: list[dict[str, Any]] = []
        self.warnings: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        """Return the record so far."""
        return {name: getattr(self, name) for name in ("window", "history", "validation", "warnings")}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Take up a record."""
        for name, value in state_dict.items():
            setattr(self, name, value)

    def after(self, step: int, scalars: Mapping[str, float]) -> None:
        """Hear of the losses of the `step`-th step, and look where it is time to."""
        if step == 1:
            self._warn(step, self._first_findings())
        self.window.append(dict(scalars))
        if step % self.interval == 0 or step == self.steps:
            means = {
                name: sum(entry[name] for entry in self.window) / len(self.window) for name in self.window[0]
            }
            self.window = []
            self.history.append({"step": float(step), **means})
            self.acceleration.log(means, step)
            for name in self.losses:
                self._warn(step, loss_findings(self.history, name, f"{self.section}.learning_rate"))
        if step in self.checks:
            self._check(step)
        if step in self.sheets:
            self._write_sheets(step)

    def _warn(self, step: int, findings: list[Finding]) -> None:
        for kind, text in findings:
            if all(known["kind"] != kind for known in self.warnings):
                self.warnings.append({"step": step, "kind": kind, "text": text})
                self.tell("warning", step=step, kind=kind, text=text)
                warnings.warn(f"{self.what}, step {step}: {text}", TrainingWarning, stacklevel=2)

    def _first_findings(self) -> list[Finding]:
        raise NotImplementedError

    def _check(self, step: int) -> None:
        raise NotImplementedError

    def _write_sheets(self, step: int) -> None:
        raise NotImplementedError
