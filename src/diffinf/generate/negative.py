"""Guidance by a positive and a negative context (NegFaceDiff, arXiv 2508.09661), and how strong it is when."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from diffinf.errors import UserError

ScheduleKind = Literal["constant", "adaptive", "reversed", "interval"]
_PLAIN: tuple[ScheduleKind, ...] = ("constant", "adaptive", "reversed")
_INTERVAL = re.compile(r"interval:([0-9.]+)-([0-9.]+)")


def negative_guidance(
    model_output_positive: Tensor, model_output_negative: Tensor, scale: float | Tensor
) -> Tensor:
    """Return (1 + w)·positive - w·negative, the guided prediction (NegFaceDiff, arXiv 2508.09661).

    It holds for whatever a denoiser predicts linearly: the noise, v or the clean image. With the empty context as the
    negative one it is classifier-free guidance (arXiv 2207.12598), whose usual scale is 1 + w.

    Args:
        model_output_positive: prediction under the wanted context, (N, C, H, W) or any shape (N, ...).
        model_output_negative: prediction for the same noisy images under the negative context, of the same shape.
        scale: w at this step, at least 0; a number, or one for each image, (N,).

    Raises:
        ValueError: the shapes do not fit, or a scale is negative or not finite.
    """
    shape = model_output_positive.shape
    if model_output_negative.shape != shape:
        raise ValueError(
            f"predictions under both contexts: expected one shape, found {tuple(shape)} and "
            f"{tuple(model_output_negative.shape)}"
        )
    if isinstance(scale, Tensor):
        if scale.ndim and scale.shape != shape[:1]:
            raise ValueError(f"scale: expected a number or shape ({shape[0]},), found {tuple(scale.shape)}")
        allowed = bool((scale.isfinite() & (scale >= 0)).all())
        scale = scale.to(model_output_positive)
        scale = scale.view(-1, *[1] * (len(shape) - 1)) if scale.ndim else scale
    else:
        allowed = math.isfinite(scale) and scale >= 0
    if not allowed:
        raise ValueError(f"scale: expected finite numbers of at least 0, found {scale}")
    return model_output_positive + scale * (model_output_positive - model_output_negative)


@dataclass(frozen=True)
class Schedule:
    """How strong the guidance is at timestep t of T, where 0 is clean and T pure noise.

    Attributes:
        kind: "constant": w. "adaptive": w·(1 - t/T), strongest at the end (AdaptDiff, arXiv 2603.29569). "reversed":
            w·t/T, strongest at the start. "interval": w where low <= t/T <= high, else 0 (arXiv 2404.07724).
        low: of the interval, in [0, 1].
        high: of the interval, in [0, 1].
    """

    kind: ScheduleKind = "constant"
    low: float = 0.0
    high: float = 1.0

    def scale(self, scale: float, timestep: int, timesteps: int) -> float:
        """Return w at `timestep` of `timesteps`; `scale` is w at its strongest."""
        place = timestep / timesteps
        if self.kind == "adaptive":
            return scale * (1 - place)
        if self.kind == "reversed":
            return scale * place
        if self.kind == "interval" and not self.low <= place <= self.high:
            return 0.0
        return scale

    def __str__(self) -> str:
        """Return the text that `parse_schedule` reads."""
        return f"interval:{self.low:g}-{self.high:g}" if self.kind == "interval" else self.kind


def parse_schedule(text: str) -> Schedule:
    """Read "constant", "adaptive", "reversed" or "interval:a-b", such as interval:0.2-0.7.

    Raises:
        UserError: the text is none of these, or not 0 <= a < b <= 1.
    """
    for kind in _PLAIN:
        if text == kind:
            return Schedule(kind)
    if match := _INTERVAL.fullmatch(text):
        try:
            low, high = (float(number) for number in match.groups())
        except ValueError:
            low = high = math.nan
        if 0 <= low < high <= 1:
            return Schedule("interval", low, high)
    raise UserError(
        f"schedule: expected constant, adaptive, reversed or interval:a-b with 0 <= a < b <= 1, found {text!r}"
    )
