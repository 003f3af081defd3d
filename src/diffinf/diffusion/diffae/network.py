"""The network of DiffAE, written from the paper (arXiv 2111.15640) and the names and shapes of released tensors.

A U-Net of residual blocks (arXiv 2105.05233) whose blocks are scaled and shifted by the time and then scaled by the
semantic code; the code comes from an encoder that is the U-Net's first half without time. Modules carry the released
tensors' names, so that weights load without translation.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffinf.diffusion.diffae.config import DiffAEConfig

Resample = Literal["down", "up"]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


class ResidualBlock(nn.Module):
    """Two convolutions with the conditions between them, beside a shortcut; may halve or double the side.

    A block of the encoder, which has no conditions, has the first convolution alone.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        conditions: tuple[int, int] | None,
        resample: Resample | None = None,
    ) -> None:
        """Build an untrained block.

        Args:
            channels: of the input.
            out_channels: of the output.
            conditions: sizes of the time's embedding and of the semantic code; none: without conditions.
            resample: change of the side.
        """
        super().__init__()
        self.resample = resample
        self.in_layers = nn.Sequential(
            _norm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.conditional = conditions is not None
        if conditions is not None:
            self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(conditions[0], 2 * out_channels))
            self.cond_emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(conditions[1], out_channels))
            self.out_layers = nn.Sequential(
                _norm(out_channels),
                nn.SiLU(),
                nn.Identity(),  # the place of the dropout, which rests when nothing is trained
                nn.Conv2d(out_channels, out_channels, 3, padding=1),
            )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x

    def forward(self, x: Tensor, time: Tensor | None, code: Tensor | None) -> Tensor:
        """Return (B, C', h', w') for features (B, C, h, w), time embeddings (B, E) and codes (B, D)."""
        h = self.in_layers[2](self._resampled(self.in_layers[:2](x)))
        if self.conditional:
            scale, shift = self.emb_layers(time)[:, :, None, None].chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
            h = h * (1 + self.cond_emb_layers(code)[:, :, None, None])
            h = self.out_layers[1:](h)
        result: Tensor = self.skip_connection(self._resampled(x)) + h
        return result


class AttentionBlock(nn.Module):
    """Self-attention over all positions, added to its input."""

    def __init__(self, channels: int, num_heads: int) -> None:
        """Build an untrained block."""
        super().__init__()
        self.num_heads = num_heads
        self.norm = _norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, C, h, w) for features of the same shape."""
        flat = x.flatten(2)
        heads = self.qkv(self.norm(flat)).unflatten(1, (self.num_heads, -1)).transpose(2, 3)
        query, key, value = heads.chunk(3, dim=3)  # (B, heads, h·w, C / heads) each
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(2, 3).flatten(1, 2)
        result: Tensor = (flat + self.proj_out(mixed)).view_as(x)
        return result


class Stage(nn.ModuleList):
    """Modules one after the other; the residual blocks among them hear the conditions."""

    def forward(self, x: Tensor, time: Tensor | None = None, code: Tensor | None = None) -> Tensor:
        """Return features (B, C', h', w') for features (B, C, h, w) under the conditions."""
        for module in self:
            x = module(x, time, code) if isinstance(module, ResidualBlock) else module(x)
        return x


def _input_blocks(
    config: DiffAEConfig, multipliers: tuple[int, ...], conditions: tuple[int, int] | None
) -> tuple[nn.ModuleList, list[int]]:
    """Return the blocks of an input half, and each one's output channels."""
    channels = config.model_channels * multipliers[0]
    blocks = nn.ModuleList([Stage([nn.Conv2d(config.image_channels, channels, 3, padding=1)])])
    widths = [channels]
    for level, multiplier in enumerate(multipliers):
        if level:
            blocks.append(Stage([ResidualBlock(channels, channels, conditions=conditions, resample="down")]))
            widths.append(channels)
        for _ in range(config.num_res_blocks):
            width = config.model_channels * multiplier
            stage = Stage([ResidualBlock(channels, width, conditions=conditions)])
            channels = width
            if config.image_size >> level in config.attention_resolutions:
                stage.append(AttentionBlock(channels, config.num_heads))
            blocks.append(stage)
            widths.append(channels)
    return blocks, widths


def _middle_block(channels: int, num_heads: int, conditions: tuple[int, int] | None) -> Stage:
    return Stage(
        [
            ResidualBlock(channels, channels, conditions=conditions),
            AttentionBlock(channels, num_heads),
            ResidualBlock(channels, channels, conditions=conditions),
        ]
    )


class SemanticEncoder(nn.Module):
    """Images (B, C, H, W) in [-1, 1] to semantic codes (B, D): the first half of the U-Net, pooled."""

    def __init__(self, config: DiffAEConfig) -> None:
        """Build an untrained encoder."""
        super().__init__()
        self.input_blocks, widths = _input_blocks(config, config.encoder_channel_mult, None)
        self.middle_block = _middle_block(widths[-1], config.num_heads, None)
        self.out = nn.Sequential(
            _norm(widths[-1]),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(widths[-1], config.semantic_channels, 1),
            nn.Flatten(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the codes (B, D), not normalised."""
        h = images
        for block in self.input_blocks:
            h = block(h)
        code: Tensor = self.out(self.middle_block(h))
        return code


class TimeEmbedding(nn.Module):
    """Timesteps (B,) to embeddings (B, E): sinusoids, then two layers."""

    def __init__(self, config: DiffAEConfig) -> None:
        """Build an untrained embedding."""
        super().__init__()
        self.size = config.model_channels
        self.time_embed = nn.Sequential(
            nn.Linear(self.size, config.embed_channels),
            nn.SiLU(),
            nn.Linear(config.embed_channels, config.embed_channels),
        )

    def forward(self, timestep: Tensor) -> Tensor:
        """Return embeddings (B, E)."""
        half = self.size // 2
        place = torch.arange(half, device=timestep.device, dtype=torch.float32)
        # Multiplied first, then divided: in float32 another order moves the angles of late timesteps by 1e-4.
        angles = timestep.float()[:, None] * torch.exp(-math.log(10_000) * place / half)
        embedding: Tensor = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1))
        return embedding


class DiffAENetwork(nn.Module):
    """The conditional U-Net and its semantic encoder; predicts the noise."""

    def __init__(self, config: DiffAEConfig) -> None:
        """Build an untrained network."""
        super().__init__()
        conditions = (config.embed_channels, config.semantic_channels)
        self.time_embed = TimeEmbedding(config)
        self.input_blocks, widths = _input_blocks(config, config.channel_mult, conditions)
        channels = widths[-1]
        self.middle_block = _middle_block(channels, config.num_heads, conditions)
        self.output_blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(config.channel_mult))):
            for index in range(config.num_res_blocks + 1):
                width = config.model_channels * multiplier
                stage = Stage([ResidualBlock(channels + widths.pop(), width, conditions=conditions)])
                channels = width
                if config.image_size >> level in config.attention_resolutions:
                    stage.append(AttentionBlock(channels, config.num_heads))
                if level and index == config.num_res_blocks:
                    stage.append(ResidualBlock(channels, channels, conditions=conditions, resample="up"))
                self.output_blocks.append(stage)
        self.out = nn.Sequential(
            _norm(channels), nn.SiLU(), nn.Conv2d(channels, config.image_channels, 3, padding=1)
        )
        self.encoder = SemanticEncoder(config)

    def forward(self, noisy: Tensor, timestep: Tensor, code: Tensor) -> Tensor:
        """Return the predicted noise (B, C, H, W).

        Args:
            noisy: noisy images (B, C, H, W).
            timestep: (B,), 0 to T - 1.
            code: semantic codes (B, D) as the encoder gives them, not normalised.
        """
        time = self.time_embed(timestep)
        h, shortcuts = noisy, []
        for block in self.input_blocks:
            h = block(h, time, code)
            shortcuts.append(h)
        h = self.middle_block(h, time, code)
        for block in self.output_blocks:
            h = block(torch.cat([h, shortcuts.pop()], dim=1), time, code)
        noise: Tensor = self.out(h)
        return noise
