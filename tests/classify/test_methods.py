from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_problem import Problem
from torch import Tensor, nn
from torch.nn import functional as F

from diffinf.classify import train
from diffinf.classify.methods import (
    Batch,
    CoTeaching,
    MethodSpec,
    Network,
    SharpnessAware,
    create_method,
    frozen_statistics,
)
from diffinf.classify.model import create_classifier, predict, to_input
from diffinf.classify.train import train_classifier, training_key
from diffinf.config import KNOBS, ROBUST_ARMS, ClassifierConfig

METHODS = [MethodSpec(name, KNOBS[name].default) for name in ROBUST_ARMS]
CPU = torch.device("cpu")
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


class KilledError(BaseException):
    """Stands for kill -9."""


def noisy(problem: Problem) -> Tensor:
    """Every fourth label is wrong."""
    wrong = torch.arange(len(problem.labels)) // 2 % 4 == 0
    return torch.where(wrong, 1 - problem.labels, problem.labels)


def fit(problem: Problem, config: ClassifierConfig, **options: Any) -> nn.Module:
    given: dict[str, Any] = {"labels": noisy(problem), "seed": 0, "progress": False, **options}
    return train_classifier(problem.images, spec=problem.spec, config=config, **given)


def batch_of(problem: Problem, step: int = 0, size: int = 16) -> Batch:
    rows = torch.arange(size)
    return Batch(step, to_input(problem.images[rows], CPU), noisy(problem)[rows], rows, None)


def equal(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def make(name: str, problem: Problem, config: ClassifierConfig, knob: float | None = None) -> Any:
    method = MethodSpec(name, KNOBS[name].default if knob is None else knob)
    return create_method(method, problem.spec, config, 0, CPU, len(problem.labels))


@each_method
def test_learns_from_noisy_labels_and_differs_from_cross_entropy(
    problem: Problem, unseen: Problem, config: ClassifierConfig, method: MethodSpec
) -> None:
    longer = config.model_copy(update={"steps": 60})
    model = fit(problem, longer, method=method)
    read = predict(model, unseen.images, device="cpu")[1]
    assert (read.argmax(1) == unseen.labels).float().mean() > 0.8
    plain = fit(problem, longer)
    assert not equal(model, plain)


@each_method
def test_resumed_equals_undisturbed(
    problem: Problem,
    config: ClassifierConfig,
    method: MethodSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second network and the memory of readings are taken up too."""
    monkeypatch.setattr(train, "_SAVE_EVERY", 5)

    def kill(done: int) -> None:
        if done == 13:
            raise KilledError

    straight = fit(problem, config, method=method)
    with pytest.raises(KilledError):
        fit(problem, config, method=method, directory=tmp_path, record=False, on_step=kill)
    done: list[int] = []
    resumed = fit(problem, config, method=method, directory=tmp_path, record=False, on_step=done.append)
    assert done[0] == 11 and equal(straight, resumed)


@each_method
def test_the_knob_is_part_of_the_key_and_does_something(
    problem: Problem, config: ClassifierConfig, method: MethodSpec
) -> None:
    other = MethodSpec(method.name, method.knob / 4)
    assert not equal(fit(problem, config, method=method), fit(problem, config, method=other))
    keys = {
        training_key(problem.images, problem.labels, spec=problem.spec, config=config, seed=0, method=m)
        for m in (None, method, other)
    }
    assert len(keys) == 3


@each_method
def test_all_begin_with_the_same_network(
    problem: Problem, config: ClassifierConfig, method: MethodSpec
) -> None:
    made = create_method(method, problem.spec, config, 0, CPU, 64)
    assert equal(made.network.model, create_classifier(problem.spec, 0))


@each_method
def test_weights_count_under_every_method(
    problem: Problem, config: ClassifierConfig, method: MethodSpec
) -> None:
    weights = torch.where(noisy(problem) == problem.labels, 1.0, 0.0)
    assert not equal(
        fit(problem, config, method=method), fit(problem, config, method=method, weights=weights)
    )


@pytest.mark.parametrize("name", ["gce", "sce", "aldr-kl"])
def test_shares_of_the_classes_are_not_for_losses_of_labels(
    problem: Problem, config: ClassifierConfig, name: str
) -> None:
    shares = F.one_hot(problem.labels, 2).float()
    with pytest.raises(ValueError, match=f"{name} is trained on labels"):
        fit(problem, config, method=MethodSpec(name, 0.5), targets=shares)
    with pytest.raises(ValueError, match="no training method 'magic'"):
        fit(problem, config, method=MethodSpec("magic", 0.5))


def test_elr_without_a_penalty_is_cross_entropy(problem: Problem, config: ClassifierConfig) -> None:
    assert equal(fit(problem, config, method=MethodSpec("elr", 0.0)), fit(problem, config))


def test_elr_remembers_by_sample(problem: Problem, config: ClassifierConfig) -> None:
    elr = make("elr", problem, config)
    rows = torch.tensor([5, 40, 7])
    x = to_input(problem.images[rows], CPU)
    with torch.no_grad():
        said = create_classifier(problem.spec, 0).train()  # the same network, dropout aside
    elr.update(Batch(0, x, problem.labels[rows], rows, None))
    memory = elr.memory.targets
    assert (memory.sum(1) > 0).nonzero()[:, 0].tolist() == [5, 7, 40]
    torch.testing.assert_close(memory[rows].sum(1), torch.full((3,), 0.3))
    said.dropout.p = 0.0
    expected = 0.3 * said(x).softmax(1)
    torch.testing.assert_close(memory[rows], expected.detach(), rtol=0, atol=0.03)


def test_co_teaching_without_forgetting_is_cross_entropy(problem: Problem, config: ClassifierConfig) -> None:
    first = predict(fit(problem, config, method=MethodSpec("co-teaching", 0.0)), problem.images, device="cpu")
    plain = predict(fit(problem, config), problem.images, device="cpu")
    # The order of the sum over the batch differs, nothing else.
    torch.testing.assert_close(first[1], plain[1], rtol=1e-2, atol=1e-2)


def test_co_teaching_forgets_more_over_the_first_tenth(problem: Problem, config: ClassifierConfig) -> None:
    made = make("co-teaching", problem, config.model_copy(update={"steps": 100}), knob=0.25)
    assert [made.kept(step, 64) for step in (0, 5, 10, 99)] == [64, 56, 48, 48]
    assert make("co-teaching", problem, config, knob=0.95).kept(20, 4) == 1


def test_co_teaching_trains_each_network_on_what_the_other_finds_easy(
    problem: Problem, config: ClassifierConfig
) -> None:
    """With the same outcome as one step of each on the peer's choice."""
    made: CoTeaching = make("co-teaching", problem, config, knob=0.5)
    batch = batch_of(problem, step=20)
    peer = Network(problem.spec, config, made.peer.seed, CPU)
    alone = Network(problem.spec, config, 0, CPU)
    assert equal(peer.model, made.peer.model) and not equal(peer.model, alone.model)
    chosen = F.cross_entropy(peer.logits(batch), batch.labels, reduction="none").argsort(stable=True)[:8]
    losses = F.cross_entropy(alone.logits(batch), batch.labels, reduction="none")
    assert set(chosen.tolist()) != set(losses.argsort(stable=True)[:8].tolist())
    alone.descend(losses[chosen].mean(), batch.step)
    made.update(batch)
    for one, other in zip(
        alone.model.state_dict().values(), made.network.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_sam_takes_the_gradient_from_higher_up(problem: Problem, config: ClassifierConfig) -> None:
    """The gradient used is that at w + rho g/|g|; weights are put back, statistics move once."""
    batch, rho = batch_of(problem), 0.5
    made: SharpnessAware = make("sam", problem, config, knob=rho)
    mine = Network(problem.spec, config, 0, CPU)
    mine.backward(F.cross_entropy(mine.logits(batch), batch.labels))
    statistics = {k: v.clone() for k, v in mine.model.state_dict().items() if "running" in k or "num_" in k}
    norm = torch.cat([p.grad.flatten() for p in mine.model.parameters() if p.grad is not None]).norm()
    start = [p.detach().clone() for p in mine.model.parameters()]
    with torch.no_grad():
        for p in mine.model.parameters():
            assert p.grad is not None
            p += rho * p.grad / norm
    mine.backward(F.cross_entropy(mine.logits(batch), batch.labels))
    with torch.no_grad():
        for p, value in zip(mine.model.parameters(), start, strict=True):
            p.copy_(value)
    mine.apply(batch.step)
    made.update(batch)
    found = made.network.model.state_dict()
    pairs = list(zip(mine.model.parameters(), made.network.model.parameters(), strict=True))
    for p, other in pairs:
        torch.testing.assert_close(p.grad, other.grad, rtol=1e-3, atol=1e-5)
    # Adam's first step is of one size: where a gradient is nearly 0 its sign is chance.
    apart = torch.cat([(p - other).detach().flatten() for p, other in pairs])
    assert (apart.abs() > 1e-4).float().mean() < 1e-3
    assert all(torch.equal(found[name], value) for name, value in statistics.items())


def test_frozen_statistics_still_normalise_by_the_batch() -> None:
    norm = nn.BatchNorm1d(3).train()
    x = 5 + torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    with frozen_statistics(norm):
        y = norm(x)
    assert y.mean().abs() < 1e-5 and torch.equal(norm.running_mean, torch.zeros(3))
    norm(x)
    assert not torch.equal(norm.running_mean, torch.zeros(3))


def test_the_settings_choose_the_loss(problem: Problem, config: ClassifierConfig) -> None:
    ordered = config.model_copy(update={"loss": "earth_mover", "label_smoothing": 0.1})
    logits, batch = torch.randn(16, 2), batch_of(problem)
    ours = create_method(None, problem.spec, ordered, 0, CPU, 64).losses(logits, batch)
    target = 0.9 * F.one_hot(batch.labels, 2) + 0.05
    torch.testing.assert_close(ours, (logits.softmax(1) - target)[:, 0].square())
    wrapped = make("sam", problem, ordered).losses(logits, batch)
    torch.testing.assert_close(wrapped, ours)
    keys = {
        training_key(problem.images, problem.labels, spec=problem.spec, config=c, seed=0)
        for c in (ordered, config)
    }
    assert len(keys) == 2


def test_a_training_by_the_earth_movers_distance_learns(problem: Problem, config: ClassifierConfig) -> None:
    ordered = config.model_copy(update={"loss": "earth_mover"})
    model = fit(problem, ordered, labels=problem.labels)
    read = predict(model, problem.images, device=CPU)[1].argmax(1)
    assert (read == problem.labels).float().mean() > 0.9
