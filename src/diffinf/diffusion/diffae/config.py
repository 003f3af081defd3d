"""What fixes a DiffAE network: read off the shapes of its tensors, by name, or from a JSON file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from diffinf.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]
# Far beyond any network of this kind, and small enough that its tensors can at least be named.
_MOST = {"num_res_blocks": 64, "timesteps": 100_000}
_MOST_OTHERWISE, _MOST_LEVELS = 65_536, 16
_NORM_GROUPS = 32
_LISTS = ("channel_mult", "encoder_channel_mult", "attention_resolutions")


@dataclass(frozen=True)
class DiffAEConfig:
    """Everything that fixes a DiffAE's tensors and what they compute.

    Attributes:
        image_size: side in pixels.
        model_channels: base width of the U-Net and of the encoder.
        channel_mult: width of each level of the U-Net, in base widths; each level halves the side.
        encoder_channel_mult: the same of the semantic encoder.
        embed_channels: size of the time's embedding.
        semantic_channels: size D of the semantic code.
        num_res_blocks: residual blocks a level.
        attention_resolutions: sides in pixels at which attention follows each residual block.
        image_channels: of the images.
        num_heads: heads of each attention; the tensors have the same shapes whatever it is.
        timesteps: noise levels T, with betas evenly from 1e-4 to 0.02; 1 to 100,000.

    Raises:
        UserError: no network can be built of it; the field is named.
    """

    image_size: int
    model_channels: int
    channel_mult: tuple[int, ...]
    encoder_channel_mult: tuple[int, ...]
    embed_channels: int
    semantic_channels: int
    num_res_blocks: int
    attention_resolutions: tuple[int, ...] = (16,)
    image_channels: int = 3
    num_heads: int = 1
    timesteps: int = 1000

    def __post_init__(self) -> None:
        """Check that a network can be built and run."""
        for name in ("channel_mult", "encoder_channel_mult"):
            if not 1 <= len(getattr(self, name)) <= _MOST_LEVELS:
                found = len(getattr(self, name))
                raise UserError(f"{name}: expected a list of 1 to {_MOST_LEVELS} levels, found {found}")
        for name, value in asdict(self).items():
            most = _MOST.get(name, _MOST_OTHERWISE)
            if not all(1 <= number <= most for number in (value if isinstance(value, tuple) else [value])):
                raise UserError(f"{name}: expected {_whole(name)} from 1 to {most}, found {value}")
        least = 2 ** (max(len(self.channel_mult), len(self.encoder_channel_mult)) - 1)
        if self.image_size % least:
            raise UserError(f"image_size: expected a multiple of {least}, found {self.image_size}")
        if self.model_channels % 2:
            raise UserError(f"model_channels: expected an even base width, found {self.model_channels}")
        for multipliers in (self.channel_mult, self.encoder_channel_mult):
            self._check_widths(multipliers)

    def _check_widths(self, multipliers: tuple[int, ...]) -> None:
        for level, multiplier in enumerate(multipliers):
            width = self.model_channels * multiplier
            if width % _NORM_GROUPS or width > _MOST_OTHERWISE:
                raise UserError(
                    f"model_channels: expected levels whose width is a multiple of {_NORM_GROUPS}, up to "
                    f"{_MOST_OTHERWISE}, found {self.model_channels} x {multiplier} = {width}"
                )
            # The middle block, as wide as the last level, always has attention.
            last = level == len(multipliers) - 1
            attentive = last or self.image_size >> level in self.attention_resolutions
            if attentive and width % self.num_heads:
                raise UserError(f"num_heads: expected a divisor of the width {width}, found {self.num_heads}")

    @classmethod
    def from_fields(cls, values: Mapping[str, Any], source: str) -> Self:
        """Build from fields as JSON has them.

        Raises:
            UserError: a field is missing, unknown or not a whole number (or list of such), or no network can be
                built of them; `source` is named.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UserError(f"{source}: {unknown[0]}: no such field; there are {', '.join(sorted(known))}")
        found: dict[str, Any] = {}
        for name, value in values.items():
            several = name in _LISTS
            numbers = value if several and isinstance(value, list | tuple) else [value]
            if not all(type(number) is int for number in numbers):
                raise UserError(f"{source}: {name}: expected {_whole(name)}, found {value!r}")
            found[name] = tuple(numbers) if several else value
        try:
            return cls(**found)
        except TypeError as error:
            missing = ", ".join(re.findall(r"'(\w+)'", str(error)))
            raise UserError(f"{source}: not a DiffAE's configuration; missing: {missing}") from error
        except UserError as error:
            raise UserError(f"{source}: {error}") from error

    def to_fields(self) -> dict[str, Any]:
        """Return the fields as JSON has them; `from_fields` undoes it."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]


def _whole(name: str) -> str:
    return "a list of whole numbers" if name in _LISTS else "a whole number"


def _released(image_size: int, channel_mult: tuple[int, ...]) -> DiffAEConfig:
    """Return what the released networks of 128 and 256 pixels have in common (appendix of arXiv 2111.15640)."""
    return DiffAEConfig(
        image_size=image_size,
        model_channels=128,
        channel_mult=channel_mult,
        encoder_channel_mult=(*channel_mult, channel_mult[-1]),
        embed_channels=512,
        semantic_channels=512,
        num_res_blocks=2,
    )


PRESETS = {
    "ffhq128": _released(128, (1, 1, 2, 3, 4)),
    "ffhq256": _released(256, (1, 1, 2, 2, 4, 4)),
}


def named_config(name: str) -> DiffAEConfig:
    """Return a preset by its name, or the configuration in a JSON file.

    Raises:
        UserError: there is neither a preset nor a file of that name, or the file is no configuration.
    """
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    if path.suffix != ".json":
        raise UserError(f"--config {name}: expected one of {', '.join(PRESETS)}, or a .json file of fields")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--config {name}: not a readable JSON file ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {name}: expected fields by name, found {type(values).__name__}")
    return DiffAEConfig.from_fields(values, f"--config {name}")


def infer_config(shapes: Shapes, image_size: int | None = None) -> DiffAEConfig:
    """Return the configuration that the tensors' shapes give away.

    Args:
        shapes: of a network's tensors by name, without prefixes.
        image_size: side in pixels where it is known; none: the deepest attention is taken to be at 16 pixels,
            where the paper has it. The number of heads is taken to be 1, as in all released networks.

    Raises:
        UserError: the shapes are not those of a DiffAE, no network has them, or they leave the image size open.
    """
    try:
        model_channels = shapes["time_embed.time_embed.0.weight"][1]
        if not model_channels:
            raise UserError("time_embed.time_embed.0.weight: expected a base width above 0, found 0")
        ups = sorted(
            {
                int(found[1])
                for name in shapes
                # A second residual block in one output block is what doubles the side.
                if (found := re.match(r"output_blocks\.(\d+)\.[12]\.in_layers\.2\.weight$", name))
            }
        )
        count = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("output_blocks."))
        num_res_blocks = ups[0] if ups else count - 1
        blocks = num_res_blocks + 1
        widths, attentive = _levels(shapes, "input_blocks.", blocks)
        encoder_widths, _ = _levels(shapes, "encoder.input_blocks.", blocks)
        if any(width % model_channels for width in (*widths, *encoder_widths)):
            raise UserError(
                f"the widths {widths} of the levels are no multiples of the base width {model_channels}"
            )
        config = DiffAEConfig(
            image_size=image_size or (16 << max(attentive, default=0)),
            model_channels=model_channels,
            channel_mult=tuple(width // model_channels for width in widths),
            encoder_channel_mult=tuple(width // model_channels for width in encoder_widths),
            embed_channels=shapes["time_embed.time_embed.0.weight"][0],
            semantic_channels=shapes["encoder.out.3.weight"][0],
            num_res_blocks=num_res_blocks,
            image_channels=shapes["input_blocks.0.0.weight"][1],
        )
    except KeyError as error:
        raise UserError(f"not the tensors of a DiffAE network: there is no {error}") from error
    except (IndexError, ValueError) as error:
        raise UserError(f"not the tensors of a DiffAE network ({error})") from error
    if not attentive and image_size is None:
        raise UserError("the shapes leave the images' size open, since no level has attention: give --config")
    return replace(config, attention_resolutions=tuple(config.image_size >> k for k in attentive))


def _levels(shapes: Shapes, prefix: str, blocks: int) -> tuple[list[int], list[int]]:
    """Return the width of each level of an input half, and the levels with attention.

    A level has `blocks` blocks: the first convolution, or the block that halves the side, and then the residual
    blocks whose width is the level's.
    """
    count = 1 + max(int(name[len(prefix) :].split(".")[0]) for name in shapes if name.startswith(prefix))
    widths = [shapes[f"{prefix}{k}.0.in_layers.2.weight"][0] for k in range(1, count, blocks)]
    attentive = [
        level for level in range(len(widths)) if f"{prefix}{level * blocks + 1}.1.qkv.weight" in shapes
    ]
    return widths, attentive
