"""Sums over checkpoints, streaming, resuming, running out of memory."""

from __future__ import annotations

import functools
import logging
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffinf.errors import UserError
from diffinf.influence import stream
from diffinf.influence.ghost import GradientNorms, squared_gradient_norms
from diffinf.influence.self_influence import layer_shares, self_influence
from diffinf.influence.stream import fitting_batch


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
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        self_influence(
            [(Root(), 0.1)],
            images,
            labels,
            to_input=lambda x, device: x.float() / 255,
            ids=[f"face-{i}" for i in range(23)],
        )
    assert "ids ['face-3']" in caplog.text


def test_bad_input_is_named(samples: tuple[Tensor, Tensor]) -> None:
    images, labels = samples
    with pytest.raises(UserError, match="at least one checkpoint"):
        self_influence([], images, labels, to_input=to_input)
    with pytest.raises(UserError, match="22 labels"):
        self_influence(CHECKPOINTS, images, labels[:22], to_input=to_input)
    broken = network(0)
    with torch.no_grad():
        broken[0].weight.fill_(torch.nan)  # type: ignore[union-attr, operator]
    with pytest.raises(UserError, match="NaN for sample 0 "):
        self_influence([(broken, 0.1)], images, labels, to_input=to_input)
    labels = labels.clone()
    labels[17] = 3
    with pytest.raises(UserError, match=r"label 3 of sample 17 is outside .* 0\.\.2"):
        self_influence(CHECKPOINTS, images, labels, to_input=to_input, batch_size=5)
    ids = [f"face-{i}" for i in range(23)]
    with pytest.raises(UserError, match="label 3 of sample face-17"):
        self_influence(CHECKPOINTS, images, labels, to_input=to_input, batch_size=5, ids=ids)
    with pytest.raises(UserError, match="22 ids"):
        self_influence(CHECKPOINTS, images, labels, to_input=to_input, ids=ids[:22])
    with pytest.raises(UserError, match="at least 1, got 0"):
        self_influence(CHECKPOINTS, images, labels, to_input=to_input, batch_size=0)


def test_a_checkpoint_of_another_architecture_is_named(samples: tuple[Tensor, Tensor]) -> None:
    wider = nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(180, 3))
    with pytest.raises(UserError, match=r"checkpoint 1 .* 0.weight has shape \(5, 1, 3, 3\), expected \(4, "):
        self_influence([CHECKPOINTS[0], (wider, 0.1)], *samples, to_input=to_input)


def test_parts_of_other_settings_are_refused(samples: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    self_influence(CHECKPOINTS, *samples, to_input=to_input, scratch=tmp_path)
    with pytest.raises(UserError, match="scope = all, this run has scope = head"):
        self_influence(CHECKPOINTS, *samples, to_input=to_input, scratch=tmp_path, scope="head")


def test_models_are_loaded_one_at_a_time(samples: tuple[Tensor, Tensor]) -> None:
    alive: list[weakref.ref[nn.Module]] = []

    def load(seed: int) -> nn.Module:
        assert all(reference() is None for reference in alive)
        model = network(seed)
        alive.append(weakref.ref(model))
        return model

    lazy = [(functools.partial(load, 0), 0.1), (functools.partial(load, 1), 0.02)]
    found = self_influence(lazy, *samples, to_input=to_input)
    np.testing.assert_array_equal(found, self_influence(CHECKPOINTS, *samples, to_input=to_input))


def test_the_batch_is_chosen_by_what_a_sample_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(256, 3)).train()
    inputs = torch.randn(2, 1, 8, 8)
    each = 4 * (64 + 256)  # what came in, and what tanh and the linear layer share
    for samples, expected in ((100, 64), (0.5, 1), (1e9, 512)):
        monkeypatch.setattr(stream, "_CPU_BYTES", int(samples * each))
        assert fitting_batch(model, inputs) == expected
    assert model.training and not inputs.requires_grad


def test_layer_shares_are_those_of_the_breakdown(samples: tuple[Tensor, Tensor]) -> None:
    shares = layer_shares(CHECKPOINTS, *samples, to_input=to_input, batch_size=5)
    assert list(shares) == ["0", "1", "4"]
    assert sum(shares.values()) == pytest.approx(1)
    whole = self_influence(CHECKPOINTS, *samples, to_input=to_input).sum()
    for layer in shares:
        part = self_influence(CHECKPOINTS, *samples, to_input=to_input, scope=[layer]).sum()
        assert shares[layer] == pytest.approx(part / whole, rel=1e-5)
