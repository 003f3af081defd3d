"""What the repair asks of an autoencoder: our own latent one and an imported DiffAE both give it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor

from diffinf.diffusion.invert import Correction, Prediction


class Autoencoder(Protocol):
    """An image is a normalised semantic code (D values) and noisy latents; codes can be read, moved and decoded.

    Attributes:
        reads_labels: whether the denoiser hears labels beside the code. Where it does, the negative context of an
            edit is the label that the image shows; where it does not, it is the code of the image as it is.
        encode_batch: images whose codes are computed at once.
        max_depth: highest noise level that the denoiser was trained on, in (0, 1].
        latent_std: standard deviation of the training set's latents by channel, (L,); empty where not known.
        usual_error: of the denoiser on the training set, as `diffinf.diffusion.familiarity.usual_error` has it;
            empty where not known.
    """

    reads_labels: bool
    encode_batch: int
    max_depth: float
    latent_std: tuple[float, ...]
    usual_error: tuple[float, ...]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    def position(self) -> float:
        """Side, in positions of the latents, of what the guide's settings count as one position."""

    def cpu(self) -> Self:
        """Move the weights to the CPU, in place."""

    def to_latents(self, images: Tensor) -> Tensor:
        """Return latents (B, L, h, w) of uint8 images (B, C, H, W); UserError if they do not fit."""

    def to_images(self, latents: Tensor) -> Tensor:
        """Return uint8 images (B, C, H, W) of latents (B, L, h, w)."""

    def code(self, latents: Tensor) -> Tensor:
        """Return the normalised codes (B, D) of clean latents (B, L, h, w)."""

    def context(self, code: Tensor, shares: Tensor) -> Tensor:
        """Return the contexts (B, W) of normalised codes (B, D) and shares of the classes (B, K)."""

    def predict(self, noisy: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """Return the denoiser's prediction (B, L, h, w), noise or v, for timesteps (B,) and contexts (B, W)."""

    def invert_latents(self, latents: Tensor, predict: Prediction, *, steps: int, depth: float) -> Tensor:
        """Return clean latents carried up to noise level `depth` in (0, 1]."""

    def decode_latents(
        self,
        noisy: Tensor,
        predict: Prediction,
        *,
        steps: int,
        depth: float,
        correct: Correction | None = None,
    ) -> Tensor:
        """Return clean latents of noisy ones; `correct` changes each step's predicted clean latents."""

    def signal(self, steps: int, depth: float) -> float:
        """Return the share of the variance that is signal where a decode of `steps` steps from `depth` starts."""

    def most_steps(self, depth: float) -> int:
        """Return how many steps an inversion or a decode to `depth` can take."""

    def read_code(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Return what normalised codes (B, D) say.

        Returns:
            The attribute's logits (B, K), and unit vectors (B, I) whose cosine tells persons apart.
        """

    def guide_logits(self, latents: Tensor) -> Tensor:
        """Return the attribute's logits (B, K) that the guide reads in latents (B, L, h, w), through noise."""


def load_autoencoder(directory: Path, device: torch.device | str = "cpu") -> Autoencoder:
    """Read our own autoencoder or an imported one, whichever the folder holds.

    Raises:
        UserError: a file is missing, damaged, of another format version, or does not fit its specification.
    """
    from diffinf.diffusion.autoencoder import DiffusionAutoencoder
    from diffinf.diffusion.diffae.autoencoder import DiffAE, is_imported

    if is_imported(directory):
        return DiffAE.load(directory, device)
    model: Autoencoder = DiffusionAutoencoder.from_pretrained(directory, device=device)
    return model
