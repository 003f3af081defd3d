from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from diffinf.classify import train
from diffinf.classify.model import ClassifierSpec, load_classifier, predict
from diffinf.compare import runner
from diffinf.compare.runner import run_arms
from diffinf.config import ClassifierConfig, CompareConfig
from diffinf.errors import UserError
from diffinf.files import load_tensors, read_class_names, read_json, read_table
from diffinf.training.loop import DivergedError

SPEC = ClassifierSpec("small_cnn", num_classes=2, in_channels=1, image_size=32, class_names=("top", "bottom"))
CONFIG = ClassifierConfig(steps=24, batch_size=16, learning_rate=5e-3)


def halves(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures with one bright half, and which."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    images = torch.randint(60, 130, (n, 1, 32, 32), generator=generator, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 16 * label : 16 * (label + 1)] += 60
    return images, labels


def arguments(directory: Path, arms: list[str], **options: Any) -> dict[str, Any]:
    """48 samples, a quarter of them with the wrong label and flagged; the edits turn the picture over."""
    images, truth = halves(48, 0)
    flagged = np.arange(48) // 2 % 4 == 0
    labels = torch.where(torch.from_numpy(flagged), 1 - truth, truth)
    test_images, test_labels = halves(20, 1)
    rows = np.flatnonzero(flagged).tolist()
    given = {
        "images_train": images,
        "labels_train": labels,
        "ids": [f"id{i:02}" for i in range(48)],
        "flagged": flagged,
        "appears": truth.numpy(),
        "edited_images": {row: images[row].flip(1) for row in rows[:-2]},
        "relabelled": {rows[-2]: int(truth[rows[-2]])},
        "dropped": {rows[-1]},
        "images_test": test_images,
        "labels_test": test_labels,
        "spec": SPEC,
        "config": CONFIG,
        "compare": CompareConfig.model_construct(arms=arms, seeds=1, workers=1),
        "seed": 0,
        "directory": directory / "compare",
        "progress": False,
    }
    return {**given, **options}


def test_table_predictions_and_final_model(tmp_path: Path) -> None:
    options = arguments(
        tmp_path,
        ["baseline", "filter", "diffinf"],
        final_directory=tmp_path / "final",
        table_path=tmp_path / "compare.parquet",
    )
    table = run_arms(**options)
    rows = table.to_pylist()
    assert [(row["arm"], row["seed"]) for row in rows] == [("baseline", 0), ("filter", 0), ("diffinf", 0)]
    assert [row["n_train"] for row in rows] == [48, 36, 47]
    assert all(row["steps"] == 24 and not row["diverged"] and row["seconds"] > 0 for row in rows)
    assert rows[1]["balanced_accuracy"] > 0.9 and rows[2]["balanced_accuracy"] > 0.9
    saved = read_table(tmp_path / "compare.parquet")
    assert saved.to_pylist() == rows and read_class_names(saved) == ("top", "bottom")
    labels = load_tensors(tmp_path / "compare" / "test.safetensors")["labels"]
    assert torch.equal(labels, options["labels_test"])
    logits = load_tensors(tmp_path / "compare" / "predictions" / "diffinf-0.safetensors")["logits"]
    assert rows[2]["accuracy"] == (logits.argmax(1) == labels).float().mean().item()
    model, spec = load_classifier(tmp_path / "final")
    assert spec == SPEC
    assert torch.equal(predict(model, options["images_test"], device="cpu")[1], logits)
    assert not (tmp_path / "compare" / ".work").exists()


def test_records_count_the_labels_that_were_trained_on(tmp_path: Path) -> None:
    options = arguments(tmp_path, ["baseline", "filter"])
    run_arms(**options)
    labels, flagged = options["labels_train"], torch.from_numpy(options["flagged"])
    for arm, trained_on in (("baseline", labels), ("filter", labels[~flagged])):
        record = read_json(tmp_path / "compare" / "predictions" / f"{arm}-0.json")
        assert record["label_counts"] == torch.bincount(trained_on).tolist()


def test_arms_of_a_seed_start_alike_and_equal_material_gives_equal_results(tmp_path: Path) -> None:
    """Nothing flagged: every arm is the baseline, to the bit."""
    nothing = {"edited_images": {}, "relabelled": {}, "dropped": (), "flagged": np.zeros(48, bool)}
    run_arms(**arguments(tmp_path, ["baseline", "filter", "diffinf"], **nothing))
    found = [
        load_tensors(tmp_path / "compare" / "predictions" / f"{arm}-0.safetensors")["logits"]
        for arm in ("baseline", "filter", "diffinf")
    ]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_finished_arms_are_kept_and_the_rest_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = ["baseline", "relabel", "diffinf"]
    straight = run_arms(**arguments(tmp_path / "straight", arms))
    original, asked = runner.arm_job, list[str]()

    def watched(job: Any, report: Any) -> dict[str, Any]:
        asked.append(job["arm"])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return original(job, report)

    monkeypatch.setattr(runner, "arm_job", watched)
    with pytest.raises(KeyboardInterrupt):
        run_arms(**arguments(tmp_path / "killed", arms))
    resumed = run_arms(**arguments(tmp_path / "killed", arms))
    assert asked == ["baseline", "relabel", "relabel", "diffinf"]
    assert resumed.drop_columns("seconds") == straight.drop_columns("seconds")
    for arm in arms:
        name = f"compare/predictions/{arm}-0.safetensors"
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    # Other edits concern the arm diffinf alone.
    asked.clear()
    asked += ["", ""]
    run_arms(**arguments(tmp_path / "killed", arms, edited_images={}))
    assert asked[2:] == ["diffinf"]


def test_divergence_is_a_row_and_does_not_sink_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = runner.train_classifier

    def diverging(images: torch.Tensor, labels: torch.Tensor, **options: Any) -> Any:
        if len(labels) == 36:  # the arm filter
            raise DivergedError("the loss is nan at step 3")
        return train(images, labels, **options)

    monkeypatch.setattr(runner, "train_classifier", diverging)
    table: pa.Table = run_arms(**arguments(tmp_path, ["baseline", "filter"]))
    good, bad = table.to_pylist()
    assert not good["diverged"] and good["accuracy"] is not None
    assert bad["diverged"] and bad["arm"] == "filter" and bad["seed"] == 0
    assert bad["accuracy"] is None and bad["balanced_accuracy"] is None
    assert not (tmp_path / "compare" / "predictions" / "filter-0.safetensors").exists()


def test_no_stale_final_model_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final = tmp_path / "final"

    def compared(arms: list[str], **options: Any) -> bool:
        run_arms(**arguments(tmp_path, arms, final_directory=final, **options))
        return final.exists()

    assert compared(["diffinf"])
    kept = (final / "model.safetensors").stat().st_mtime_ns
    assert compared(["diffinf"]) and (final / "model.safetensors").stat().st_mtime_ns == kept
    assert not compared(["baseline"])
    assert compared(["diffinf"])

    def diverging(*_: Any, **__: Any) -> Any:
        raise DivergedError("the loss is nan at step 3")

    monkeypatch.setattr(runner, "train_classifier", diverging)
    assert not compared(["diffinf"], edited_images={})


def test_robust_arms_beside_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = ["baseline", "gce", "co-teaching", "sam", "diffinf+elr", "filter+aldr-kl", "down-weight"]
    rows = run_arms(**arguments(tmp_path, arms, noise_rate=0.25)).to_pylist()
    assert [row["arm"] for row in rows] == arms and not any(row["diverged"] for row in rows)
    assert [row["n_train"] for row in rows] == [48, 48, 48, 48, 47, 36, 48]
    assert {row["steps"] for row in rows} == {24}
    found = [
        load_tensors(tmp_path / "compare" / "predictions" / f"{arm}-0.safetensors")["logits"] for arm in arms
    ]
    assert not any(torch.equal(found[0], other) for other in found[1:])
    # Another knob concerns its own method alone; another noise rate co-teaching alone.
    original, asked = runner.arm_job, list[str]()

    def watched(job: Any, report: Any) -> dict[str, Any]:
        asked.append(job["arm"])
        return original(job, report)

    monkeypatch.setattr(runner, "arm_job", watched)
    knobs = {"aldr-kl": 3.0, "down-weight": 0.1}
    other = CompareConfig(arms=arms, seeds=1, workers=1, knobs=knobs)
    run_arms(**arguments(tmp_path, arms, noise_rate=0.1, compare=other))
    assert asked == ["co-teaching", "filter+aldr-kl", "down-weight"]


def test_a_robust_arm_that_was_cut_goes_on_and_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = ["co-teaching", "elr"]
    straight = run_arms(**arguments(tmp_path / "straight", arms))
    monkeypatch.setattr(train, "_SAVE_EVERY", 5)
    original, cuts = runner.arm_job, [13, 7]

    def cut(job: Any, report: Any) -> dict[str, Any]:
        def stop(done: int) -> None:
            if cuts and done == cuts[0]:
                cuts.pop(0)
                raise KeyboardInterrupt
            report(done)

        return original(job, stop)

    monkeypatch.setattr(runner, "arm_job", cut)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_arms(**arguments(tmp_path / "cut", arms))
    resumed = run_arms(**arguments(tmp_path / "cut", arms))
    assert not cuts and resumed.drop_columns("seconds") == straight.drop_columns("seconds")
    for arm in arms:
        name = f"compare/predictions/{arm}-0.safetensors"
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_validation_logits_are_saved_where_there_is_validation(tmp_path: Path) -> None:
    images, labels = halves(12, 2)
    run_arms(**arguments(tmp_path, ["baseline"]))
    place = tmp_path / "compare" / "predictions" / "baseline-0.safetensors"
    before = load_tensors(place)
    assert set(before) == {"logits"}
    given = {"images_validation": images, "labels_validation": labels}
    run_arms(**arguments(tmp_path, ["baseline"], **given))
    saved = load_tensors(place)
    assert torch.equal(saved["logits"], before["logits"]) and saved["validation_logits"].shape == (12, 2)
    assert (saved["validation_logits"].argmax(1) == labels).float().mean() > 0.7
    assert torch.equal(load_tensors(tmp_path / "compare" / "validation.safetensors")["labels"], labels)
    with pytest.raises(ValueError, match="come together"):
        run_arms(**arguments(tmp_path, ["baseline"], images_validation=images))


def test_edits_of_other_flags(tmp_path: Path) -> None:
    """Arms whose edits come from elsewhere, and the policies without decisions of a repair."""
    images = halves(48, 0)[0]
    turned = {row: images[row].flip(1) for row in (0, 1, 8, 9)}
    arms = ["diffinf-paper", "true-flags", "diffinf-edit-or-relabel", "diffinf-edit-or-drop", "cleanlab"]
    given = {"paper_edits": {0: turned[0]}, "true_flag_edits": turned, "cleanlab_issues": np.arange(48) < 4}
    rows = run_arms(**arguments(tmp_path, arms, **given)).to_pylist()
    assert [row["n_train"] for row in rows] == [48, 48, 48, 46, 44]


def test_clean_arm_and_seeds(tmp_path: Path) -> None:
    truth = halves(48, 0)[1]
    compare = CompareConfig.model_construct(arms=["clean"], seeds=2, workers=1)
    rows = run_arms(**arguments(tmp_path, [], truth=truth, compare=compare, seed=5)).to_pylist()
    assert [row["seed"] for row in rows] == [5, 6]
    assert min(row["accuracy"] for row in rows) > 0.9
    first, second = (
        load_tensors(tmp_path / "compare" / "predictions" / f"clean-{seed}.safetensors")["logits"]
        for seed in (5, 6)
    )
    assert not torch.equal(first, second)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs unedited reconstructions"):
        run_arms(**arguments(tmp_path, ["roundtrip"]))
    wrong = {0: torch.zeros(1, 16, 16, dtype=torch.uint8)}
    with pytest.raises(ValueError, match="a replacement must be uint8"):
        run_arms(**arguments(tmp_path, ["baseline"], edited_images=wrong))


def test_of_ordered_classes_the_distance_is_measured(tmp_path: Path) -> None:
    (plain,) = run_arms(**arguments(tmp_path, ["baseline"])).to_pylist()
    (row,) = run_arms(**arguments(tmp_path, ["baseline"], ordered=True)).to_pylist()
    assert plain["mean_absolute_error"] is None
    assert row["mean_absolute_error"] == pytest.approx(1 - row["accuracy"])  # of two classes


def test_arms_learn_shares_where_there_are_some(tmp_path: Path) -> None:
    options = arguments(tmp_path, ["baseline", "diffinf"])
    run_arms(**options)
    predictions = tmp_path / "compare" / "predictions"
    before = load_tensors(predictions / "baseline-0.safetensors")["logits"].softmax(1)
    even = torch.full((48, 2), 0.5)
    run_arms(**{**options, "targets": even})
    after = load_tensors(predictions / "baseline-0.safetensors")["logits"].softmax(1)
    # Votes that are even teach nothing.
    assert after.max(1).values.mean() < 0.52 < before.max(1).values.mean()
