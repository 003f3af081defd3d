"""The editors: what each plans at each strength, in closed form."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffinf.config import EditorName, RepairConfig, RunConfig
from diffinf.errors import UserError
from diffinf.repair.editors import EDITORS, LINEAR_STEP, Editor, Inverted, Plan, Wish

B, D, K = 3, 6, 4
STRENGTHS = pytest.mark.parametrize("strength", [0.0, 0.25, 0.5, 1.0, 2.0])
READS_LABELS = pytest.mark.parametrize("reads_labels", [True, False])
CONFIG = RepairConfig(guidance=1.5, guide_scale=0.2, fresh_noise=0.4)


class Transparent:
    """An autoencoder whose contexts show what they were made of, with a linear attribute head."""

    def __init__(self, reads_labels: bool = True) -> None:
        self.reads_labels = reads_labels
        self.head = normal(K, D, seed=1)

    def context(self, code: Tensor, shares: Tensor) -> Tensor:
        return torch.cat([code, shares], dim=1)

    def read_code(self, code: Tensor) -> tuple[Tensor, Tensor]:
        return code @ self.head.T, F.normalize(code, dim=1)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


PARTS = Inverted(
    normal(B, D, seed=2),
    normal(B, 8, 24, 24, seed=6),
    1.3 * normal(B, 8, 24, 24, seed=3) + 0.2,
    torch.arange(16 * B).view(B, 1, 4, 4).byte(),
)
WISH = Wish(normal(B, D, seed=4), torch.tensor([0, 3, 1]), normal(B, K, seed=5).softmax(1))
ASSIGNED = torch.eye(K)[WISH.labels]


def plan(editor: EditorName, strength: float, *, reads_labels: bool = True, **changes: Any) -> Plan:
    chosen: Editor = EDITORS[editor]
    model: Any = Transparent(reads_labels)
    return chosen(model, PARTS, WISH, strength, CONFIG.model_copy(update=changes))


def context(code: Tensor, shares: Tensor) -> Tensor:
    return torch.cat([code, shares], dim=1)


def heard(strength: float) -> Tensor:
    """What the positive context says is shown: the label, from half the strength on."""
    share = min(2 * strength, 1.0)
    return (1 - share) * WISH.shown + share * ASSIGNED


def moved(share: float) -> Tensor:
    return (1 - share) * PARTS.code + share * WISH.code


def test_every_editor_of_the_settings_is_there_and_no_other() -> None:
    assert set(EDITORS) == set(get_args(EditorName))
    assert RepairConfig().editor in EDITORS


def test_an_unknown_editor_is_refused_by_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("dataset: faces\nrepair:\n  editor: paintbrush\n")
    with pytest.raises(UserError, match=r"config\.yaml: repair\.editor: .*'guided'.*found 'paintbrush'"):
        RunConfig.from_yaml(path)


@READS_LABELS
@STRENGTHS
def test_contexts_lead_from_what_is_shown_to_the_label(strength: float, reads_labels: bool) -> None:
    found = plan("contexts", strength, reads_labels=reads_labels)
    share = min(strength, 1.0)
    assert found.noisy is PARTS.noisy and found.guide == 0
    torch.testing.assert_close(found.positive, context(moved(share), heard(strength)))
    # The labels alone tell the contexts apart, unless the denoiser does not hear them: then the codes do.
    away = moved(share) if reads_labels else PARTS.code
    torch.testing.assert_close(found.negative, context(away, WISH.shown))
    # (1 + w)·positive - w·negative: at 0 the negative alone, at 1 the guidance of the settings.
    assert found.scale == pytest.approx({0.0: -1.0, 0.25: -0.375, 0.5: 0.25}.get(strength, 1.5))


@READS_LABELS
@STRENGTHS
def test_guided_is_contexts_with_a_guide_that_goes_on_growing(strength: float, reads_labels: bool) -> None:
    found, bare = (plan(editor, strength, reads_labels=reads_labels) for editor in ("guided", "contexts"))
    assert torch.equal(found.positive, bare.positive) and torch.equal(found.negative, bare.negative)
    assert found.noisy is PARTS.noisy and found.scale == bare.scale
    assert found.guide == pytest.approx(0.2 * strength)


@STRENGTHS
def test_guide_hears_the_assigned_label_alone(strength: float) -> None:
    found = plan("guide", strength)
    expected = context(moved(min(strength, 1.0)), heard(strength))
    torch.testing.assert_close(found.positive, expected)
    assert found.scale == 0 and found.guide == pytest.approx(0.2 * strength)
    assert found.noisy is PARTS.noisy


@STRENGTHS
def test_renoised_is_contexts_with_part_of_the_noise_drawn_anew(strength: float) -> None:
    found, bare = plan("renoised", strength), plan("contexts", strength)
    assert torch.equal(found.positive, bare.positive) and torch.equal(found.negative, bare.negative)
    assert found.scale == bare.scale and found.guide == 0
    share = 0.4 * min(strength, 1.0)
    for old, new in zip(PARTS.noisy, found.noisy, strict=True):
        assert float(new.var()) == pytest.approx(float(old.var()), rel=0.05)
        both = torch.corrcoef(torch.stack([old.flatten(), new.flatten()]))
        assert float(both[0, 1]) == pytest.approx((1 - share) ** 0.5, abs=0.03)
        if not share:
            assert torch.equal(old, new)


def test_fresh_noise_depends_on_nothing_but_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    first = plan("renoised", 1.0)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert torch.equal(first.noisy, plan("renoised", 1.0).noisy)
    assert torch.equal(state, torch.random.get_rng_state())  # nothing drawn from the caller's generator
    # Neither on the neighbours in the batch: a sample alone gets the same.
    one = torch.tensor([1])
    model: Any = Transparent()
    alone = EDITORS["renoised"](model, PARTS.at(one), WISH.at(one), 1.0, CONFIG)
    torch.testing.assert_close(alone.noisy, first.noisy[1:2])
    # The fresh part of all samples is one noise, at the spread of each.
    fresh = first.noisy - 0.6**0.5 * PARTS.noisy
    noises = fresh / PARTS.noisy.std((1, 2, 3), keepdim=True)
    torch.testing.assert_close(noises[0], noises[2], rtol=1e-3, atol=1e-4)
    assert torch.equal(plan("renoised", 1.0, fresh_noise=0.0).noisy, PARTS.noisy)


@STRENGTHS
def test_codes_moves_the_code_and_leaves_the_label(strength: float) -> None:
    found = plan("codes", strength)
    torch.testing.assert_close(found.positive, context(moved(strength), WISH.shown))
    assert torch.equal(found.negative, found.positive)
    assert (found.scale, found.guide) == (0, 0) and found.noisy is PARTS.noisy


@STRENGTHS
def test_linear_moves_along_the_heads_direction(strength: float) -> None:
    with torch.no_grad():  # as in a decode
        found = plan("linear", strength)
    step = found.positive[:, :D] - PARTS.code
    direction = F.normalize((ASSIGNED - WISH.shown) @ Transparent().head, dim=1)
    torch.testing.assert_close(step, strength * LINEAR_STEP * D**0.5 * direction, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.positive[:, D:], WISH.shown) and torch.equal(found.negative, found.positive)
    assert (found.scale, found.guide) == (0, 0) and found.noisy is PARTS.noisy
    assert not found.positive.requires_grad and not PARTS.code.requires_grad


def test_some_of_the_images_are_taken_with_all_that_belongs_to_them() -> None:
    rows = torch.tensor([2, 0])
    for whole in (PARTS, WISH):
        some = whole.at(rows)
        assert type(some) is type(whole)
        for field in fields(whole):
            assert torch.equal(getattr(some, field.name), getattr(whole, field.name)[rows]), field.name


def test_a_wish_knows_its_labels_as_shares() -> None:
    assert torch.equal(WISH.assigned, ASSIGNED)
