"""Early signs of a broken training, in plain English: figures in, findings out.

Each finding has a short kind, so that a caller can say it once, and a message that says what was seen and what to try.
The thresholds are wide: what they catch is broken, what they let pass need not be good.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

EXPLODED = 2.0  # times the lowest mean so far
STUCK = 0.97  # share of the first mean that a loss which falls goes below
STUCK_STEPS = 200  # steps before which a loss may stand still
COLLAPSED = 1e-3  # standard deviation of a code's components
IGNORED = 1.005  # loss with other images' codes over loss with their own
UNIT = (0.5, 2.0)  # standard deviation of latents that the noise schedule is made for
OFF_CENTRE = 0.5  # their mean, at most


class Finding(NamedTuple):
    """What is wrong: a short name, and a sentence for people."""

    kind: str
    message: str


def diverged(
    description: str, step: int, scalars: Mapping[str, float], advice: str = "lower the learning rate"
) -> str:
    """Return the message of a training whose loss is not finite at `step`; `scalars` are the loss and its parts."""
    broken = [name for name, value in scalars.items() if name != "loss" and not math.isfinite(value)]
    part = f" ({', '.join(broken)} no finite number)" if broken else ""
    return f"{description}: the loss is {scalars['loss']} at step {step}{part}; {advice}, and run again"


def loss_findings(
    history: Sequence[Mapping[str, float]], name: str = "loss", setting: str = "learning_rate"
) -> list[Finding]:
    """Look at the means of a loss over successive intervals.

    Args:
        history: one dict an interval, each with "step" (its end) and `name`, in order.
        name: which loss.
        setting: the learning rate's setting, for the advice.

    Returns:
        "exploded": the last mean is above twice the lowest. "stuck": after 200 steps and four intervals the last
        mean is not 3 % below the first.
    """
    if len(history) < 2:
        return []
    values = [entry[name] for entry in history]
    first, last, step = values[0], values[-1], round(history[-1]["step"])
    lowest = min(values)
    found = []
    if last > EXPLODED * lowest:
        found.append(
            Finding(
                "exploded",
                f"the loss {name} rose from {lowest:.3g} to {last:.3g} by step {step}: the training is breaking up; "
                f"lower {setting}",
            )
        )
    elif len(values) >= 4 and step >= STUCK_STEPS and last > STUCK * first:
        found.append(
            Finding(
                "stuck",
                f"the loss {name} does not fall: {first:.3g} at first, {last:.3g} at step {step}; change {setting} "
                "(a third of it, then three times), and look whether the images are what they should be",
            )
        )
    return found


def code_findings(std: float) -> list[Finding]:
    """Look at the mean standard deviation of a code's components over images: near 0 it says nothing of them."""
    if not std < COLLAPSED:
        return []
    return [
        Finding(
            "collapsed",
            f"the semantic code has collapsed: it hardly differs between images (standard deviation {std:.1g}); "
            "lower autoencoder.learning_rate or autoencoder.adversary_weight",
        )
    ]


def use_findings(own: float, shuffled: float) -> list[Finding]:
    """Compare the held-out loss under the images' `own` codes with that under other images' codes.

    Asked late enough in a training: a denoiser learns to use the code after it has learned to denoise.
    """
    if shuffled > IGNORED * own:
        return []
    return [
        Finding(
            "ignored",
            f"the denoiser ignores the semantic code: its held-out loss is {own:.4g} with the images' own codes and "
            f"{shuffled:.4g} with those of others; train for more steps, lower autoencoder.code_dropout, or raise "
            "autoencoder.max_depth, since where little is noise the noisy latents show the face by themselves",
        )
    ]


def latent_findings(mean: float, std: float) -> list[Finding]:
    """Look at the latents' overall mean and standard deviation, which the noise schedule takes to be 0 and 1."""
    if UNIT[0] <= std <= UNIT[1] and abs(mean) <= OFF_CENTRE:
        return []
    return [
        Finding(
            "latents",
            f"the latents have mean {mean:.2g} and standard deviation {std:.2g}, far from the 0 and 1 that the noise "
            "is made for: are nearly all training images alike, blank or black? `diffinf inspect` shows them",
        )
    ]
