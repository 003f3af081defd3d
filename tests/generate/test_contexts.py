"""Choice of negative contexts against brute force; sources of contexts."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffinf.errors import UserError
from diffinf.generate import (
    choose_negative_contexts,
    contexts,
    identity_contexts,
    perturbed_contexts,
    random_contexts,
)


def brute_force(vectors: Tensor, strategy: str) -> list[float]:
    """The cosine of each one's negative context, by sorting."""
    unit = F.normalize(vectors.double(), dim=1)
    result = []
    for row in range(len(unit)):
        others = sorted(float(unit[row] @ unit[other]) for other in range(len(unit)) if other != row)
        place = {"far": 0, "close": -1, "mid": (len(others) - 1) // 2}[strategy]
        result.append(others[place])
    return result


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(3, 9), st.integers(0, 1000), st.sampled_from(["close", "mid", "far"]))
def test_strategies_against_brute_force(n: int, size: int, seed: int, strategy: str) -> None:
    vectors = torch.randn(n, size, generator=torch.Generator().manual_seed(seed))
    choice = choose_negative_contexts(vectors, strategy)
    assert choice.cosine.tolist() == pytest.approx(brute_force(vectors, strategy), abs=1e-5)
    assert (choice.indices != torch.arange(n)).all()
    unit = F.normalize(vectors, dim=1)
    torch.testing.assert_close((unit * unit[choice.indices]).sum(1), choice.cosine, atol=1e-5, rtol=0)


@pytest.mark.parametrize("strategy", ["close", "mid", "far", "random"])
def test_blocks_and_rows_change_nothing(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = random_contexts(50, 8)
    whole = choose_negative_contexts(vectors, strategy, seed=3)
    monkeypatch.setattr(contexts, "_BLOCK", 150)  # 3 rows at once
    assert choose_negative_contexts(vectors, strategy, seed=3).indices.equal(whole.indices)
    rows = torch.tensor([41, 0, 7])
    assert choose_negative_contexts(vectors, strategy, seed=3, rows=rows).indices.equal(whole.indices[rows])
    assert len(choose_negative_contexts(vectors, strategy, rows=rows[:0]).indices) == 0


def test_never_a_matrix_of_all_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    pick = contexts._pick
    monkeypatch.setattr(contexts, "_BLOCK", 1000)
    monkeypatch.setattr(
        contexts, "_pick", lambda similar, *rest: seen.append(similar.numel()) or pick(similar, *rest)
    )
    choose_negative_contexts(random_contexts(200, 4), "mid")
    assert len(seen) == 40 and max(seen) <= 1000


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_does_not_grow_with_the_rows() -> None:
    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

    vectors = random_contexts(20_000, 4)
    choose_negative_contexts(vectors, "far", rows=torch.arange(500))
    before = resident()
    choose_negative_contexts(vectors, "far", rows=torch.arange(4000))  # 39 blocks of 8 MiB
    assert resident() - before < 100


def test_random_takes_every_other_and_follows_the_seed() -> None:
    vectors = random_contexts(5, 8)
    found = [choose_negative_contexts(vectors, "random", seed).indices for seed in range(200)]
    assert found[0].equal(choose_negative_contexts(vectors, "random", 0).indices)
    for row in range(5):
        counts = torch.bincount(torch.stack(found)[:, row], minlength=5)
        assert counts[row] == 0 and counts.sum() == 200 and sorted(counts.tolist())[1] > 25


@pytest.mark.parametrize("strategy", ["none", "null"])
def test_none_and_null_choose_no_context(strategy: str) -> None:
    choice = choose_negative_contexts(random_contexts(1, 8), strategy)
    assert choice.indices.tolist() == [-1] and choice.cosine.isnan().all()


def test_lengths_other_than_one_are_normalised_and_counted() -> None:
    vectors = random_contexts(20, 8)
    scaled = vectors.clone()
    scaled[3] *= 7
    scaled[9] *= 0.1
    choice = choose_negative_contexts(scaled, "close")
    assert choice.normalised == 2
    assert choice.indices.equal(choose_negative_contexts(vectors, "close").indices)


@pytest.mark.parametrize("strategy", ["close", "mid", "far", "random"])
def test_a_duplicate_is_never_the_negative(strategy: str) -> None:
    vectors = random_contexts(12, 8)
    doubled = torch.cat([vectors, vectors[:3], 2 * vectors[:3]])
    choice = choose_negative_contexts(doubled, strategy)
    assert choice.duplicates == 9 and choice.cosine.max() < 0.999
    if strategy != "random":
        expected = choose_negative_contexts(vectors, strategy).cosine if strategy != "mid" else None
        if expected is not None:
            torch.testing.assert_close(choice.cosine[:12], expected)


def test_random_among_nothing_but_duplicates_and_one() -> None:
    vectors = random_contexts(2, 8)
    doubled = torch.cat([vectors[:1].expand(400, -1), vectors[1:]])
    choice = choose_negative_contexts(doubled, "random")
    assert (choice.indices[:400] == 400).all() and choice.indices[400] < 400


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        (random_contexts(1, 8), "there is only one"),
        (random_contexts(1, 8).expand(4, -1), "all other 3 are the same as row 0"),
    ],
)
def test_one_identity_has_no_other(vectors: Tensor, said: str) -> None:
    with pytest.raises(UserError, match=f"at least two different contexts, but {said}"):
        choose_negative_contexts(vectors, "far")


@pytest.mark.parametrize(
    ("value", "said"), [(float("nan"), "row 2 is not finite"), (0.0, "row 2 is 0 throughout")]
)
def test_broken_contexts(value: float, said: str) -> None:
    vectors = random_contexts(4, 8)
    vectors[2] = value
    with pytest.raises(UserError, match=said):
        choose_negative_contexts(vectors, "none")


def test_unknown_strategies_and_shapes() -> None:
    with pytest.raises(UserError, match="none, null, random, close, mid, far"):
        choose_negative_contexts(random_contexts(4, 8), "nearest")  # type: ignore[arg-type]
    for shape in ((4,), (0, 8), (4, 0)):
        with pytest.raises(UserError, match="shape"):
            choose_negative_contexts(torch.zeros(shape), "far")


def test_random_contexts_are_unit_vectors_by_seed() -> None:
    found = random_contexts(300, 16, seed=1)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(300))
    assert found.equal(random_contexts(300, 16, seed=1)) and not found.equal(random_contexts(300, 16, seed=2))
    assert found.mean(0).norm() < 0.2
    with pytest.raises(UserError, match="0 x 4"):
        random_contexts(0, 4)


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 180), st.integers(2, 128), st.integers(0, 100))
def test_perturbation_is_by_exactly_the_angle(degrees: float, size: int, seed: int) -> None:
    vectors = random_contexts(5, size, seed)
    turned = perturbed_contexts(3 * vectors, degrees, seed)
    torch.testing.assert_close(turned.norm(dim=1), torch.ones(5))
    between = torch.atan2((turned - vectors).norm(dim=1), (turned + vectors).norm(dim=1)) * 2
    torch.testing.assert_close(between.rad2deg(), torch.full((5,), degrees), atol=1e-3, rtol=1e-4)


def test_between_two_angles_the_cosine_is_drawn_evenly() -> None:
    vectors = random_contexts(4000, 16)
    turned = perturbed_contexts(vectors, (20, 60), seed=1)
    cosine = (turned * vectors).sum(1)
    low, high = torch.deg2rad(torch.tensor([60.0, 20.0])).cos()
    assert (cosine > low - 1e-6).all() and (cosine < high + 1e-6).all()
    places = ((cosine - low) / (high - low)).sort().values
    assert (places - torch.linspace(0, 1, 4000)).abs().max() < 0.04  # Kolmogorov's distance, far beyond 1 %
    torch.testing.assert_close(perturbed_contexts(vectors, (30, 30)), perturbed_contexts(vectors, 30))
    for degrees in ((60, 20), (-1, 20), (20, 181)):
        with pytest.raises(UserError, match="0 to 180"):
            perturbed_contexts(vectors, degrees)


def test_perturbation_goes_every_way_and_refuses() -> None:
    vectors = random_contexts(1, 16).expand(500, -1)
    steps = perturbed_contexts(vectors, 90)
    assert steps.mean(0).norm() < 0.15
    for degrees in (-1, 181, float("nan")):
        with pytest.raises(UserError, match="0 to 180"):
            perturbed_contexts(vectors, degrees)
    with pytest.raises(UserError, match="one component"):
        perturbed_contexts(torch.ones(2, 1), 10)


def test_identity_contexts_are_mean_directions() -> None:
    vectors = random_contexts(9, 4)
    who = torch.tensor([0, 1, 2] * 3)
    found = identity_contexts(5 * vectors, who)
    torch.testing.assert_close(found[1], F.normalize(vectors[who == 1].sum(0), dim=0))
    with pytest.raises(UserError, match="number 1 has no vector"):
        identity_contexts(vectors[:2], torch.tensor([0, 2]))
    with pytest.raises(UserError, match="cancel"):
        identity_contexts(torch.tensor([[1.0, 0], [-1, 0]]), torch.tensor([0, 0]))


def test_the_room_is_entered_without_torch() -> None:
    code = "import sys, diffinf.generate; assert 'torch' not in sys.modules; diffinf.generate.parse_schedule"
    subprocess.run([sys.executable, "-c", code], check=True)
