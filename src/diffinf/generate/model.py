"""The conditional generator: a latent diffusion model under contexts that are unit vectors (as arXiv 2308.04995)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DiffusionPipeline, UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from diffinf.diffusion import storage
from diffinf.diffusion.component import Component
from diffinf.diffusion.first_stage import FirstStage, KLStage, PatchComponents, PixelStage
from diffinf.errors import UserError

Injection = Literal["norm", "attention"]
Condition = Literal["label", "identity", "embedding"]
_TOKENS = 4  # that cross-attention looks at: with one, there would be nothing to attend to
_PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}


class ContextDenoiser(Component):
    """U-Net on latents under a context; the context is projected, and reaches every residual block.

    "norm": added to the time's embedding, which scales and shifts the group norms. "attention": cross-attention.
    """

    def __init__(
        self,
        latent_channels: int,
        latent_size: int,
        channels: Sequence[int],
        layers: int,
        context_size: int,
        injection: Injection = "norm",
        learned: int = 0,
    ) -> None:
        """Build an untrained denoiser of latents (B, L, h, h); `learned` is how many contexts it learns, or 0.

        Raises:
            ValueError: no network has such shapes.
        """
        super().__init__()
        channels = tuple(channels)
        if injection not in ("norm", "attention"):
            raise ValueError(f"injection: expected norm or attention, found {injection!r}")
        self.register_to_config(
            latent_channels=latent_channels,
            latent_size=latent_size,
            channels=list(channels),
            layers=layers,
            context_size=context_size,
            injection=injection,
            learned=learned,
        )
        shapes: dict[str, Any] = {
            "sample_size": latent_size,
            "in_channels": latent_channels,
            "out_channels": latent_channels,
            "block_out_channels": channels,
            "layers_per_block": layers,
            "attention_head_dim": 32,
            "norm_num_groups": 16,
            "resnet_time_scale_shift": "scale_shift",
        }
        plain, width = len(channels) - 1, 4 * channels[0]
        self.unet: nn.Module
        if injection == "norm":
            self.unet = UNet2DModel(
                **shapes,
                down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
                up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
                class_embed_type="identity",
            )
        else:
            self.unet = UNet2DConditionModel(
                **shapes,
                down_block_types=("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",),
                up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * plain,
                cross_attention_dim=width,
            )
        self.injection, self.tokens = injection, 1 if injection == "norm" else _TOKENS
        self.project = nn.Sequential(
            nn.Linear(context_size, width), nn.SiLU(), nn.Linear(width, self.tokens * width)
        )
        # Learned, not zeros pushed through the projection.
        self.empty = nn.Parameter(torch.zeros(self.tokens * width))
        self.table = nn.Parameter(torch.randn(learned, context_size)) if learned else None

    def contexts(self) -> Tensor:
        """Return the learned contexts (P, D), of unit length; ValueError where there are none."""
        if self.table is None:
            raise ValueError("this denoiser has learned no contexts")
        return F.normalize(self.table, dim=1)

    def embed(
        self, contexts: Tensor, keep_components: Tensor | None = None, keep: Tensor | None = None
    ) -> Tensor:
        """Return what the U-Net is given (B, W) of contexts (B, D) of unit length.

        Args:
            contexts: unit vectors (B, D).
            keep_components: bool (B, D); False withholds a component, the others grow so that the sum stays
                (contextual partial dropout, as arXiv 2308.04995, which withholds after the projection).
            keep: bool (B,); False gives that sample the learned empty context.
        """
        scaled = contexts * contexts.shape[1] ** 0.5  # components of unit variance
        if keep_components is not None:
            share = keep_components.float().mean(1, keepdim=True).clamp_min(1 / contexts.shape[1])
            scaled = scaled * keep_components / share
        embedded: Tensor = self.project(scaled)
        return embedded if keep is None else torch.where(keep[:, None], embedded, self.empty)

    def embed_empty(self, count: int) -> Tensor:
        """Return the learned empty context `count` times, (count, W)."""
        return self.empty.expand(count, -1)

    def forward(self, noisy: Tensor, timestep: Tensor, embedded: Tensor) -> Tensor:
        """Return the prediction (B, L, h, w) for noisy latents (B, L, h, w), timesteps (B,), contexts (B, W)."""
        if self.injection == "norm":
            output = self.unet(noisy, timestep, class_labels=embedded)
        else:
            output = self.unet(noisy, timestep, embedded.view(len(embedded), self.tokens, -1))
        prediction: Tensor = output.sample
        return prediction


LAYOUT = storage.Layout(
    noun="a generator",
    command="train-generator",
    pipeline="ContextGenerator",
    description="generator.json",
    modules={"first_stage": (PatchComponents, KLStage, PixelStage), "denoiser": (ContextDenoiser,)},
    schedulers=(DDPMScheduler,),
)


class ContextGenerator(DiffusionPipeline):  # type: ignore[misc]  # diffusers is not typed
    """First stage, denoiser and noise schedule: what is sampled from under contexts (see `diffinf.generate.sample`).

    Attributes:
        condition: what it was trained on: "label", "identity" or "embedding".
        context_names: names of the learned contexts; none of embeddings.
    """

    def __init__(
        self,
        first_stage: FirstStage,
        denoiser: ContextDenoiser,
        scheduler: DDPMScheduler,
        *,
        condition: Condition = "embedding",
        context_names: Sequence[str] = (),
    ) -> None:
        """Put components together; UserError where they do not fit each other."""
        super().__init__()
        self.register_modules(first_stage=first_stage, denoiser=denoiser, scheduler=scheduler)
        self.condition, self.context_names = condition, tuple(context_names)
        pairs = {
            "latent channels": (first_stage.latent_channels, denoiser.config.latent_channels),
            "learned contexts": (len(self.context_names), denoiser.config.learned),
        }
        if wrong := [f"{name} ({one} and {other})" for name, (one, other) in pairs.items() if one != other]:
            raise UserError(f"the components of the generator do not fit each other: {', '.join(wrong)}")

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        empty: Tensor = self.denoiser.empty
        return empty.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of one latent, (L, h, w)."""
        config = self.denoiser.config
        return config.latent_channels, config.latent_size, config.latent_size

    @property
    def context_size(self) -> int:
        """Components D of a context."""
        size: int = self.denoiser.config.context_size
        return size

    @property
    def timesteps(self) -> int:
        """Noise levels T."""
        count: int = self.scheduler.config.num_train_timesteps
        return count

    @property
    def alphas_cumprod(self) -> Tensor:
        """Share of the variance that is signal, by timestep, (T,)."""
        alphas: Tensor = self.scheduler.alphas_cumprod
        return alphas.to(self.device)

    def freeze(self) -> Self:
        """Put all networks into evaluation mode, without gradients."""
        for module in (self.first_stage, self.denoiser):
            module.eval().requires_grad_(False)
        return self

    def to_latents(self, images: Tensor) -> Tensor:
        """Return latents (B, L, h, w) of uint8 images (B, C, H, W)."""
        latents: Tensor = self.first_stage.encode(images.to(self.device).float() / 127.5 - 1)
        return latents

    def to_images(self, latents: Tensor) -> Tensor:
        """Return uint8 images (B, C, H, W) of latents (B, L, h, w)."""
        images: Tensor = self.first_stage.decode(latents)
        return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def save_pretrained(
        self,
        save_directory: Path | str,
        *,
        dtype: torch.dtype = torch.float32,
        details: dict[str, Any] | None = None,
    ) -> None:
        """Write model_index.json, one folder a component, and generator.json, which comes last.

        Args:
            save_directory: the folder; parents are made.
            dtype: of the weights as stored.
            details: what else generator.json is to say.
        """
        description = {
            "condition": self.condition,
            "context_names": list(self.context_names),
            "details": details or {},
        }
        storage.write_folder(Path(save_directory), self.components, description, dtype, LAYOUT)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Path | str, *, device: torch.device | str = "cpu"
    ) -> Self:
        """Read a folder that `save_pretrained` wrote; nothing is looked up elsewhere, and nothing in it is executed.

        Raises:
            UserError: a file is missing, damaged, changed, of another version, or does not fit the others.
        """
        directory = Path(pretrained_model_name_or_path)
        components, description = storage.read_folder(directory, LAYOUT)
        condition: Any = description.get("condition")
        names: Any = description.get("context_names")
        known = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if condition not in ("label", "identity", "embedding") or not known:
            raise UserError(
                f"{directory / LAYOUT.description}: not a generator's description; train it again"
            )
        try:
            model = cls(**components, condition=condition, context_names=names)
        except UserError as error:
            raise UserError(f"{directory}: {error}") from error
        model.to(device)
        return model.freeze()


def create_generator(
    first_stage: FirstStage,
    *,
    image_size: int,
    channels: Sequence[int],
    layers: int,
    context_size: int,
    injection: Injection = "norm",
    prediction: Literal["epsilon", "v"] = "v",
    condition: Condition = "embedding",
    context_names: Sequence[str] = (),
    timesteps: int = 1000,
) -> ContextGenerator:
    """Return a generator with an untrained denoiser; weights come from torch's global generator.

    Args:
        first_stage: images to latents and back.
        image_size: side of the images in pixels.
        channels: width of the U-Net by level, multiples of 32.
        layers: residual blocks a level.
        context_size: components D of a context.
        injection: how the context reaches the U-Net.
        prediction: the noise, or v (arXiv 2202.00512).
        condition: what it is to be trained on.
        context_names: names of the contexts to be learned.
        timesteps: noise levels, of the linear schedule of arXiv 2006.11239.

    Raises:
        UserError: no network has such shapes.
    """
    side = image_size // first_stage.factor
    if image_size % (first_stage.factor * 2 ** (len(channels) - 1)):
        raise UserError(
            f"generator.unet_channels: {len(channels)} levels on latents of {first_stage.factor} pixels a position do "
            f"not divide the images' side of {image_size} pixels; choose fewer levels or another data.image_size"
        )
    if any(width % 32 for width in channels):
        raise UserError(f"generator.unet_channels: expected multiples of 32, found {list(channels)}")
    return ContextGenerator(
        first_stage=first_stage,
        denoiser=ContextDenoiser(
            first_stage.latent_channels,
            side,
            channels,
            layers,
            context_size,
            injection,
            len(context_names),
        ),
        scheduler=DDPMScheduler(
            num_train_timesteps=timesteps,
            beta_start=1e-4,
            beta_end=0.02,
            beta_schedule="linear",
            prediction_type=_PREDICTIONS[prediction],
            clip_sample=False,
        ),
        condition=condition,
        context_names=context_names,
    )
