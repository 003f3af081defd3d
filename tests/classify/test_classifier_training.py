from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_problem import Problem
from torch import Tensor, nn

from diffinf.classify import train
from diffinf.classify.model import create_classifier, predict, save_classifier
from diffinf.classify.train import (
    DivergedError,
    load_checkpoints,
    load_dynamics,
    train_classifier,
    training_key,
)
from diffinf.config import ClassifierConfig
from diffinf.errors import UserError


class KilledError(BaseException):
    """Stands for kill -9: nothing of ours may catch it."""


def kill_at(step: int) -> Callable[[int], None]:
    def kill(done: int) -> None:
        if done == step:
            raise KilledError

    return kill


def accuracy(model: nn.Module, problem: Problem) -> float:
    predicted = predict(model, problem.images, device="cpu")[1].argmax(1)
    return (predicted == problem.labels).float().mean().item()


def equal(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def run(
    problem: Problem, config: ClassifierConfig, directory: Path | None = None, **options: Any
) -> nn.Module:
    given: dict[str, Any] = {"images": problem.images, "labels": problem.labels, "seed": 0, **options}
    return train_classifier(**given, spec=problem.spec, config=config, directory=directory, progress=False)


def test_learns_and_records(
    problem: Problem, unseen: Problem, config: ClassifierConfig, tmp_path: Path
) -> None:
    model = run(problem, config, tmp_path)
    assert not model.training and accuracy(model, unseen) > 0.9
    checkpoints = load_checkpoints(tmp_path)
    assert len(checkpoints) == 3 and equal(checkpoints[-1][0], model)
    rates = [rate for _, rate in checkpoints]
    assert rates == sorted(rates, reverse=True) and rates[-1] > 0
    dynamics = load_dynamics(tmp_path)
    assert dynamics.shape == (6, 64, 2)  # 24 steps of 16 are 6 epochs of 64
    torch.testing.assert_close(dynamics[-1], predict(model, problem.images, device="cpu")[1])
    assert not (tmp_path / ".work").exists()


def test_a_finished_training_is_loaded_and_another_one_is_not(
    problem: Problem, config: ClassifierConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = run(problem, config, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(train._Training, "step", lambda *_: pytest.fail("trained again"))
        assert equal(run(problem, config, tmp_path), model)
    assert not equal(run(problem, config, tmp_path, seed=1), model)


@pytest.mark.parametrize("at", [3, 10, 17])
def test_resumed_equals_undisturbed(
    problem: Problem, config: ClassifierConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(train, "_SAVE_EVERY", 5)
    straight = run(problem, config, tmp_path / "straight")
    with pytest.raises(KilledError):
        run(problem, config, tmp_path / "killed", on_step=kill_at(at))
    torch.rand(7)  # the global generator must not matter
    done: list[int] = []
    resumed = run(problem, config, tmp_path / "killed", on_step=done.append)
    assert done[0] == (at - 1) // 5 * 5 + 1  # the kill came before the save of its own step
    assert equal(straight, resumed)
    for name in ("dynamics.safetensors", "model.safetensors"):
        assert (tmp_path / "straight" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    both = [load_checkpoints(tmp_path / name) for name in ("straight", "killed")]
    assert all(equal(first, second) for (first, _), (second, _) in zip(*both, strict=True))


def test_what_was_left_of_another_training_is_not_taken_up(
    problem: Problem, config: ClassifierConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_SAVE_EVERY", 5)
    with pytest.raises(KilledError):
        run(problem, config, tmp_path, on_step=kill_at(12))
    done: list[int] = []
    model = run(problem, config, tmp_path, seed=1, on_step=done.append)
    assert done[0] == 1 and equal(model, run(problem, config, seed=1))


def test_in_memory_equals_on_disk(problem: Problem, config: ClassifierConfig, tmp_path: Path) -> None:
    assert equal(run(problem, config), run(problem, config, tmp_path, record=False))
    assert not (tmp_path / "dynamics.safetensors").exists()


def test_weights_are_respected(problem: Problem, unseen: Problem, config: ClassifierConfig) -> None:
    """Half of the labels are wrong: with the weight on one half the network learns that half."""
    labels = problem.labels.clone()
    wrong = torch.arange(len(labels)) // 2 % 2 == 0
    labels[wrong] = 1 - labels[wrong]
    right = (~wrong).float()
    good = run(problem, config, labels=labels, weights=right)
    assert accuracy(good, unseen) > 0.9
    assert accuracy(run(problem, config, labels=labels, weights=1 - right), unseen) < 0.1
    assert equal(good, run(problem, config, labels=labels, weights=8 * right))  # only proportions count


def test_rows_pick_images(problem: Problem, config: ClassifierConfig) -> None:
    pool, rows = torch.cat([problem.images.flip(0), problem.images]), torch.arange(64, 128)
    assert equal(run(problem, config, images=pool, rows=rows), run(problem, config))
    options: dict[str, Any] = {"spec": problem.spec, "config": config, "seed": 0}
    key = training_key(problem.images, problem.labels, **options)
    assert key == training_key(pool, problem.labels, rows=rows, **options)
    assert key != training_key(pool, problem.labels, rows=rows.flip(0), **options)


def test_divergence_has_a_name(problem: Problem, config: ClassifierConfig) -> None:
    with pytest.raises(DivergedError, match=r"nan|inf"):
        run(problem, config.model_copy(update={"learning_rate": 1e30}))


def test_one_class_only(problem: Problem, config: ClassifierConfig) -> None:
    with pytest.raises(UserError, match="all 64 training samples have one label"):
        run(problem, config, labels=torch.zeros(64, dtype=torch.int64))


def test_shapes_and_weights_are_checked(problem: Problem, config: ClassifierConfig) -> None:
    with pytest.raises(ValueError, match="uint8"):
        run(problem, config, images=problem.images.float())
    with pytest.raises(ValueError, match="as many labels"):
        run(problem, config, labels=problem.labels[:5])
    with pytest.raises(ValueError, match=r"0\.\.1"):
        run(problem, config, labels=problem.labels + 1)
    for weights in (torch.zeros(64), -torch.ones(64), torch.full((64,), torch.nan)):
        with pytest.raises(ValueError, match="weights"):
            run(problem, config, weights=weights)


def test_a_users_classifier_takes_the_place_of_the_training(
    problem: Problem, config: ClassifierConfig, tmp_path: Path
) -> None:
    mine = create_classifier(problem.spec, seed=7).eval()
    save_classifier(tmp_path / "mine", mine, problem.spec)
    brought = config.model_copy(update={"checkpoint": tmp_path / "mine"})
    assert equal(run(problem, brought, tmp_path / "out"), mine)
    [(checkpoint, rate)] = load_checkpoints(tmp_path / "out")
    assert equal(checkpoint, mine) and rate == config.learning_rate
    assert load_dynamics(tmp_path / "out").shape == (1, 64, 2)


def test_targets_that_are_the_labels_train_the_same(problem: Problem, config: ClassifierConfig) -> None:
    shares = nn.functional.one_hot(problem.labels, 2)
    hard, soft = (run(problem, config, **given) for given in ({}, {"targets": shares}))
    for one, other in zip(hard.state_dict().values(), soft.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_targets_take_the_place_of_the_labels(
    problem: Problem, unseen: Problem, config: ClassifierConfig
) -> None:
    swapped = nn.functional.one_hot(1 - problem.labels, 2).float()
    assert accuracy(run(problem, config, targets=swapped), unseen) < 0.1
    # Shares are learned as shares, not as the likelier class.
    shares = torch.where(problem.labels[:, None] == torch.arange(2), 0.8, 0.2)
    longer = config.model_copy(update={"steps": 120, "label_smoothing": 0.0})
    read = predict(run(problem, longer, targets=shares), problem.images, device="cpu")[1].softmax(1)
    torch.testing.assert_close(read.mean(0), torch.full((2,), 0.5), rtol=0, atol=0.1)
    assert float(read.gather(1, problem.labels[:, None]).mean()) == pytest.approx(0.8, abs=0.07)


def test_targets_are_part_of_the_key(problem: Problem, config: ClassifierConfig) -> None:
    shares = nn.functional.one_hot(problem.labels, 2).float()
    other = shares.clone()
    other[0] = 0.5
    given: dict[str, Any] = {"spec": problem.spec, "config": config, "seed": 0}
    keys = [
        training_key(problem.images, problem.labels, **given, targets=targets)
        for targets in (None, shares, other, shares.clone())
    ]
    assert len(set(keys)) == 3 and keys[1] == keys[3]


@pytest.mark.parametrize(
    "targets",
    [
        torch.full((63, 2), 0.5),
        torch.full((64, 3), 1 / 3),
        torch.full((64,), 0.5),
        torch.full((64, 2), torch.nan),
        torch.tensor([[1.5, -0.5]]).repeat(64, 1),
        torch.full((64, 2), 0.6),
    ],
    ids=["rows", "classes", "flat", "nan", "negative", "sum"],
)
def test_targets_that_are_no_shares_are_refused(
    problem: Problem, config: ClassifierConfig, targets: Tensor
) -> None:
    with pytest.raises(ValueError, match=r"targets must be shares of the classes \(64, 2\)"):
        run(problem, config, targets=targets)
