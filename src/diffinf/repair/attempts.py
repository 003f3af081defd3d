"""Attempts at an edit: each sample at one strength after the other, until the gate lets one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from diffinf.config import RepairConfig
from diffinf.diffusion.interface import Autoencoder
from diffinf.repair.edit import decode_edit, keep_unchanged
from diffinf.repair.editors import Inverted, Wish
from diffinf.repair.gate import PASSED, Gate

REASONS = (PASSED, "judge", "identity", "roundtrip", "influence")
# What a stronger edit may mend, and what a gentler one; no strength mends a poor round trip.
_STRONGER_MAY_PASS = ("judge", "influence")
_GENTLER_MAY_PASS = ("identity",)


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
    """Edit images (B, C, H, W) at the strengths of the settings, in their order, until the gate lets one pass.

    Strengths that cannot pass are left out: none gentler than one at which the label did not show, none stronger than
    one that lost the person. Of a sample that passes at no strength the last attempt is kept, for people to see.

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
        "judge", "identity", "influence"; "attempts": strengths tried.
    """
    error = (parts.roundtrip.float() - images.float()).abs().mean((1, 2, 3)) / 127.5
    result: dict[str, Tensor] = {"attempts": torch.zeros(len(images), dtype=torch.long)}
    gentlest, strongest = (
        torch.zeros(len(images)),
        torch.full((len(images),), torch.inf),
    )  # what may still pass
    for strength in config.strengths:
        pending = torch.nonzero((gentlest < strength) & (strength < strongest))[:, 0]
        if not len(pending):
            continue
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
        result["attempts"][pending] += 1
        for sample, reason in zip(pending.tolist(), verdict.reasons, strict=True):
            if reason not in _GENTLER_MAY_PASS:
                gentlest[sample] = strength if reason in _STRONGER_MAY_PASS else torch.inf
            else:
                strongest[sample] = strength
    return result
