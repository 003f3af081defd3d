"""Training that can be killed: the order of samples, resumption, divergence, the schedule."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from diffinf.training.loop import (
    DivergedError,
    batch_indices,
    fit,
    step_generator,
    warmup_cosine,
    worker_count,
)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 30), batch_size=st.integers(1, 45), seed=st.integers(0, 5), epochs=st.integers(1, 3))
def test_every_epoch_has_every_sample_once(n: int, batch_size: int, seed: int, epochs: int) -> None:
    steps = math.ceil(epochs * n / batch_size)
    batches = [batch_indices(n, batch_size, seed, step) for step in range(steps)]
    assert all(len(batch) == batch_size for batch in batches)
    stream = torch.cat(batches)
    for epoch in range(epochs):
        assert sorted(stream[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))


def test_the_order_differs_by_seed_and_by_epoch_and_comes_again() -> None:
    first = batch_indices(50, 50, 0, 0)
    assert torch.equal(first, batch_indices(50, 50, 0, 0))
    assert not torch.equal(first, batch_indices(50, 50, 1, 0))
    assert not torch.equal(first, batch_indices(50, 50, 0, 1))
    assert not torch.equal(first, torch.arange(50))


def test_generators_depend_on_seed_purpose_and_step_alone() -> None:
    def draw(seed: int, purpose: str, step: int) -> float:
        return torch.rand((), generator=step_generator(seed, purpose, step), dtype=torch.float64).item()

    torch.manual_seed(1)
    reference = draw(0, "noise", 3)
    torch.manual_seed(2)
    assert draw(0, "noise", 3) == reference
    # The key's parts do not run into one another: (1, "1") is not (11, "").
    draws = [
        draw(*key) for key in [(1, "noise", 3), (0, "order", 3), (0, "noise", 4), (11, "x", 1), (1, "x", 11)]
    ]
    assert len({reference, *draws}) == 6


class Training:
    """A small regression whose noise comes from step generators; it can be killed at a step."""

    def __init__(self, kill_at: int | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model = nn.Linear(3, 2)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.kill_at, self.steps_done = kill_at, list[int]()

    def step(self, index: int) -> dict[str, float]:
        if index == self.kill_at:
            raise KeyboardInterrupt
        self.steps_done.append(index)
        x = torch.randn(8, 3, generator=step_generator(0, "x", index))
        loss = (self.model(x) - x[:, :2]).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item(), "index": float(index)}

    def run(self, checkpoint: Path | None = None) -> list[dict[str, float]]:
        return fit(
            self.step,
            steps=17,
            state={"model": self.model, "optimizer": self.optimizer},
            checkpoint=checkpoint,
            save_every=3,
            log_every=4,
        )


@pytest.mark.parametrize(("kill_at", "resumes_at"), [(2, 0), (7, 6), (9, 9), (16, 15)])
def test_a_killed_training_ends_the_same_bit_by_bit(tmp_path: Path, kill_at: int, resumes_at: int) -> None:
    whole = Training()
    history = whole.run()
    checkpoint = tmp_path / "training.checkpoint"
    with pytest.raises(KeyboardInterrupt):
        Training(kill_at).run(checkpoint)
    resumed = Training()
    assert resumed.run(checkpoint) == history
    assert resumed.steps_done == list(range(resumes_at, 17))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_the_history_holds_the_means_of_each_interval() -> None:
    history = Training().run()
    assert [entry["step"] for entry in history] == [4, 8, 12, 16, 17]
    assert [entry["index"] for entry in history] == [1.5, 5.5, 9.5, 13.5, 16]
    assert history[-1]["loss"] < history[0]["loss"]


def test_without_a_checkpoint_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Training().run()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_the_training(bad: float) -> None:
    seen = []

    def step(index: int) -> dict[str, float]:
        seen.append(index)
        return {"loss": bad if index == 3 else 1.0}

    with pytest.raises(DivergedError, match="step 3"):
        fit(step, steps=10, state={})
    assert seen == [0, 1, 2, 3]


def test_the_learning_rate_rises_linearly_then_follows_half_a_cosine() -> None:
    factors = [warmup_cosine(step, 100, warmup=0.1) for step in range(101)]
    assert factors[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0, abs=1e-12)
    assert factors[40] == pytest.approx(0.5 * (1 + math.cos(math.pi / 3)))


def test_the_learning_rate_ends_at_its_floor() -> None:
    assert warmup_cosine(100, 100, floor=0.2) == pytest.approx(0.2)
    assert warmup_cosine(5, 100, warmup=0.05, floor=0.2) == 1


@settings(max_examples=60, deadline=None)
@given(steps=st.integers(1, 300), warmup=st.floats(0, 0.5), floor=st.floats(0, 0.9))
def test_the_learning_rate_is_positive_and_rises_and_falls_once(
    steps: int, warmup: float, floor: float
) -> None:
    factors = [warmup_cosine(step, steps, warmup, floor) for step in range(steps)]
    peak = factors.index(max(factors))
    assert factors[peak] == pytest.approx(1)
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_the_number_of_workers_is_what_was_asked_for_or_one_a_core() -> None:
    assert worker_count(3) == 3
    assert worker_count() >= 1
