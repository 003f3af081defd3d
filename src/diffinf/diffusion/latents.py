"""The parts of a diffusion autoencoder put together: components that fit each other, latents, codes, predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from diffinf.diffusion.familiarity import moments, unlike_set
from diffinf.diffusion.first_stage import FirstStage
from diffinf.diffusion.invert import (
    Correction,
    Prediction,
    check_scheduler,
    decode,
    invert,
    most_steps,
    timestep_grid,
)
from diffinf.diffusion.networks import CodeStatistics, Denoiser, Guide, SemanticEncoder
from diffinf.diffusion.prior import LatentPrior
from diffinf.diffusion.spec import AutoencoderSpec
from diffinf.errors import UserError

_SHIFT_IMAGES = 512  # of a dataset, that say whether its latents are those of the training set


class LatentAutoencoder(DiffusionPipeline):  # type: ignore[misc]  # diffusers is not typed
    """First stage, semantic encoder, denoiser, guide, scheduler and perhaps a prior, and what a repair asks of them.

    This is `diffinf.diffusion.interface.Autoencoder`: latents, codes and predictions. `DiffusionAutoencoder` adds whole
    images and files.
    """

    reads_labels = True
    encode_batch = 256
    _optional_components: ClassVar[list[str]] = ["prior"]

    def __init__(
        self,
        first_stage: FirstStage,
        encoder: SemanticEncoder,
        denoiser: Denoiser,
        guide: Guide,
        statistics: CodeStatistics,
        scheduler: Any,
        prior: LatentPrior | None,
        *,
        class_names: Sequence[str] = (),
        max_depth: float = 1.0,
        latent_mean: Sequence[float] = (),
        latent_std: Sequence[float] = (),
        usual_error: Sequence[float] = (),
    ) -> None:
        """Put components together; `create_autoencoder` makes untrained ones that fit.

        Args:
            first_stage: images to latents and back.
            encoder: latents to semantic codes.
            denoiser: predicts v.
            guide: reads the attribute through noise.
            statistics: of the codes over the training set.
            scheduler: of diffusers, one that has an inverse.
            prior: draws semantic codes, or None.
            class_names: names of the K classes.
            max_depth: highest noise level that the denoiser was trained on.
            latent_mean: of the training images' latents by channel, (L,); empty where not known.
            latent_std: likewise, their standard deviation.
            usual_error: of the denoiser on pictures of the training set, mean and standard deviation of its log
                (`diffinf.diffusion.familiarity`); empty where not known.

        Raises:
            UserError: the components do not fit each other, or the scheduler cannot be inverted.
        """
        super().__init__()
        check_scheduler(scheduler)
        self.register_modules(
            first_stage=first_stage,
            encoder=encoder,
            denoiser=denoiser,
            guide=guide,
            statistics=statistics,
            scheduler=scheduler,
            prior=prior,
        )
        self.class_names, self.max_depth = tuple(class_names), max_depth
        self.latent_mean, self.latent_std = tuple(latent_mean), tuple(latent_std)
        self.usual_error = tuple(usual_error)
        self._check_fit()

    def _check_fit(self) -> None:
        encoder, denoiser, guide = self.encoder.config, self.denoiser.config, self.guide.config
        code_size, classes = encoder.attribute_size + encoder.appearance_size, len(self.class_names)
        pairs = {
            "latent channels of first stage and encoder": (
                self.first_stage.latent_channels,
                encoder.latent_channels,
            ),
            "latent channels of first stage and denoiser": (
                self.first_stage.latent_channels,
                denoiser.latent_channels,
            ),
            "image channels of first stage and guide": (
                self.first_stage.image_channels,
                guide.image_channels,
            ),
            "image size of denoiser and guide": (
                denoiser.latent_size * self.first_stage.factor,
                guide.image_size,
            ),
            "appearance size of encoder and denoiser": (encoder.appearance_size, denoiser.appearance_size),
            "code size of encoder and statistics": (code_size, self.statistics.config.size),
            "classes of class names and encoder": (classes, encoder.num_classes),
            "classes of class names and denoiser": (classes, denoiser.num_classes),
            "classes of class names and guide": (classes, guide.num_classes),
        }
        if self.prior is not None:
            prior = self.prior.config
            pairs["code size of encoder and prior"] = (code_size, prior.code_size)
            pairs["classes of class names and prior"] = (classes, prior.num_classes)
        wrong = [f"{name} ({one} and {other})" for name, (one, other) in pairs.items() if one != other]
        if wrong:
            raise UserError(f"the components of the autoencoder do not fit each other: {'; '.join(wrong)}")

    @property
    def spec(self) -> AutoencoderSpec:
        """The shapes, as the components have them."""
        encoder, denoiser = self.encoder.config, self.denoiser.config
        return AutoencoderSpec(
            class_names=self.class_names,
            image_channels=self.first_stage.image_channels,
            image_size=denoiser.latent_size * self.first_stage.factor,
            patch_size=self.first_stage.factor,
            latent_channels=self.first_stage.latent_channels,
            attribute_size=encoder.attribute_size,
            appearance_size=encoder.appearance_size,
            unet_channels=tuple(denoiser.channels),
            unet_layers=denoiser.layers,
            identity_size=encoder.identity_size,
            timesteps=self.scheduler.config.num_train_timesteps,
            max_depth=self.max_depth,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.code_mean.device

    @property
    def position(self) -> float:
        """Positions of the latents that the guide's settings count as one: of pixels, a sixteenth of the side."""
        coarse = self.first_stage.factor > 1
        return 1.0 if coarse else float(self.guide.config.image_size / 16)

    @property
    def alphas_cumprod(self) -> Tensor:
        """Share of the variance that is signal, by timestep, (T,)."""
        alphas: Tensor = self.scheduler.alphas_cumprod
        return alphas.to(self.device)

    @property
    def code_mean(self) -> Tensor:
        """Mean of the codes over the training set, (D,)."""
        mean: Tensor = self.statistics.mean
        return mean

    @property
    def code_std(self) -> Tensor:
        """Standard deviation of the codes over the training set, (D,)."""
        std: Tensor = self.statistics.std
        return std

    def cpu(self) -> Self:
        """Move the weights to the CPU, in place."""
        self.to("cpu")
        return self

    def freeze(self) -> Self:
        """Put all networks into evaluation mode, without gradients."""
        for component in self.components.values():
            if isinstance(component, nn.Module):
                component.eval().requires_grad_(False)
        return self

    def to_latents(self, images: Tensor) -> Tensor:
        """Return latents (B, L, h, w) of uint8 images (B, C, H, W).

        Raises:
            UserError: the images' type, size or channels are not those of this autoencoder.
        """
        spec = self.spec
        expected = (spec.image_channels, spec.image_size, spec.image_size)
        if tuple(images.shape[1:]) != expected:
            raise UserError(
                f"the images are {tuple(images.shape[1:])} (channels, height, width), the autoencoder was trained on "
                f"{expected}: set data.image_size and data.channels accordingly, or train another autoencoder"
            )
        if images.dtype != torch.uint8:
            raise UserError(f"the images are {images.dtype}, expected torch.uint8 with values from 0 to 255")
        latents: Tensor = self.first_stage.encode(images.to(self.device).float() / 127.5 - 1)
        return latents

    def to_images(self, latents: Tensor) -> Tensor:
        """Return uint8 images (B, C, H, W) of latents (B, L, h, w)."""
        images: Tensor = self.first_stage.decode(latents)
        return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def normalised(self, code: Tensor) -> Tensor:
        """Return codes (B, D) at zero mean and unit variance over the training set."""
        return (code - self.code_mean) / self.code_std

    def raw(self, code: Tensor) -> Tensor:
        """Return normalised codes (B, D) as the encoder gives them."""
        return code * self.code_std + self.code_mean

    def code(self, latents: Tensor) -> Tensor:
        """Return the normalised codes (B, D) of latents (B, L, h, w)."""
        return self.normalised(self.encoder(latents))

    def context(self, code: Tensor, shares: Tensor) -> Tensor:
        """Return the contexts (B, W) of normalised codes (B, D) and shares of the classes (B, K)."""
        context: Tensor = self.denoiser.context(self.encoder.appearance(self.raw(code)), shares)
        return context

    def predict(self, noisy: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """Return v (B, L, h, w) for noisy latents (B, L, h, w), timesteps (B,) and contexts (B, W)."""
        v: Tensor = self.denoiser(noisy, timestep, context)
        return v

    def invert_latents(
        self, latents: Tensor, predict: Prediction, *, steps: int, depth: float = 1.0
    ) -> Tensor:
        """Return latents carried up to noise level `depth`; see `diffinf.diffusion.invert.invert`."""
        return invert(self.scheduler, latents, predict, steps=steps, depth=depth)

    def decode_latents(
        self,
        noisy: Tensor,
        predict: Prediction,
        *,
        steps: int,
        depth: float = 1.0,
        correct: Correction | None = None,
    ) -> Tensor:
        """Return clean latents of noisy ones; see `diffinf.diffusion.invert.decode`."""
        return decode(self.scheduler, noisy, predict, steps=steps, depth=depth, correct=correct)

    def signal(self, steps: int, depth: float) -> float:
        """Return the share of the variance that is signal where a decode of `steps` steps from `depth` starts."""
        return float(self.alphas_cumprod[timestep_grid(len(self.alphas_cumprod), steps, depth)[-1]])

    def most_steps(self, depth: float) -> int:
        """Return how many steps an inversion or a decode to `depth` can take."""
        return most_steps(self.scheduler, depth)

    def read_code(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Return the attribute's logits (B, K) and identity vectors (B, I) of normalised codes (B, D)."""
        raw = self.raw(code)
        return self.encoder.attribute(raw), self.encoder.identity(raw)

    def guide_logits(self, latents: Tensor) -> Tensor:
        """Return the attribute's logits (B, K) that the guide reads in latents (B, L, h, w), through noise."""
        logits: Tensor = self.guide(self.first_stage.decode(latents))
        return logits

    def set_latent_statistics(self, latents: Tensor) -> None:
        """Remember mean and standard deviation by channel of the training images' latents (N, L, h, w)."""
        self.latent_mean, self.latent_std = (tuple(x.tolist()) for x in moments(latents))

    @torch.no_grad()
    def differs_from(self, images: Tensor) -> str | None:
        """Say in words how the latents of uint8 images (N, C, H, W) clearly differ from the training set's, or None.

        At most 512 images, evenly spaced, are looked at.
        """
        if not self.latent_mean:
            return None
        sample = images[:: -(-len(images) // _SHIFT_IMAGES)]
        latents = torch.cat([self.to_latents(part).cpu() for part in torch.split(sample, self.encode_batch)])
        trained = (torch.tensor(self.latent_mean), torch.tensor(self.latent_std))
        return unlike_set("latents", moments(latents), trained)
