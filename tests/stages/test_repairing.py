"""The repair stage's second look at the originals, and the shares of the classes that its judges learn."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from data.miniatures import make_huggingface
from diffinf import pipeline
from diffinf.classify.crossfit import CrossFit
from diffinf.config import DataConfig, RunConfig
from diffinf.files import save_tensors, write_text
from diffinf.influence.noise import class_shares
from diffinf.stages import repairing
from diffinf.stages.repairing import Repair
from diffinf.stages.workspace import Workspace
from stages.repaired_run import make_run

N, K = 6, 3
ROWS = torch.tensor([1, 3, 4])  # flagged


def shares_of(seed: int) -> Tensor:
    return torch.randn(N, K, generator=torch.Generator().manual_seed(seed)).softmax(1)


@pytest.fixture
def repair(tmp_path: Path) -> Repair:
    """A repair of six pictures in three classes, three of them flagged; nothing was trained."""
    made: Any = object.__new__(Repair)
    config = RunConfig(dataset="faces", repair={"trusted_minimum": 2})
    made.workspace = SimpleNamespace(
        seed=5,
        ids=np.array([f"id{n}" for n in range(N)]),
        spec="spec",
        identities=None,
        config=config,
        dataset=SimpleNamespace(class_names=("a", "b", "c")),
    )
    made.trust = torch.ones(N)
    made.config, made.scratch, made.device = config.repair, tmp_path, torch.device("cpu")
    made.labels, made.rows = torch.arange(N) % K, ROWS
    made.images = torch.arange(N).byte()[:, None, None, None].expand(N, 1, 2, 2).clone()
    made.shares = shares_of(0)
    made.crossfit = SimpleNamespace(fitted=shares_of(1))
    return made


def test_a_second_look_knows_the_edits_and_reads_the_originals(
    repair: Repair, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: dict[str, Any] = {}
    logits = torch.randn(3, K, generator=torch.Generator().manual_seed(2))
    fold = torch.tensor([0, 1, 0, 0, 1, 1])

    def cross_fit(images: Tensor, labels: Tensor, ids: Any, **settings: Any) -> CrossFit:
        trained.update(images=images, labels=labels, **settings)
        nothing = torch.zeros(N, K)
        return CrossFit(fold, nothing, nothing, nothing, settings["directory"])

    def read(review: CrossFit, images: Tensor, folds: Tensor, **settings: Any) -> Tensor:
        assert torch.equal(images, repair.images[ROWS]) and torch.equal(folds, fold[ROWS])
        return logits

    monkeypatch.setattr(repairing, "cross_fit", cross_fit)
    monkeypatch.setattr(repairing, "out_of_fold_logits", read)
    images, shares = repair.images.clone(), repair.shares.clone()
    edited = 100 + repair.images[ROWS]
    fit = repair.fit(edited, torch.tensor([True, False, True]))

    # An accepted edit takes its original's place and shows its label; a refused one does neither.
    expected = images.clone()
    expected[[1, 4]] += 100
    assert torch.equal(trained["images"], expected)
    assert torch.equal(trained["targets"][[1, 4]], one_hot(repair.labels[[1, 4]], K).float())
    kept = [0, 2, 3, 5]
    assert torch.equal(trained["targets"][kept], shares[kept])
    assert torch.equal(trained["labels"], repair.labels) and trained["extra_images"] is None
    assert trained["seed"] == 7 and trained["directory"] == repair.scratch / "review"
    # What was there before stays.
    assert torch.equal(repair.images, images) and torch.equal(repair.shares, shares)

    first, second = repair.crossfit.fitted[ROWS], logits.softmax(1)
    own = repair.labels[ROWS][:, None]
    torch.testing.assert_close(fit, ((first + second) / 2).gather(1, own)[:, 0])


def test_an_edit_of_an_unreliable_class_is_none_that_a_second_look_knows(
    repair: Repair, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: dict[str, Any] = {}

    def cross_fit(images: Tensor, *_: Any, **settings: Any) -> CrossFit:
        trained.update(images=images, **settings)
        nothing = torch.zeros(N, K)
        return CrossFit(torch.zeros(N, dtype=torch.long), nothing, nothing, nothing, settings["directory"])

    monkeypatch.setattr(repairing, "cross_fit", cross_fit)
    monkeypatch.setattr(repairing, "out_of_fold_logits", lambda *_, **__: torch.zeros(3, K))
    repair.trust[1] = 0.1  # of the second class, one trusted sample is left
    repair.fit(100 + repair.images[ROWS], torch.tensor([True, True, True]))
    expected = repair.images.clone()
    expected[3] += 100
    assert torch.equal(trained["images"], expected), "rows 1 and 4 are of the second class"
    assert torch.equal(trained["targets"][[1, 4]], repair.shares[[1, 4]])


def test_judges_see_originals_and_round_trips_and_learn_shares(
    repair: Repair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trained: dict[str, Any] = {}
    monkeypatch.setattr(
        repairing, "cross_fit", lambda images, *_, **settings: trained.update(images=images, **settings)
    )
    repair.run = SimpleNamespace(repair=tmp_path)  # type: ignore[assignment]
    repair.judge(repair.images[ROWS] + 50)
    expected = repair.images.clone()
    expected[ROWS] += 50
    assert torch.equal(trained["images"], repair.images) and torch.equal(trained["extra_images"], expected)
    assert torch.equal(trained["targets"], repair.shares) and trained["seed"] == 6


def test_a_class_is_reliable_from_the_least_number_of_trusted_samples_on(repair: Repair) -> None:
    repair.trust = torch.tensor([0.9, 0.5, 0.1, 0.6, 0.4, 0.9])
    assert repair.unreliable().tolist() == [False, True, True]


def test_another_share_of_the_spared_needs_no_new_edits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_huggingface(tmp_path / "source" / "x.parquet")
    run, dataset, _ = make_run(source, tmp_path / "run", DataConfig(split="subset"))
    for stage in ("score", "train-autoencoder"):
        run.stage(stage, stage, lambda: None)
    repaired: list[float] = []

    def repair_run(workspace: Workspace) -> None:
        repaired.append(workspace.config.repair.spare)
        for folder in (run.repair, run.surrogate):
            folder.mkdir(exist_ok=True)

    monkeypatch.setattr(pipeline, "repair_run", repair_run)
    monkeypatch.setattr(pipeline, "refine", lambda run, dataset: True)

    def repair_with(**changes: Any) -> None:
        changed = run.config.repair.model_copy(update=changes)
        write_text(run.path / "config.yaml", run.config.model_copy(update={"repair": changed}).to_yaml())
        pipeline.repair(Workspace(run, dataset))

    for spare in (0, 1, 2, 0, 0.5):
        repair_with(spare=spare)
    assert repaired == [0, 1], "only the second look, the first time that it is asked for"
    repair_with(spare=1, batch_size=7)
    assert repaired == [0, 1], "how many are edited at once changes no edit"
    repair_with(spare=0, guidance=5.0)
    assert repaired == [0, 1, 0], "other edits are made anew, and without a second look"


def test_shares_of_the_classes_come_of_the_out_of_fold_readings(tmp_path: Path) -> None:
    source = make_huggingface(tmp_path / "source" / "x.parquet")
    run, dataset, _ = make_run(source, tmp_path / "run", DataConfig(split="subset"))
    workspace = Workspace(run, dataset)
    n, k = len(workspace.labels), len(dataset.class_names)
    logits = torch.randn(n, k, generator=torch.Generator().manual_seed(0)) * 2
    outputs = {"fold": torch.arange(n) % 2, "features": torch.zeros(n, 3), "logits": logits}
    save_tensors(run.crossfit / "outputs.safetensors", {**outputs, "fitted": torch.zeros(n, k)})
    found = workspace.class_shares()
    expected = class_shares(workspace.labels.numpy(), logits.double().softmax(1).numpy())
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)
