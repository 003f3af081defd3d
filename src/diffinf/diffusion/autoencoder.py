"""The diffusion autoencoder: an image is a semantic code, a label context and a stochastic code (arXiv 2111.15640).

What is our own: the denoiser is conditioned on the semantic code AND on the label, each of which is left out now and
then in training, so that decoding can be guided by a positive and a negative context (arXiv 2508.09661 for the rule).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import Tensor, nn

from diffinf.classify.model import ClassifierSpec, create_classifier
from diffinf.diffusion.first_stage import FirstStage
from diffinf.diffusion.invert import Correction, Prediction, decode, invert
from diffinf.errors import UserError
from diffinf.run import load_tensors, save_tensors, write_json

FORMAT_VERSION = 1


@dataclass(frozen=True)
class AutoencoderSpec:
    """Everything that fixes the shapes of a diffusion autoencoder."""

    class_names: tuple[str, ...]
    image_channels: int
    image_size: int
    patch_size: int
    latent_channels: int
    attribute_size: int
    appearance_size: int
    unet_channels: tuple[int, ...]
    unet_layers: int
    identity_size: int
    timesteps: int = 1000

    @property
    def code_size(self) -> int:
        """Size D of the whole semantic code: the attribute's part first, then the appearance's."""
        return self.attribute_size + self.appearance_size


class SemanticEncoder(nn.Module):
    """Latents (B, L, h, w) to semantic codes (B, D) of two parts, with linear heads.

    The attribute head reads the first part, the identity head the second, and an adversary sees to it that the
    attribute cannot be read from the second (Fader networks, arXiv 1706.00409): otherwise the appearance would
    carry the expression and no label context could move it.
    """

    def __init__(self, spec: AutoencoderSpec) -> None:
        """Build an untrained encoder."""
        super().__init__()
        channels = (64, 96, 128)
        layers: list[nn.Module] = [nn.Conv2d(spec.latent_channels, channels[0], 3, padding=1)]
        for before, after in zip((channels[0], *channels), channels, strict=False):
            layers += [
                nn.GroupNorm(8, before),
                nn.SiLU(),
                nn.Conv2d(before, after, 3, stride=1 if before == after else 2, padding=1),
            ]
        self.body = nn.Sequential(*layers, nn.GroupNorm(8, channels[-1]), nn.SiLU(), nn.AdaptiveAvgPool2d(2))
        self.project = nn.Linear(channels[-1] * 4, spec.code_size)
        self.attribute_size = spec.attribute_size
        self.attribute_head = nn.Linear(spec.attribute_size, len(spec.class_names))
        self.identity_head = nn.Linear(spec.appearance_size, spec.identity_size, bias=False)

    def forward(self, latents: Tensor) -> Tensor:
        """Return the codes (B, D)."""
        code: Tensor = self.project(self.body(latents).flatten(1))
        return code

    def attribute(self, code: Tensor) -> Tensor:
        """Return the attribute's logits (B, K) of codes (B, D)."""
        logits: Tensor = self.attribute_head(code[:, : self.attribute_size])
        return logits

    def appearance(self, code: Tensor) -> Tensor:
        """Return the part of codes (B, D) that the denoiser sees, (B, D - A)."""
        return code[:, self.attribute_size :]

    def identity(self, code: Tensor) -> Tensor:
        """Return unit vectors (B, I) whose cosine tells persons apart, of codes (B, D)."""
        return F.normalize(self.identity_head(self.appearance(code)), dim=1)


class Denoiser(nn.Module):
    """U-Net on latents, conditioned through adaptive group norm on time + code + label; predicts v (2202.00512)."""

    def __init__(self, spec: AutoencoderSpec) -> None:
        """Build an untrained denoiser."""
        super().__init__()
        channels = spec.unet_channels
        plain = len(channels) - 1
        self.unet = UNet2DModel(
            sample_size=spec.image_size // spec.patch_size,
            in_channels=spec.latent_channels,
            out_channels=spec.latent_channels,
            block_out_channels=channels,
            layers_per_block=spec.unet_layers,
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
            attention_head_dim=32,
            norm_num_groups=16,
            class_embed_type="identity",
            resnet_time_scale_shift="scale_shift",
        )
        width = 4 * channels[0]
        self.appearance_context = nn.Linear(spec.appearance_size, width)
        self.label_context = nn.Linear(len(spec.class_names), width, bias=False)
        # Learned, not zeros pushed through a projection.
        self.empty_appearance = nn.Parameter(torch.zeros(width))
        self.empty_label = nn.Parameter(torch.zeros(width))

    def context(
        self,
        appearance: Tensor,
        shares: Tensor,
        keep_appearance: Tensor | None = None,
        keep_label: Tensor | None = None,
    ) -> Tensor:
        """Return the context (B, W).

        Args:
            appearance: second part of the semantic codes, (B, D - A).
            shares: how much of each class the image shows, (B, K), rows summing to 1.
            keep_appearance: bool (B,); False gives that sample the learned empty appearance.
            keep_label: bool (B,); False gives that sample the learned empty label.
        """
        parts = [self.appearance_context(appearance), self.label_context(shares)]
        empties = [(keep_appearance, self.empty_appearance), (keep_label, self.empty_label)]
        for index, (keep, empty) in enumerate(empties):
            if keep is not None:
                parts[index] = torch.where(keep[:, None], parts[index], empty)
        context: Tensor = parts[0] + parts[1]
        return context

    def forward(self, noisy: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """Return v (B, L, h, w) for noisy latents (B, L, h, w), timesteps (B,) and contexts (B, W)."""
        v: Tensor = self.unet(noisy, timestep, class_labels=context).sample
        return v


class DiffusionAutoencoder(nn.Module):
    """First stage, semantic encoder, denoiser and guide, with the noise schedule and the codes' statistics."""

    reads_labels = True
    encode_batch = 256

    def __init__(self, spec: AutoencoderSpec) -> None:
        """Build an untrained autoencoder; `train_autoencoder` or `load` gives a useful one."""
        super().__init__()
        self.spec = spec
        self.first_stage = FirstStage(spec.image_channels, spec.latent_channels, spec.patch_size)
        self.encoder = SemanticEncoder(spec)
        self.denoiser = Denoiser(spec)
        # Reads the attribute in decoded noisy latents: its gradient is what guides a decode to a label.
        self.guide = create_classifier(
            ClassifierSpec("small_cnn", len(spec.class_names), spec.image_channels, spec.image_size), seed=0
        )
        betas = torch.linspace(1e-4, 0.02, spec.timesteps, dtype=torch.float64)
        self.register_buffer("alphas_cumprod", (1 - betas).cumprod(0).float(), persistent=False)
        self.register_buffer("code_mean", torch.zeros(spec.code_size))
        self.register_buffer("code_std", torch.ones(spec.code_size))
        self.alphas_cumprod: Tensor
        self.code_mean: Tensor
        self.code_std: Tensor

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.code_mean.device

    @property
    def position(self) -> float:
        """The guide's settings count the positions of the latents themselves."""
        return 1.0

    def to_latents(self, images: Tensor) -> Tensor:
        """Return latents (B, L, h, w) of uint8 images (B, C, H, W).

        Raises:
            UserError: the images' size or channels are not those of this autoencoder.
        """
        expected = (self.spec.image_channels, self.spec.image_size, self.spec.image_size)
        if tuple(images.shape[1:]) != expected:
            raise UserError(
                f"the images are {tuple(images.shape[1:])} (channels, height, width), the autoencoder was trained on "
                f"{expected}: set data.image_size and data.channels accordingly, or train another autoencoder"
            )
        latents: Tensor = self.first_stage.encode(images.to(self.device).float() / 127.5 - 1)
        return latents

    def to_images(self, latents: Tensor) -> Tensor:
        """Return uint8 images (B, C, H, W) of latents (B, L, h, w)."""
        return ((self.first_stage.decode(latents) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

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

    def invert(self, latents: Tensor, predict: Prediction, *, steps: int, depth: float = 1.0) -> Tensor:
        """Return latents carried up to noise level `depth`; see `diffinf.diffusion.invert.invert`."""
        return invert(self.alphas_cumprod, latents, predict, steps=steps, depth=depth)

    def decode(
        self,
        noisy: Tensor,
        predict: Prediction,
        *,
        steps: int,
        depth: float = 1.0,
        correct: Correction | None = None,
    ) -> Tensor:
        """Return clean latents of noisy ones; see `diffinf.diffusion.invert.decode`."""
        return decode(self.alphas_cumprod, noisy, predict, steps=steps, depth=depth, correct=correct)

    def read_code(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Return the attribute's logits (B, K) and identity vectors (B, I) of normalised codes (B, D)."""
        raw = self.raw(code)
        return self.encoder.attribute(raw), self.encoder.identity(raw)

    def guide_logits(self, latents: Tensor) -> Tensor:
        """Return the attribute's logits (B, K) that the guide reads in latents (B, L, h, w), through noise."""
        logits: Tensor = self.guide(self.first_stage.decode(latents))
        return logits

    def save(self, directory: Path) -> None:
        """Write weights (float16 safetensors: half the size, no visible change) and specification."""
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in self.state_dict().items()}
        save_tensors(directory / "autoencoder.safetensors", tensors)
        write_json(directory / "autoencoder.json", {"format_version": FORMAT_VERSION, **asdict(self.spec)})

    @classmethod
    def load(cls, directory: Path, device: torch.device | str = "cpu") -> Self:
        """Read an autoencoder written by `save`.

        Raises:
            UserError: a file is missing, damaged, of another format version, or does not fit its specification.
        """
        path = directory / "autoencoder.json"
        try:
            fields = dict(json.loads(path.read_text(encoding="utf-8")))
            version = fields.pop("format_version", None)
            if version != FORMAT_VERSION:
                raise UserError(f"{path}: format version {version}, this diffinf reads {FORMAT_VERSION}")
            fields["class_names"] = tuple(fields["class_names"])
            fields["unet_channels"] = tuple(fields["unet_channels"])
            model = cls(AutoencoderSpec(**fields))
        except FileNotFoundError as error:
            raise UserError(
                f"{path}: not there; expected an autoencoder written by train-autoencoder"
            ) from error
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            raise UserError(f"{path}: not an autoencoder's specification ({error})") from error
        tensors = load_tensors(directory / "autoencoder.safetensors")
        try:
            model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
        except RuntimeError as error:
            first = str(error).splitlines()[-1].strip()
            raise UserError(f"{directory}: the weights do not fit the specification: {first}") from error
        return model.to(device).eval().requires_grad_(False)
