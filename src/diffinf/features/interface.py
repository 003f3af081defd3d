"""What every embedder of images gives, and how alike it finds two views of the same samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class IdentityEmbedder(Protocol):
    """Images as unit vectors whose cosine says how alike they are.

    Attributes:
        name: what figures are called by.
        judges_identity: whether the cosine tells persons apart; where it does not, it must not be called identity.
    """

    @property
    def name(self) -> str:
        """What figures are called by."""

    @property
    def judges_identity(self) -> bool:
        """Whether the cosine tells persons apart."""

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Embed uint8 images (N, C, H, W).

        Returns:
            Unit vectors (N, D) on the CPU; and bool (N,), False where there was nothing to embed, such as no face:
            that row's vector is 0.
        """


@dataclass(frozen=True)
class Similarity:
    """How alike N samples are before and after.

    Attributes:
        cosine: (N,) in [-1, 1]; NaN where either image could not be embedded.
        before: bool (N,), whether the image before could be embedded.
        after: bool (N,), whether the image after could be.
    """

    cosine: Tensor
    before: Tensor
    after: Tensor


def similarity(embedder: IdentityEmbedder, before: Tensor, after: Tensor) -> Similarity:
    """Compare uint8 images (N, C, H, W) of the same samples, row by row."""
    (vectors, found), (others, found_after) = embedder.embed(before), embedder.embed(after)
    cosine = (vectors * others).sum(1)
    return Similarity(torch.where(found & found_after, cosine, torch.nan), found, found_after)
