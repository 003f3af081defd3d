"""The rule of negative context and its schedules."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffinf.errors import UserError
from diffinf.generate import Schedule, negative_guidance, parse_schedule


@given(st.floats(0, 10), st.integers(0, 1000))
def test_it_is_the_published_formula(scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    positive, negative = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64, generator=generator)
    expected = (1 + scale) * positive - scale * negative
    torch.testing.assert_close(negative_guidance(positive, negative, scale), expected)


def test_a_scale_for_each_image_and_none_at_zero() -> None:
    positive, negative = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([0.0, 0.5, 2.0])
    found = negative_guidance(positive, negative, scale)
    assert found[0].equal(positive[0])
    for row, w in enumerate(scale.tolist()):
        torch.testing.assert_close(found[row], (1 + w) * positive[row] - w * negative[row])


@pytest.mark.parametrize("scale", [-0.1, float("nan"), torch.tensor([0.5, -1.0]), torch.ones(3)])
def test_bad_scales(scale: float | torch.Tensor) -> None:
    with pytest.raises(ValueError, match="scale"):
        negative_guidance(torch.zeros(2, 3), torch.zeros(2, 3), scale)


def test_shapes_that_differ() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        negative_guidance(torch.zeros(2, 3), torch.zeros(2, 4), 1.0)


@pytest.mark.parametrize(
    ("text", "at_0", "at_250", "at_1000"),
    [
        ("constant", 0.8, 0.8, 0.8),
        ("adaptive", 0.8, 0.6, 0.0),
        ("reversed", 0.0, 0.2, 0.8),
        ("interval:0.2-0.7", 0.0, 0.8, 0.0),
    ],
)
def test_schedules(text: str, at_0: float, at_250: float, at_1000: float) -> None:
    schedule = parse_schedule(text)
    assert str(schedule) == text
    found = [schedule.scale(0.8, t, 1000) for t in (0, 250, 1000)]
    assert found == pytest.approx([at_0, at_250, at_1000])


def test_an_interval_holds_its_ends() -> None:
    schedule = Schedule("interval", 0.25, 0.5)
    assert [schedule.scale(1.0, t, 100) for t in (24, 25, 50, 51)] == [0, 1, 1, 0]


@pytest.mark.parametrize(
    "text", ["", "linear", "interval", "interval:0.5-0.2", "interval:0-2", "interval:1..-2"]
)
def test_unknown_schedules(text: str) -> None:
    with pytest.raises(UserError, match="schedule: expected constant"):
        parse_schedule(text)
