"""The gate: thresholds, the order of reasons, which judge judges whom."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from diffinf.classify.model import create_classifier, to_input
from diffinf.config import RepairConfig
from diffinf.features.codes import CodeEmbedder
from diffinf.features.persons import PersonEmbedder
from diffinf.repair.gate import PASSED, Gate, Verdict, by_fold, influence_limits

CPU = torch.device("cpu")
SIDE = 4
DARK, GREY, BRIGHT = (torch.full((1, SIDE, SIDE), value, dtype=torch.uint8) for value in (0, 127, 255))
ORDER = ("roundtrip", "judge", "identity", "influence")


class BrightnessJudge(nn.Module):
    """Reads class 1 in bright pictures: logits (-gain·b, gain·b) of the mean brightness b in [-1, 1]."""

    def __init__(self, gain: float = 2.0) -> None:
        super().__init__()
        self.head = nn.Linear(SIDE * SIDE, 2, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-gain], [gain]]) / (SIDE * SIDE))

    def forward_features(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class CornerEmbedder(nn.Module):
    """Two numbers of a picture: its left column and its right one."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0, :, 0].mean(1), x[:, 0, :, -1].mean(1)], dim=1)


CORNERS = PersonEmbedder(CornerEmbedder(), to_input, CPU)


def make_gate(**changes: Any) -> Gate:
    values: dict[str, Any] = {
        "judges": [BrightnessJudge()],
        "scorers": [BrightnessJudge()],
        "influence_limits": torch.full((2,), torch.inf),
        "scope": "all",
        "embedder": None,
        "identity_threshold": 0.0,
        "config": RepairConfig(roundtrip_limit=0.25, judge_margin=0.1),
        "device": CPU,
    }
    return Gate(**{**values, **changes})


def check(gate: Gate, edited: Tensor, label: int, *, error: float = 0.0, original: Tensor = GREY) -> Verdict:
    zero = torch.tensor([0])
    return gate.check(original[None], edited[None], torch.tensor([label]), zero, zero, torch.tensor([error]))


@pytest.mark.parametrize("failing", [c for k in range(5) for c in itertools.combinations(ORDER, k)])
def test_the_first_failure_in_order_is_the_reason(failing: tuple[str, ...]) -> None:
    gate = make_gate(
        embedder=CORNERS,
        identity_threshold=0.5,
        influence_limits=torch.full((2,), -1.0 if "influence" in failing else torch.inf),
    )
    verdict = check(
        gate,
        BRIGHT,
        label=0 if "judge" in failing else 1,
        error=1.0 if "roundtrip" in failing else 0.0,
        original=DARK if "identity" in failing else BRIGHT,  # opposite vectors, or the same
    )
    assert verdict.reasons == [failing[0] if failing else PASSED]


def test_the_verdict_holds_what_the_judges_found() -> None:
    verdict = check(make_gate(embedder=CORNERS), BRIGHT, label=1, original=DARK)
    share = torch.sigmoid(torch.tensor(4.0))  # logits -2 and 2
    torch.testing.assert_close(verdict.judge, share[None])
    torch.testing.assert_close(verdict.identity, torch.tensor([-1.0]))
    # A linear layer without bias: ||p - onehot||² · ||x||².
    torch.testing.assert_close(verdict.influence, 2 * (1 - share[None]) ** 2 * SIDE * SIDE)


def test_without_an_embedder_identity_is_not_judged_and_passes() -> None:
    verdict = check(make_gate(embedder=None, identity_threshold=2.0), BRIGHT, label=1, original=DARK)
    assert verdict.identity.isnan().all()
    assert verdict.reasons == [PASSED]


class SightedCorners:
    """Sees a face in whatever is not all dark; it compares corners."""

    name, judges_identity = "sighted", True

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = (images != 0).flatten(1).any(1)
        return CORNERS.embed(images)[0] * found[:, None], found


@pytest.mark.parametrize(
    ("original", "edited", "reason"),
    [
        (BRIGHT, BRIGHT, PASSED),
        (DARK, BRIGHT, PASSED),  # no face to begin with: nothing can be said
        (BRIGHT, DARK, "identity"),  # there was a face
        (DARK, DARK, PASSED),
    ],
)
def test_a_face_that_is_gone_is_refused_and_one_never_found_is_not_judged(
    original: Tensor, edited: Tensor, reason: str
) -> None:
    gate = make_gate(embedder=SightedCorners(), identity_threshold=0.5)
    label = int(edited.any())  # the judge agrees
    verdict = check(gate, edited, label, original=original)
    assert verdict.reasons == [reason]
    assert verdict.identity.isnan().item() == (not (original.any() and edited.any()))


def test_each_row_is_compared_with_its_own_original() -> None:
    gate = make_gate(embedder=SightedCorners(), identity_threshold=0.5)
    zero, labels = torch.zeros(3, dtype=torch.long), torch.tensor([1, 0, 1])
    originals, edited = torch.stack([DARK, BRIGHT, BRIGHT]), torch.stack([BRIGHT, DARK, BRIGHT])
    verdict = gate.check(originals, edited, labels, zero, zero, torch.zeros(3))
    assert verdict.reasons == [PASSED, "identity", PASSED]


def test_similarity_that_is_not_of_persons_cannot_judge_identity() -> None:
    codes = CodeEmbedder(lambda images: images.flatten(1).float())
    with pytest.raises(ValueError, match="code similarity does not judge identity"):
        make_gate(embedder=codes)


@pytest.mark.parametrize(("error", "reason"), [(0.25, PASSED), (0.26, "roundtrip")])
def test_the_round_trip_may_reach_its_limit(error: float, reason: str) -> None:
    assert check(make_gate(), BRIGHT, label=1, error=error).reasons == [reason]


def test_the_judge_must_prefer_the_label_by_the_margin() -> None:
    # Shares 0.982 and 0.018: 0.964 apart.
    for margin, reason in ((0.96, PASSED), (0.97, "judge")):
        gate = make_gate(config=RepairConfig(judge_margin=margin))
        assert check(gate, BRIGHT, label=1).reasons == [reason]
    assert check(make_gate(), BRIGHT, label=0).reasons == ["judge"]


def test_a_judge_that_cannot_tell_does_not_agree() -> None:
    gate = make_gate(judges=[BrightnessJudge(gain=0)], config=RepairConfig(judge_margin=0))
    assert check(gate, BRIGHT, label=1).reasons == ["judge"]


def test_the_margin_is_that_over_the_best_other_class() -> None:
    class ThreeClasses(BrightnessJudge):
        def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
            return x if pre_logits else torch.tensor([0.5, 0.1, 0.4]).log().expand(len(x), 3)

    for margin, reason in ((0.09, PASSED), (0.11, "judge")):
        gate = make_gate(
            judges=[ThreeClasses()],
            scorers=[BrightnessJudge()],
            influence_limits=torch.full((3,), torch.inf),
            config=RepairConfig(judge_margin=margin),
        )
        assert check(gate, BRIGHT, label=0).reasons == [reason]


@pytest.mark.parametrize(("threshold", "reason"), [(0.69, PASSED), (0.72, "identity")])
def test_the_identity_must_be_as_similar_as_the_threshold(threshold: float, reason: str) -> None:
    half = BRIGHT.clone()
    half[..., -1] = 127  # (1, -0.004): some 45 degrees from (1, 1)
    verdict = check(make_gate(embedder=CORNERS, identity_threshold=threshold), half, 1, original=BRIGHT)
    assert verdict.identity.item() == pytest.approx(0.5**0.5, abs=0.01)
    assert verdict.reasons == [reason]


def test_influence_is_limited_by_the_class_of_the_label() -> None:
    influence = check(make_gate(), BRIGHT, label=1).influence.item()
    for own, other, reason in (
        (1.01 * influence, 0.0, PASSED),
        (influence, 0.0, PASSED),
        (0.99 * influence, torch.inf, "influence"),
    ):
        gate = make_gate(influence_limits=torch.tensor([other, own]))
        assert check(gate, BRIGHT, label=1).reasons == [reason]


def test_each_sample_is_judged_and_scored_by_the_folds_that_left_it_out() -> None:
    gate = make_gate(
        judges=[
            BrightnessJudge(2.0),
            BrightnessJudge(-2.0),
        ],  # the second sees everything the other way round
        scorers=[BrightnessJudge(1.0), BrightnessJudge(3.0)],
    )
    edited = torch.stack([BRIGHT, BRIGHT, DARK, DARK])
    judge_fold, score_fold = torch.tensor([0, 1, 0, 1]), torch.tensor([1, 1, 0, 0])
    labels = torch.ones(4, dtype=torch.long)
    verdict = gate.check(edited, edited, labels, judge_fold, score_fold, torch.zeros(4))
    assert verdict.reasons == [PASSED, "judge", "judge", PASSED]

    def norm(gain: float, brightness: int) -> float:
        share = torch.sigmoid(torch.tensor(2.0 * gain * brightness)).item()
        return 2 * (1 - share) ** 2 * SIDE * SIDE

    expected = [norm(3, 1), norm(3, 1), norm(1, -1), norm(1, -1)]
    torch.testing.assert_close(verdict.influence, torch.tensor(expected), rtol=1e-3, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(fold=st.lists(st.integers(0, 3), min_size=1, max_size=20))
def test_results_by_fold_come_in_the_order_of_the_samples(fold: list[int]) -> None:
    models = [nn.Identity() for _ in range(4)]
    index = {id(model): k for k, model in enumerate(models)}
    sizes = []

    def function(model: nn.Module, rows: Tensor) -> Tensor:
        sizes.append(len(rows))
        return torch.stack([rows, torch.full_like(rows, index[id(model)])], dim=1)

    result = by_fold(models, torch.tensor(fold), function)
    assert result.tolist() == [[row, k] for row, k in enumerate(fold)]
    assert len(sizes) == len(set(fold)) and min(sizes) > 0  # nobody is asked about nothing


def test_limits_are_quantiles_of_the_unflagged_of_each_class() -> None:
    rng = np.random.default_rng(0)
    influence, labels, flagged = rng.exponential(size=200), rng.integers(0, 3, 200), rng.random(200) < 0.3
    influence[flagged] += 100
    limits = influence_limits(
        torch.from_numpy(influence), torch.from_numpy(labels), torch.from_numpy(flagged), 0.8, 3
    )
    expected = [np.quantile(influence[~flagged & (labels == k)], 0.8) for k in range(3)]
    np.testing.assert_allclose(limits.numpy(), expected)


def test_a_class_without_unflagged_samples_takes_the_limit_of_all() -> None:
    influence = torch.arange(10.0)
    labels = torch.tensor([0] * 6 + [1] * 4)
    flagged = labels == 1
    limits = influence_limits(influence, labels, flagged, 0.5, 3)
    torch.testing.assert_close(limits, torch.full((3,), 2.5))
    assert influence_limits(influence, labels, torch.ones(10, dtype=torch.bool), 0.5, 2).isinf().all()


def test_it_works_with_the_classifier_of_the_runs() -> None:
    from diffinf.classify.model import ClassifierSpec

    models = [create_classifier(ClassifierSpec("small_cnn", 2, 1, 32), seed).eval() for seed in (0, 1)]
    gate = make_gate(
        judges=models,
        scorers=models,
        embedder=PersonEmbedder(models[0], to_input, CPU),
        identity_threshold=-1.1,
    )
    images = torch.randint(0, 255, (5, 1, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    fold = torch.tensor([0, 1, 1, 0, 1])
    verdict = gate.check(images, images, torch.tensor([0, 1, 0, 1, 1]), fold, fold, torch.zeros(5))
    with torch.no_grad():
        shares = torch.stack(
            [models[k](to_input(x[None], CPU))[0] for k, x in zip(fold, images, strict=True)]
        )
    own = shares.softmax(1)[torch.arange(5), torch.tensor([0, 1, 0, 1, 1])]
    torch.testing.assert_close(verdict.judge, own, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(verdict.identity, torch.ones(5), rtol=0, atol=1e-4)
    assert (verdict.influence > 0).all() and verdict.influence.isfinite().all()


def test_influence_is_that_of_the_loss_the_scorers_were_trained_by() -> None:
    verdict = check(make_gate(loss="earth_mover"), BRIGHT, label=1)
    p = torch.sigmoid(torch.tensor(4.0))
    # d/dz of (1 - p)² is ∓2 (1 - p) p (1 - p) at the two logits.
    torch.testing.assert_close(verdict.influence, 2 * (2 * (1 - p) ** 2 * p)[None] ** 2 * SIDE * SIDE)
