"""An imported DiffAE as an autoencoder of the repair: in pixel space, its weights frozen.

It was trained without labels. What a repair needs of them is fitted to the dataset at hand on top of the frozen
weights: a linear attribute head on normalised codes, and a guide that reads the attribute through noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffinf.classify.model import ClassifierSpec, create_classifier
from diffinf.diffusion.diffae.config import DiffAEConfig
from diffinf.diffusion.diffae.network import DiffAENetwork
from diffinf.diffusion.diffae.sampling import NoisePrediction, ddim_decode, ddim_invert, spaced_timesteps
from diffinf.diffusion.invert import Correction
from diffinf.errors import UserError
from diffinf.files import load_tensors, read_json, save_tensors, write_json

FORMAT_VERSION = 1
CONFIG_FILE, WEIGHTS_FILE = "diffae.json", "diffae.safetensors"
HEADS_FILE, HEADS_WEIGHTS_FILE = "heads.json", "heads.safetensors"


class DatasetHeads(nn.Module):
    """What is fitted to a dataset: the attribute's logits from normalised codes (B, D), and from images."""

    def __init__(self, config: DiffAEConfig, class_names: tuple[str, ...]) -> None:
        """Build unfitted heads; `fit_to_dataset` or `DiffAE.load` gives useful ones."""
        super().__init__()
        self.class_names = class_names
        self.attribute = nn.Linear(config.semantic_channels, len(class_names))
        spec = ClassifierSpec("small_cnn", len(class_names), config.image_channels, config.image_size)
        self.guide = create_classifier(spec, seed=0)


class DiffAE(nn.Module):
    """Network, noise schedule, statistics of the codes and, once fitted, a dataset's heads.

    Its latents are images (B, C, H, W) in [-1, 1]; its contexts are semantic codes, not normalised.
    """

    reads_labels = False
    encode_batch = 16
    max_depth = 1.0
    latent_std: tuple[float, ...] = ()  # no checkpoint tells

    def __init__(self, config: DiffAEConfig, network: DiffAENetwork | None = None) -> None:
        """Put a network and its surroundings together; without one, an untrained network is built."""
        super().__init__()
        self.config = config
        self.network = DiffAENetwork(config) if network is None else network
        self.heads: DatasetHeads | None = None
        self.has_statistics = False
        self.usual_error: tuple[float, ...] = ()
        betas = torch.linspace(1e-4, 0.02, config.timesteps, dtype=torch.float64)
        self.register_buffer("alphas_cumprod", (1 - betas).cumprod(0).float(), persistent=False)
        self.register_buffer("code_mean", torch.zeros(config.semantic_channels), persistent=False)
        self.register_buffer("code_std", torch.ones(config.semantic_channels), persistent=False)
        self.alphas_cumprod: Tensor
        self.code_mean: Tensor
        self.code_std: Tensor

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.code_mean.device

    @property
    def position(self) -> float:
        """Pixels that the guide's settings count as one position: a sixteenth of the side."""
        return self.config.image_size / 16

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Normalise codes by mean and standard deviation (D,) from now on."""
        self.code_mean.copy_(mean)
        self.code_std.copy_(std)
        self.has_statistics = True

    def to_latents(self, images: Tensor) -> Tensor:
        """Return uint8 images (B, C, H, W) as floats in [-1, 1].

        Raises:
            UserError: the images' size or channels are not those of this autoencoder.
        """
        check_images(self.config, tuple(images.shape[1:]))
        return images.to(self.device).float() / 127.5 - 1

    def to_images(self, latents: Tensor) -> Tensor:
        """Return uint8 images (B, C, H, W) of images in [-1, 1]; what lies outside is clipped here, and only here."""
        return ((latents + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def code(self, latents: Tensor) -> Tensor:
        """Return the normalised codes (B, D) of images (B, C, H, W) in [-1, 1]."""
        raw: Tensor = self.network.encoder(latents)
        return (raw - self.code_mean) / self.code_std

    def context(self, code: Tensor, shares: Tensor) -> Tensor:
        """Return the raw codes (B, D) of normalised ones; `shares` says nothing to a network that reads no labels."""
        return code * self.code_std + self.code_mean

    def predict(self, noisy: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """Return the predicted noise (B, C, H, W) for timesteps (B,) and raw codes (B, D)."""
        noise: Tensor = self.network(noisy, timestep, context)
        return noise

    def invert_latents(
        self, latents: Tensor, predict: NoisePrediction, *, steps: int, depth: float = 1.0
    ) -> Tensor:
        """Return images (B, C, H, W) in [-1, 1] carried up to noise level `depth`; at 1, the x_T of the paper.

        At depth 1 the network is asked `steps` times, below once less: there, the last timestep is where the
        decode starts, not where another step leads from.
        """
        timesteps = spaced_timesteps(self.config.timesteps, steps, depth)
        if depth == 1:
            return ddim_invert(latents, predict, self.alphas_cumprod, timesteps)
        last_alpha = float(self.alphas_cumprod[timesteps[-1]])
        return ddim_invert(latents, predict, self.alphas_cumprod, timesteps[:-1], last_alpha)

    def decode_latents(
        self,
        noisy: Tensor,
        predict: NoisePrediction,
        *,
        steps: int,
        depth: float = 1.0,
        correct: Correction | None = None,
    ) -> Tensor:
        """Return clean images (B, C, H, W) of what `invert_latents` made with the same `steps` and `depth`."""
        timesteps = spaced_timesteps(self.config.timesteps, steps, depth)
        return ddim_decode(noisy, predict, self.alphas_cumprod, timesteps, correct)

    def signal(self, steps: int, depth: float) -> float:
        """Return the share of the variance that is signal where a decode of `steps` steps from `depth` starts."""
        return float(self.alphas_cumprod[spaced_timesteps(self.config.timesteps, steps, depth)[-1]])

    def most_steps(self, depth: float) -> int:
        """Return how many steps an inversion or a decode to `depth` can take."""
        return round(depth * self.config.timesteps)

    def read_code(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Return the attribute's logits (B, K) and identity vectors (B, D) of normalised codes (B, D).

        Nobody said which part of the code is the person, so all of it counts.
        """
        return self._fitted().attribute(code), F.normalize(code, dim=1)

    def guide_logits(self, latents: Tensor) -> Tensor:
        """Return what the guide reads in images (B, C, H, W) in [-1, 1], clean or noisy: logits (B, K)."""
        logits: Tensor = self._fitted().guide(latents)
        return logits

    def _fitted(self) -> DatasetHeads:
        if self.heads is None:
            raise UserError(
                "this autoencoder was imported and not fitted to a dataset; name its folder in "
                "autoencoder.weights of a run, whose stage train-autoencoder does that"
            )
        return self.heads

    def save(self, directory: Path, source: dict[str, Any] | None = None) -> None:
        """Write network, statistics and configuration; `source` says in the configuration where they are from."""
        tensors = dict(self.network.state_dict(prefix="network."))
        if self.has_statistics:
            tensors |= {"code_mean": self.code_mean, "code_std": self.code_std}
        save_tensors(directory / WEIGHTS_FILE, tensors)
        values = {
            "format_version": FORMAT_VERSION,
            "config": self.config.to_fields(),
            "source": source or {},
        }
        write_json(directory / CONFIG_FILE, values)

    def save_heads(self, directory: Path) -> None:
        """Write the fitted heads, the statistics that their codes were normalised by, and the usual error."""
        heads = self._fitted()
        tensors = {**heads.state_dict(), "code_mean": self.code_mean, "code_std": self.code_std}
        save_tensors(directory / HEADS_WEIGHTS_FILE, tensors)
        values = {
            "format_version": FORMAT_VERSION,
            "class_names": list(heads.class_names),
            "usual_error": list(self.usual_error),
        }
        write_json(directory / HEADS_FILE, values)

    @classmethod
    def load(cls, directory: Path, device: torch.device | str = "cpu") -> Self:
        """Read what `save` wrote, and the heads if `save_heads` wrote some.

        Raises:
            UserError: a file is missing, damaged, of another format version, or does not fit its configuration.
        """
        config = read_config(directory)
        tensors = load_tensors(directory / WEIGHTS_FILE)
        with torch.device("meta"):  # no time and memory for weights that are replaced at once
            network = DiffAENetwork(config)
        model = cls(config, network)
        mean, std = tensors.pop("code_mean", None), tensors.pop("code_std", None)
        weights = {name.removeprefix("network."): values for name, values in tensors.items()}
        try:
            network.load_state_dict(weights, assign=True)
            if mean is not None and std is not None:
                model.set_statistics(mean, std)
            if (directory / HEADS_FILE).is_file():
                model._load_heads(directory)
        except RuntimeError as error:
            first = str(error).splitlines()[-1].strip()
            raise UserError(f"{directory}: the weights do not fit the configuration: {first}") from error
        return model.to(device).eval().requires_grad_(False)

    def _load_heads(self, directory: Path) -> None:
        fields = _versioned(directory / HEADS_FILE)
        tensors = load_tensors(directory / HEADS_WEIGHTS_FILE)
        try:
            self.set_statistics(tensors.pop("code_mean"), tensors.pop("code_std"))
            self.heads = DatasetHeads(self.config, tuple(fields["class_names"]))
            self.usual_error = tuple(map(float, fields.get("usual_error", ())))  # earlier folders have none
            if len(self.usual_error) not in (0, 2):
                raise ValueError("usual_error: expected a mean and a standard deviation")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{directory / HEADS_FILE}: damaged ({error}); delete it and run the stage again"
            ) from error
        self.heads.load_state_dict(tensors)


def check_images(config: DiffAEConfig, shape: tuple[int, ...]) -> None:
    """Raise a UserError unless images of (channels, height, width) `shape` are those of the network."""
    expected = (config.image_channels, config.image_size, config.image_size)
    if shape != expected:
        raise UserError(
            f"the images are {shape} (channels, height, width), the imported autoencoder takes {expected}: set "
            f"data.image_size={config.image_size} and data.channels={config.image_channels}"
        )


def is_imported(directory: Path) -> bool:
    """Whether a folder holds an imported DiffAE, fitted or not."""
    return (directory / CONFIG_FILE).is_file()


def read_config(directory: Path) -> DiffAEConfig:
    """Read the configuration of an imported DiffAE; UserError when it is missing, damaged or of another version."""
    path = directory / CONFIG_FILE
    fields = _versioned(path).get("config")
    if not isinstance(fields, dict):
        raise UserError(f"{path}: config: expected fields by name; import the checkpoint again")
    return DiffAEConfig.from_fields(fields, str(path))


def _versioned(path: Path) -> dict[str, Any]:
    values = read_json(path)
    version = values.get("format_version") if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(f"{path}: format version {version}, this diffinf reads {FORMAT_VERSION}")
    return dict(values)
