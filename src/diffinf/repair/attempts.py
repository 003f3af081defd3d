"""Attempts at an edit: each sample at rising strength, until the gate lets one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from diffinf.config import RepairConfig
from diffinf.diffusion.interface import Autoencoder
from diffinf.repair.edit import decode_edit, keep_unchanged
from diffinf.repair.editors import Inverted, Wish
from diffinf.repair.gate import PASSED, Gate

# What a stronger edit may mend; one that already lost the person only goes further away.
_STRONGER_MAY_PASS = ("judge", "influence")
REASONS = (PASSED, "judge", "identity", "roundtrip", "influence")


def edit_batch(
    model: Autoencoder,
    gate: Gate,
    images: Tensor,
    parts: Inverted,
    wish: Wish,
    judge_fold: Tensor,
    score_fold: Tensor,
    config: RepairConfig,
) -> dict[str, Tensor]:
    """Edit images (B, C, H, W) at the strengths of the settings, gentlest first, until the gate lets one pass.

    Of a sample that passes at no strength the last attempt is kept, for people to see.

    Args:
        model: the autoencoder.
        gate: judges the attempts.
        images: uint8, as they came.
        parts: the same images taken apart.
        wish: what they should come to.
        judge_fold: (B,) which judge was not trained on the sample.
        score_fold: (B,) which scorer was not trained on it.
        config: settings.

    Returns:
        On the CPU, (B, ...): "edited" images, "reason" (index into `REASONS`), "strength", and what the gate read:
        "judge", "identity", "influence".
    """
    error = (parts.roundtrip.float() - images.float()).abs().mean((1, 2, 3)) / 127.5
    result: dict[str, Tensor] = {}
    pending = torch.arange(len(images))
    for strength in config.strengths:
        at = pending.to(model.device)
        rest, wished = parts.at(at), wish.at(at)
        decoded = decode_edit(model, rest, wished, strength, config)
        edited = keep_unchanged(images[at], rest.roundtrip, decoded, config)
        verdict = gate.check(
            images[at].cpu(),
            edited.cpu(),
            wished.labels.cpu(),
            judge_fold[at].cpu(),
            score_fold[at].cpu(),
            error[at].cpu(),
        )
        found = {
            "edited": edited.cpu(),
            "reason": torch.tensor([REASONS.index(reason) for reason in verdict.reasons]),
            "strength": torch.full((len(pending),), strength),
            "judge": verdict.judge,
            "identity": verdict.identity,
            "influence": verdict.influence,
        }
        for name, values in found.items():
            result.setdefault(name, values.clone())[pending] = values
        pending = pending[torch.tensor([reason in _STRONGER_MAY_PASS for reason in verdict.reasons])]
        if not len(pending):
            break
    return result
