"""How alike semantic codes are: a figure beside identity, which it does not judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class CodeEmbedder:
    """Normalised semantic codes as vectors.

    An edit moves the code on purpose, and a code holds light and pose as well as the person: high similarity says that
    little was changed, not that it is still the same person.

    Attributes:
        encode: uint8 images (N, C, H, W) to codes (N, D).
        batch: images encoded at once.
    """

    encode: Callable[[Tensor], Tensor]
    batch: int = 256
    name: str = "code similarity"
    judges_identity: bool = False

    @torch.no_grad()
    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit vectors (N, D), and True (N,): every image has a code."""
        parts = [F.normalize(self.encode(part), dim=1).cpu() for part in torch.split(images, self.batch)]
        return torch.cat(parts), torch.ones(len(images), dtype=torch.bool)
