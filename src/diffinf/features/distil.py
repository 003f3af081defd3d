"""A differentiable stand-in for a face recogniser: a linear head on semantic codes that learns its vectors.

A recogniser such as dlib's has no gradient and sees pictures, while an edit is held back by a term on codes. The head
is fitted to the recogniser's vectors of some images (distillation, arXiv 1503.02531); images held out tell how much of
the person it has learned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import RidgeCV
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from diffinf.training.loop import step_generator

LEAST_IMAGES = 20  # below, neither the fit nor the images held out say anything
_PENALTIES = np.logspace(-2, 5, 15)


class IdentityHead(nn.Module):
    """Normalised codes (B, D) to unit vectors (B, I) whose cosine tells persons apart as far as it has learned."""

    def __init__(self, code_size: int, size: int) -> None:
        """Make a head for codes of `code_size` values and vectors of `size`."""
        super().__init__()
        self.linear = nn.Linear(code_size, size)

    def forward(self, code: Tensor) -> Tensor:
        """Return unit vectors (B, I) of normalised codes (B, D)."""
        return F.normalize(self.linear(code), dim=1)


@dataclass(frozen=True)
class HeadQuality:
    """How well a head follows its teacher on images held out from its training.

    Attributes:
        trained: images it was fitted to.
        held_out: images it is measured on.
        cosine: mean cosine of head and teacher on one image, the teacher's mean taken out; 0 is what a head that
            ignores the code reaches.
        auroc: probability that the head's vector is more like the teacher's of the same image than of another one;
            .5 is chance.
    """

    trained: int
    held_out: int
    cosine: float
    auroc: float


def distil_identity(
    codes: Tensor, vectors: Tensor, *, seed: int, held_out: float = 0.2
) -> tuple[IdentityHead, HeadQuality]:
    """Fit a head to a teacher's vectors of some images.

    By ridge regression, its penalty chosen by leaving one out: with some hundreds of images and large codes that
    follows the teacher better than descending the cosine itself, whose scale a penalty does not bind. The teacher's
    mean vector is taken out first: the vectors of a recogniser share most of their direction, so that their cosines
    hardly differ, and a term made of them would hold nothing back.

    Args:
        codes: normalised codes (N, D) of images.
        vectors: unit vectors (N, I) of the same images by the teacher.
        seed: the images held out are a function of it.
        held_out: share of the images that the quality is measured on.

    Returns:
        The head, frozen, and its quality.

    Raises:
        ValueError: fewer than LEAST_IMAGES images.
    """
    count = len(codes)
    if count < LEAST_IMAGES:
        raise ValueError(f"expected at least {LEAST_IMAGES} images to distil from, got {count}")
    order = torch.randperm(count, generator=step_generator(seed, "distilled images", 0))
    tested = round(held_out * count)
    test, train = order[:tested], order[tested:]
    target = F.normalize(vectors - vectors[train].mean(0), dim=1)
    ridge = RidgeCV(alphas=_PENALTIES).fit(codes[train].double().numpy(), target[train].double().numpy())
    head = IdentityHead(codes.shape[1], vectors.shape[1])
    with torch.no_grad():
        head.linear.weight.copy_(torch.from_numpy(ridge.coef_))
        head.linear.bias.copy_(torch.from_numpy(ridge.intercept_))
        cosine = head(codes[test]) @ target[test].T
    own = torch.eye(len(test), dtype=torch.bool)
    auroc = float(roc_auc_score(own.flatten().numpy(), cosine.flatten().numpy()))
    quality = HeadQuality(len(train), len(test), float(cosine[own].mean()), auroc)
    return head.eval().requires_grad_(False), quality
