"""The checks for a GPU, on one that is pretended: what there is to find on a real one cannot be found here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffinf.config import AutoencoderConfig, preset
from pretend_cuda import pretend_cuda

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    for name, few in (("WARM", 1), ("ROUND_TRIP", 2), ("IMAGES", 8)):
        monkeypatch.setattr(gpu, name, few)
    small = {"latent_channels": 4, "attribute_size": 2, "appearance_size": 3, "unet_channels": [32]}
    monkeypatch.setattr(gpu, "preset", lambda name: {"autoencoder": {**small, "batch_size": 4}})
    return gpu


def test_both_parts_run_where_a_gpu_would_be(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "PRECISIONS", ("float32", "float16"))
    with pretend_cuda() as cuda:
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2e9)
        agreement = gpu.agreement(cuda, 2)
        rows = gpu.training(cuda, 1, ["gpu-48"])
    assert list(agreement) == ["float32", "TensorFloat-32"]
    assert all(
        row["edit: largest"] <= 1 and row["self-influence: largest"] < 1e-3 for row in agreement.values()
    )
    assert [row["precision"] for row in rows] == ["float32", "float32", "float16", "float16"]
    assert all(row["peak GB"] == 2 and row["batch"] == 4 for row in rows)


def test_what_differs_is_told(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = gpu.computed, []

    def off(images: Tensor, labels: Tensor, device: torch.device) -> dict[str, Tensor]:
        calls.append(device)
        values: dict[str, Tensor] = real(images, labels, device)
        if len(calls) > 1:  # the first are the CPU's
            values["edit"][0, 0, 0, 0] ^= 64
            values["self-influence"][1] *= 1.5
        return values

    monkeypatch.setattr(gpu, "computed", off)
    row = gpu.agreement(torch.device("cpu"), 2)["float32"]
    assert row["edit: largest"] == 64 and row["round trip: largest"] == 0
    assert row["self-influence: largest"] == pytest.approx(0.5)


def test_the_report(
    gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "agreement", lambda device, n: {"float32": {"edit: mean": 0.0}})
    gpu.main(["--device", "cpu", "--steps", "1", "--presets", "gpu-48", "--out", str(tmp_path / "gpu.json")])
    report = json.loads((tmp_path / "gpu.json").read_text())
    timed = [row for row in report["training"] if "refused" not in row]
    assert {row["precision"] for row in timed} == {"float32", "bfloat16"}
    assert all("needs a GPU" in row["refused"] for row in report["training"] if "refused" in row)
    assert "python benchmarks/gpu.py" in report["command"] and "not on this device" in capsys.readouterr().out


def test_a_step_is_timed_without_what_happens_once(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, trained = [0.0], []

    def train(*_: Any, config: Any = None, **__: Any) -> None:
        around = (
            10 if trained else 100
        )  # what a training begins and ends with; the first of a process with more
        clock[0] += around + 3 * config.steps
        trained.append(config.steps)

    monkeypatch.setattr(gpu, "train_autoencoder", lambda *given, **named: train(config=given[3], **named))
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: clock[0])
    rows = gpu.training(torch.device("cpu"), 4, ["gpu-48"])
    assert trained[:3] == [1, 1, 5] and rows[0]["seconds a step"] == pytest.approx(3)


def test_out_of_memory_is_a_row_of_the_report(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(gpu, "train_autoencoder", full)
    rows = gpu.training(torch.device("cpu"), 1, ["gpu-128"])
    assert [row["refused"] for row in rows[:2]] == ["out of memory"] * 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "nonsense"], "cannot be used here"),
        (["--device", "cuda:99"], "cannot be used here"),
        (["--presets", "gpu-64"], "no such preset"),
        (["--steps", "0"], "expected a positive number"),
    ],
)
def test_options_that_do_not_fit(
    gpu: Any, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu.main(arguments)
    assert ended.value.code == 2 and words in capsys.readouterr().err


def test_the_presets_are_those_of_the_package() -> None:
    for name in ("gpu-48", "gpu-128"):
        AutoencoderConfig(**preset(name)["autoencoder"], precision="bfloat16", gradient_checkpointing=True)
