from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_problem import Problem
from torch import Tensor, nn

from diffinf.classify import crossfit, workers
from diffinf.classify.crossfit import (
    CrossFit,
    cross_fit,
    fold_assignment,
    load_crossfit,
    out_of_fold_logits,
    write_material,
)
from diffinf.classify.model import predict
from diffinf.classify.train import train_classifier
from diffinf.config import ClassifierConfig
from diffinf.errors import UserError
from diffinf.training.loop import DivergedError


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=8, max_size=120), st.integers(2, 5), st.integers(0, 99))
def test_folds_are_stratified_and_do_not_depend_on_the_order(
    labels: list[int], folds: int, seed: int
) -> None:
    ids = [f"id{i}" for i in range(len(labels))]
    fold = fold_assignment(ids, np.array(labels), folds, seed)
    sizes = np.bincount(fold, minlength=folds)
    assert len(fold) == len(labels) and len(sizes) == folds and sizes.min() > 0
    for label in set(labels):
        counts = np.bincount(fold[np.array(labels) == label], minlength=folds)
        assert counts.max() - counts.min() <= 1
    order = list(range(len(labels)))
    Random(seed).shuffle(order)
    shuffled = fold_assignment([ids[i] for i in order], np.array(labels)[order], folds, seed)
    assert (shuffled == fold[order]).all()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20)), min_size=60, max_size=150), st.integers(0, 9)
)
def test_a_person_stays_in_one_fold(samples: list[tuple[int, int]], seed: int) -> None:
    labels = np.array([label for label, _ in samples])
    people = np.array([None if person == 0 else f"p{person}" for _, person in samples], dtype=object)
    assume(len(set(people)) >= 4)
    fold = fold_assignment([f"id{i}" for i in range(len(samples))], labels, 3, seed, people)
    for person in set(people) - {None}:
        assert len(set(fold[people == person])) == 1
    assert len(set(fold)) == 3


def test_seeds_differ_and_too_many_folds_are_refused() -> None:
    ids, labels = [f"id{i}" for i in range(40)], np.arange(40) % 2
    assert (fold_assignment(ids, labels, 4, 0) != fold_assignment(ids, labels, 4, 1)).any()
    with pytest.raises(UserError, match="5 folds need as many samples, there are 4"):
        fold_assignment(ids[:4], labels[:4], 5, 0)
    with pytest.raises(UserError, match="persons"):
        fold_assignment(ids, labels, 3, 0, np.array(["a", "b"] * 20))


def fit_folds(problem: Problem, config: ClassifierConfig, directory: Path, **options: Any) -> CrossFit:
    given: dict[str, Any] = {"workers": 1, "progress": False, "folds": 2, "seed": 0, **options}
    return cross_fit(
        problem.images,
        problem.labels,
        problem.ids,
        spec=problem.spec,
        config=config,
        directory=directory,
        **given,
    )


def test_out_of_fold_outputs(problem: Problem, config: ClassifierConfig, tmp_path: Path) -> None:
    found = fit_folds(problem, config, tmp_path)
    assert found.logits.shape == (64, 2) and found.features.shape == (64, 96)
    assert (found.logits.argmax(1) == problem.labels).float().mean() > 0.9
    for k, model in enumerate(found.models()):
        rows = found.fold == k
        features, logits = predict(model, problem.images[rows], device="cpu")
        torch.testing.assert_close(found.logits[rows], logits)
        torch.testing.assert_close(found.features[rows], features)
    torch.testing.assert_close(out_of_fold_logits(found, problem.images, found.fold), found.logits)
    again = load_crossfit(tmp_path)
    assert torch.equal(again.logits, found.logits) and torch.equal(again.fold, found.fold)


def test_workers_give_the_same_and_finished_folds_are_kept(
    problem: Problem, config: ClassifierConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = fit_folds(problem, config, tmp_path / "here")
    there = fit_folds(problem, config, tmp_path / "there", workers=2)
    assert torch.equal(here.logits, there.logits) and torch.equal(here.features, there.features)
    shutil.rmtree(tmp_path / "there" / "fold-1")
    asked: list[int] = []

    def counting(target: str, jobs: Any, **options: Any) -> Any:
        asked.extend(job["fold"] for job in jobs)
        return workers.run_jobs(target, jobs, **options)

    monkeypatch.setattr(crossfit, "run_jobs", counting)
    assert torch.equal(fit_folds(problem, config, tmp_path / "there").logits, here.logits)
    assert asked == [1]


def test_a_second_view_is_trained_on_in_the_same_folds(
    problem: Problem, config: ClassifierConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paler = problem.images // 2 + 64
    asked: list[dict[str, Any]] = []

    def watched(images: Tensor, labels: Tensor, **options: Any) -> nn.Module:
        asked.append({"images": images[options["rows"]], "labels": labels, "weights": options["weights"]})
        return train_classifier(images, labels, **options)

    monkeypatch.setattr(crossfit, "train_classifier", watched)
    weights = torch.arange(64) / 10
    both = fit_folds(problem, config, tmp_path, extra_images=paler, weights=weights)
    assert both.logits.shape == (64, 2)
    for k, trained in enumerate(asked):
        kept = both.fold != k
        assert torch.equal(trained["images"], torch.cat([problem.images[kept], paler[kept]]))
        assert torch.equal(trained["labels"], problem.labels[kept].repeat(2))
        assert torch.equal(trained["weights"], weights[kept].repeat(2))


def test_errors_come_back_from_workers(problem: Problem, config: ClassifierConfig, tmp_path: Path) -> None:
    """One worker: a user's mistake (fold 0 is all of class 0), a divergence, and at last a fault of ours."""
    spec = {**asdict(problem.spec), "class_names": []}
    settings_ = config.model_dump(mode="json")
    write_material(
        tmp_path / ".work" / "material", images=problem.images, labels=problem.labels, fold=problem.labels
    )
    job = {"directory": str(tmp_path), "fold": 2, "seed": 0, "key": "", "device": "cpu"}
    worker = workers._Worker("diffinf.classify.crossfit:fold_job")
    try:
        with pytest.raises(UserError, match="all 32 training samples have one label"):
            worker.ask({**job, "fold": 0, "spec": spec, "config": settings_}, lambda _: None)
        with pytest.raises(DivergedError):
            wild = {**settings_, "learning_rate": 1e30}
            worker.ask({**job, "spec": spec, "config": wild}, lambda _: None)
        with pytest.raises(RuntimeError, match="KeyError: 'spec'"):
            worker.ask(job, lambda _: None)
    finally:
        worker.close()


def test_a_worker_dies_with_its_caller() -> None:
    """The worker's input ends when the caller is killed."""
    worker = workers._Worker("time:sleep")
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    assert worker.process.wait(timeout=60) == 0
    worker.close()
