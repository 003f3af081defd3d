"""Parts on disk: dealt out once, whole or not at all, resumed after a kill, shared by processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scoring_process
from hypothesis import given, settings
from hypothesis import strategies as st

from diffinf.errors import UserError
from diffinf.influence.shards import Ranks, Shards

WORKER = Path(scoring_process.__file__)


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(1, 4), st.integers(1, 50), st.integers(1, 9))
def test_every_part_belongs_to_exactly_one_process(
    samples: int, checkpoints: int, chunk: int, size: int
) -> None:
    shards = Shards(None, samples, checkpoints, chunk)
    counts = np.zeros((checkpoints, samples), dtype=int)
    load = []
    for rank in range(size):
        parts = [(c, part) for c, parts in shards.mine(Ranks(rank, size)) for part in parts]
        load.append(len(parts))
        for checkpoint, part in parts:
            counts[checkpoint, shards.rows(part)] += 1
    assert (counts == 1).all()
    assert max(load) - min(load) <= 1


def test_parts_come_back_and_the_mask_knows(tmp_path: Path) -> None:
    shards = Shards(tmp_path, 25, 2, 10)
    values = np.arange(5.0)
    shards.keep(1, 2, values)
    assert shards.done().tolist() == [[False] * 3, [False, False, True]]
    found = shards.load(1, 2)
    assert found is not None and np.array_equal(found, values)
    assert shards.load(0, 0) is None


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"nonsense"])
def test_a_damaged_part_is_done_again(tmp_path: Path, content: bytes) -> None:
    shards = Shards(tmp_path, 25, 1, 10)
    shards.keep(0, 0, np.zeros(10))
    next(tmp_path.glob("norms-*")).write_bytes(content)
    assert shards.load(0, 0) is None
    shards.keep(0, 0, np.zeros(9))
    assert shards.load(0, 0) is None


def test_parts_of_something_else_are_refused(tmp_path: Path) -> None:
    Shards(tmp_path, 25, 2, 10).open({"scope": "all"})
    Shards(tmp_path, 25, 2, 10).open({"scope": "all"})
    with pytest.raises(UserError, match="samples = 25, this run has samples = 26"):
        Shards(tmp_path, 26, 2, 10).open({"scope": "all"})
    with pytest.raises(UserError, match="scope = all, this run has scope = head"):
        Shards(tmp_path, 25, 2, 10).open({"scope": "head"})


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("-1", "2"), ("a", "2"), ("0", "0")])
def test_impossible_ranks_are_refused(rank: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(UserError, match="RANK"):
        Ranks.of_environment()


def test_processes_without_an_address_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match="torchrun"):
        Ranks.of_environment()


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def alone() -> np.ndarray:
    return scoring_process.score(scoring_process.Drawn())


def test_a_run_that_is_killed_goes_on(alone: np.ndarray, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, WORKER, tmp_path, "--slow"], env=environment())
    end = time.monotonic() + 60
    while len(list(tmp_path.glob("parts/norms-*"))) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("parts/norms-*")}
    assert 3 <= len(kept) < 14
    samples = scoring_process.Drawn()
    found = scoring_process.score(samples, tmp_path / "parts")
    assert all(path.stat().st_mtime_ns == moment for path, moment in kept.items())
    assert samples.asked.sum() < 2 * len(samples)
    np.testing.assert_allclose(found, alone, rtol=1e-5)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(alone: np.ndarray, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*torchrun, WORKER, tmp_path], check=True, env=environment(), timeout=300)
    for rank in range(2):
        found = np.load(tmp_path / f"scores-{rank}.npy")
        np.testing.assert_allclose(found, alone, rtol=1e-5)
        assert np.array_equal(np.load(tmp_path / f"again-{rank}.npy"), found)
    # Each part was computed by one of them alone.
    computed = [np.load(tmp_path / f"computed-{rank}.npy") for rank in range(2)]
    assert (computed[0] + computed[1] == 2).all()
    assert abs(int(computed[0].sum()) - int(computed[1].sum())) <= 20
