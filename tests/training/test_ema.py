"""Averaged weights against their closed form."""

from __future__ import annotations

import torch
from torch import nn

from diffinf.training.ema import averaged


class Scalar(nn.Module):
    """One weight and one buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))


def follow(values: list[float], **options: float) -> tuple[float, float]:
    module = Scalar()
    average = averaged(module, **options)
    for value in values:
        with torch.no_grad():
            module.weight.fill_(value)
            module.seen.fill_(2 * value)
        average.update_parameters(module)
    return average.module.weight.item(), average.module.seen.item()


def test_the_average_is_its_closed_form() -> None:
    values = [4.0, -1.0, 3.0, 0.5, 7.0]
    expected = values[0]  # the first step's weights are taken as they are
    for step, value in enumerate(values[1:], start=1):
        decay = 1 - (1 + step) ** -0.75
        expected = decay * expected + (1 - decay) * value
    weight, buffer = follow(values)
    assert abs(weight - expected) < 1e-12
    assert abs(buffer - 2 * expected) < 1e-12


def test_the_decay_is_capped() -> None:
    values = [1.0, 0.0, 0.0, 0.0]
    # 1 - (1 + step)^-0.75 is 0.41, 0.56, 0.65: above the cap from the first step on.
    assert abs(follow(values, max_decay=0.25)[0] - 0.25**3) < 1e-12


def test_averaging_does_not_touch_the_module_and_survives_its_state() -> None:
    module = Scalar()
    average = averaged(module)
    for value in (1.0, 5.0):
        with torch.no_grad():
            module.weight.fill_(value)
        average.update_parameters(module)
    assert module.weight.item() == 5
    resumed = averaged(Scalar())
    resumed.load_state_dict(average.state_dict())
    with torch.no_grad():
        module.weight.fill_(-2.0)
    average.update_parameters(module)
    resumed.update_parameters(module)
    assert resumed.module.weight.item() == average.module.weight.item() != -2
