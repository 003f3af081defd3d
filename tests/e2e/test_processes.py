"""Stages that torchrun's processes share, through the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def diffinf(*arguments: object, processes: int = 1) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(torchrun if processes > 1 else []), "-m", "diffinf", "-q"]
    done = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr


def test_processes_train_the_autoencoder_that_one_trains(tmp_path: Path) -> None:
    faces, one, two = tmp_path / "faces.parquet", tmp_path / "one", tmp_path / "two"
    diffinf("render", faces, "--n", 160, "--size", 32, "--identities", 40, "--rate", 0.3)
    options = ("--preset", "tiny", "--device", "cpu", "--set", "autoencoder.validation_share=0.4")
    options += ("--set", "classifier.steps=8", "--identity", "identity")
    diffinf("train", faces, "--out", one, *options)
    diffinf("score", one)
    shutil.copytree(one, two)
    diffinf("train-autoencoder", one)
    diffinf("train-autoencoder", two, processes=2)
    files = [sorted(p.relative_to(run) for p in (run / "autoencoder").rglob("*")) for run in (one, two)]
    assert files[0] == files[1] and any(path.suffix == ".png" for path in files[0])
    alone, together = (json.loads((run / "autoencoder" / "metrics.json").read_text()) for run in (one, two))
    for name in ("denoiser", "guide"):
        # torchrun gives each process one thread, and sums over threads round differently.
        assert together[name] == pytest.approx(alone[name], rel=1e-3), name
    assert together["validation"][-1]["v"] == pytest.approx(alone["validation"][-1]["v"], rel=1e-3)
    events = [json.loads(line) for line in (two / "events.jsonl").read_text().splitlines()]
    heard = [event["event"] for event in events if event["stage"] == "train-autoencoder"]
    assert heard == ["start", "validation", "validation", "sheets", "end"]  # of the first process alone
