"""Attempts at an edit: who is tried again, how strongly, and what the gate is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffinf.config import RepairConfig
from diffinf.repair import attempts
from diffinf.repair.attempts import REASONS, edit_batch
from diffinf.repair.edit import Edited
from diffinf.repair.editors import Inverted, Wish
from diffinf.repair.gate import Verdict

N = 4
IMAGES = torch.arange(10, 10 + N).byte()[:, None, None, None].expand(N, 1, 2, 2).clone()
PARTS = Inverted(
    torch.arange(N).float()[:, None], torch.ones(N, 1, 1, 1), torch.zeros(N, 1, 1, 1), IMAGES + 2
)
WISH = Wish(-torch.arange(N).float()[:, None], torch.arange(N) % 2, torch.eye(2)[1 - torch.arange(N) % 2])


class Refusing:
    """Refuses each sample for its reason until its strength is reached, and beyond what keeps the person."""

    def __init__(self, reasons: list[str], passes_at: list[float], lost_at: float = 9.0) -> None:
        self.reasons, self.passes_at, self.errors = reasons, passes_at, torch.zeros(N)
        self.lost_at = lost_at

    def check(
        self,
        originals: Tensor,
        edited: Tensor,
        labels: Tensor,
        judge_fold: Tensor,
        score_fold: Tensor,
        roundtrip_error: Tensor,
    ) -> Verdict:
        who = (originals[:, 0, 0, 0].int() - 10).tolist()
        assert labels.tolist() == WISH.labels[who].tolist() and judge_fold.tolist() == who
        assert score_fold.tolist() == [N - sample for sample in who]
        self.errors[who] = roundtrip_error
        strengths = (edited[:, 0, 0, 0].int() % 10 / 2).tolist()
        passed = [strength >= self.passes_at[sample] for sample, strength in zip(who, strengths, strict=True)]
        reasons = ["" if good else self.reasons[n] for n, good in zip(who, passed, strict=True)]
        reasons = ["identity" if s >= self.lost_at else r for s, r in zip(strengths, reasons, strict=True)]
        return Verdict(
            reasons, torch.tensor(strengths), torch.full((len(who),), torch.nan), torch.ones(len(who))
        )


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, list[int]]]:
    """(strength, samples) of each decode; an edit's pixels are 10·sample + 2·strength."""
    asked: list[tuple[float, list[int]]] = []

    def decode(model: Any, parts: Inverted, wish: Wish, strength: float, config: RepairConfig) -> Edited:
        who = parts.code[:, 0].int().tolist()
        assert wish.code[:, 0].int().tolist() == [-sample for sample in who]
        assert torch.equal(parts.roundtrip, IMAGES[who] + 2) and torch.equal(wish.shown, WISH.shown[who])
        asked.append((strength, who))
        pixels = torch.tensor([10 * n + round(2 * strength) for n in who]).byte()
        images = pixels[:, None, None, None].expand(-1, 1, 2, 2)
        return Edited(images, images)

    monkeypatch.setattr(attempts, "decode_edit", decode)
    monkeypatch.setattr(attempts, "keep_unchanged", lambda original, roundtrip, edited, config: edited.images)
    return asked


def attempt(gate: Refusing, strengths: list[float]) -> dict[str, Tensor]:
    model: Any = SimpleNamespace(device=torch.device("cpu"))
    judge: Any = gate
    fold = torch.arange(N)
    config = RepairConfig(strengths=strengths)
    return edit_batch(model, judge, IMAGES, PARTS, WISH, fold, N - fold, config)


def test_only_what_a_stronger_edit_may_mend_is_tried_again(decoded: list[tuple[float, list[int]]]) -> None:
    gate = Refusing(["judge", "identity", "influence", "roundtrip"], [1.0, 9, 9, 9])
    found = attempt(gate, [0.5, 1.0, 2.0])
    assert decoded == [(0.5, [0, 1, 2, 3]), (1.0, [0, 2]), (2.0, [2])]
    assert [REASONS[code] for code in found["reason"]] == ["", "identity", "influence", "roundtrip"]
    assert found["strength"].tolist() == [1.0, 0.5, 2.0, 0.5]
    assert found["edited"][:, 0, 0, 0].tolist() == [2, 11, 24, 31]
    assert found["judge"].tolist() == [1.0, 0.5, 2.0, 0.5] and found["identity"].isnan().all()
    assert found["attempts"].tolist() == [2, 1, 3, 1]
    assert set(found) == {"attempts", "edited", "reason", "strength", "judge", "identity", "influence"}


def test_the_search_goes_gentler_where_the_person_was_lost_and_stronger_where_the_label_does_not_show(
    decoded: list[tuple[float, list[int]]],
) -> None:
    found = attempt(Refusing(["judge"] * N, [0.5, 1.0, 1.5, 3.0], lost_at=2.0), [1.0, 0.5, 2.0, 1.5, 3.0])
    # Sample 2 and 3 did not show their label at 1, so .5 is not tried; at 2 they lost the person, so 3 is not.
    assert decoded == [(1.0, [0, 1, 2, 3]), (2.0, [2, 3]), (1.5, [2, 3])]
    assert [REASONS[code] for code in found["reason"]] == ["", "", "", "judge"]
    assert found["strength"].tolist() == [1.0, 1.0, 1.5, 1.5]


def test_a_gentler_edit_may_keep_the_person(decoded: list[tuple[float, list[int]]]) -> None:
    found = attempt(Refusing(["judge"] * N, [0.5] * N, lost_at=1.0), [1.0, 0.5, 2.0])
    assert decoded == [(1.0, [0, 1, 2, 3]), (0.5, [0, 1, 2, 3])] and not found["reason"].any()


def test_nothing_is_decoded_once_all_have_passed(decoded: list[tuple[float, list[int]]]) -> None:
    found = attempt(Refusing(["judge"] * N, [0.0] * N), [0.5, 1.0, 2.0])
    assert [strength for strength, _ in decoded] == [0.5] and not found["reason"].any()


def test_the_gate_is_told_the_error_of_the_round_trip(decoded: list[tuple[float, list[int]]]) -> None:
    gate = Refusing(["judge"] * N, [0.0] * N)
    attempt(gate, [1.0])
    # Two grey levels; 255 of them are the two units between -1 and 1.
    torch.testing.assert_close(gate.errors, torch.full((N,), 2 * 2 / 255))
