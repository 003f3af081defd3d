"""Sums over checkpoints, streaming, resuming, running out of memory."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffinf.errors import UserError
from diffinf.influence.ghost import GradientNorms, squared_gradient_norms
from diffinf.influence.self_influence import self_influence


def to_input(images: Tensor, device: torch.device) -> Tensor:
    return images.to(device).float() / 127.5 - 1


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


@pytest.fixture
def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (23, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return images, torch.randint(3, (23,), generator=generator)


CHECKPOINTS = [(network(0), 0.1), (network(1), 0.02)]


def test_sum_over_checkpoints_by_learning_rate(samples: tuple[Tensor, Tensor]) -> None:
    images, labels = samples
    found = self_influence(CHECKPOINTS, images, labels, to_input=to_input, batch_size=5, chunk=12)
    expected = sum(
        rate * squared_gradient_norms(model, to_input(images, torch.device("cpu")), labels).double()
        for model, rate in CHECKPOINTS
    )
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_killed_run_goes_on(
    samples: tuple[Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = samples
    options = {"to_input": to_input, "batch_size": 5, "chunk": 5}
    undisturbed = self_influence(CHECKPOINTS, images, labels, **options)
    calls = 0
    original = GradientNorms.__call__

    def counted(self: GradientNorms, images: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt
        return original(self, images, labels)

    monkeypatch.setattr(GradientNorms, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        self_influence(CHECKPOINTS, images, labels, scratch=tmp_path, **options)
    assert len(list(tmp_path.glob("norms-*"))) == 7
    resumed = self_influence(CHECKPOINTS, images, labels, scratch=tmp_path, **options)
    assert calls == 8 + 3
    assert np.array_equal(resumed, undisturbed)


def test_batches_are_halved_when_memory_runs_out(
    samples: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    images, labels = samples
    expected = self_influence(CHECKPOINTS, images, labels, to_input=to_input)
    original = GradientNorms.__call__

    def limited(self: GradientNorms, images: Tensor, labels: Tensor) -> Tensor:
        if len(images) > limit:
            raise torch.OutOfMemoryError("out of memory")
        return original(self, images, labels)

    monkeypatch.setattr(GradientNorms, "__call__", limited)
    limit = 6
    with caplog.at_level(logging.WARNING):
        found = self_influence(CHECKPOINTS, images, labels, to_input=to_input, batch_size=16)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert "batches of 4" in caplog.text
    limit = 0
    with pytest.raises(UserError, match="one sample alone"):
        self_influence(CHECKPOINTS, images, labels, to_input=to_input, batch_size=16)


def test_infinite_gradients_score_infinity_and_are_logged(
    samples: tuple[Tensor, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.head = nn.Linear(64, 4, bias=False), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.mix(x.flatten(1)).abs().sqrt())

    images, labels = samples
    images[3] = 0
    with caplog.at_level(logging.WARNING):
        found = self_influence(
            [(Root(), 0.1)], images, labels, to_input=lambda x, device: x.float() / 255, batch_size=5
        )
    assert np.flatnonzero(np.isinf(found)).tolist() == [3]
    assert "rows [3]" in caplog.text


def test_bad_input_is_named(samples: tuple[Tensor, Tensor]) -> None:
    images, labels = samples
    with pytest.raises(UserError, match="at least one checkpoint"):
        self_influence([], images, labels, to_input=to_input)
    with pytest.raises(UserError, match="22 labels"):
        self_influence(CHECKPOINTS, images, labels[:22], to_input=to_input)
    broken = network(0)
    with torch.no_grad():
        broken[0].weight.fill_(torch.nan)  # type: ignore[union-attr, operator]
    with pytest.raises(UserError, match="NaN"):
        self_influence([(broken, 0.1)], images, labels, to_input=to_input)
