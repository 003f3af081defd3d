"""Classifiers: a small convolutional network made for CPUs, or any timm model; saving, loading, use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from diffinf.errors import UserError
from diffinf.files import load_tensors, read_json, save_tensors, write_json
from diffinf.training.loop import seeded

FORMAT_VERSION = 1
SMALL_CNN = "small_cnn"


@dataclass(frozen=True)
class ClassifierSpec:
    """What a classifier is built from.

    Attributes:
        name: "small_cnn", or the name of a timm model.
        num_classes: K, at least 2.
        in_channels: C, 1 (grey) or 3 (colour).
        image_size: side of the square images in pixels.
        class_names: the names of the K classes, or empty.
    """

    name: str
    num_classes: int
    in_channels: int
    image_size: int
    class_names: tuple[str, ...] = ()


class Classifier(Protocol):
    """What the project asks of a classifier; SmallCNN and timm's models both have it."""

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to features, pooled or not."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map those features to logits (B, K), or to the last layer's input (B, F)."""


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class SmallCNN(nn.Module):
    """A convolutional network for faces of 32-128 px: about 0.2 M parameters.

    Each of four stages halves the sides; the first, where the maps are large, has one convolution, the others
    two: without the second one at a quarter of the sides it is 15 % faster and a good deal worse. ReLUs are not
    in place, since gradients by sample hook the layers' outputs.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, dropout: float = 0.1) -> None:
        """Build the network for `num_classes` classes and images of `in_channels` channels."""
        super().__init__()
        self.stages = nn.Sequential(
            _convolution(in_channels, 16, stride=2),  # (B, 16, H/2, W/2)
            nn.Sequential(_convolution(16, 32, stride=2), _convolution(32, 32)),  # (B, 32, H/4, W/4)
            nn.Sequential(_convolution(32, 64, stride=2), _convolution(64, 64)),  # (B, 64, H/8, W/8)
            nn.Sequential(_convolution(64, 96, stride=2), _convolution(96, 96)),  # (B, 96, H/16, W/16)
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(96, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to pooled features (B, 96)."""
        return cast(Tensor, self.stages(x)).mean((2, 3))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map pooled features (B, 96) to logits (B, K); with `pre_logits` return the features."""
        return x if pre_logits else cast(Tensor, self.head(self.dropout(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, K)."""
        return self.forward_head(self.forward_features(x))


def create_classifier(spec: ClassifierSpec, seed: int) -> nn.Module:
    """Build the classifier of `spec` with an initialisation that depends on `seed` alone.

    Raises:
        UserError: no model has that name, or the model does not take such images.
    """
    with seeded(seed):
        if spec.name == SMALL_CNN:
            model: nn.Module = SmallCNN(spec.num_classes, spec.in_channels)
        else:
            model = _timm_model(spec)
    # Convolutions on CPUs are up to 1.4 times as fast with the channels last.
    return model.to(memory_format=torch.channels_last)


def _timm_model(spec: ClassifierSpec) -> nn.Module:
    import timm  # slow to import

    if not timm.is_model(spec.name):
        similar = ", ".join(get_close_matches(spec.name, timm.list_models(), 3))
        raise UserError(
            f"classifier.name: there is no model {spec.name!r}; expected small_cnn or a timm model"
            + (f", such as {similar}" if similar else "; timm.list_models() names them")
        )
    options: dict[str, Any] = {"num_classes": spec.num_classes, "in_chans": spec.in_channels}
    pretrained = timm.models.get_pretrained_cfg(spec.name)
    if pretrained is not None and pretrained.fixed_input_size:
        options["img_size"] = spec.image_size
    try:
        model = timm.create_model(spec.name, pretrained=False, **options)
        with torch.no_grad():  # some architectures only find out here that the image is too small for them
            model.eval()(torch.zeros(1, spec.in_channels, spec.image_size, spec.image_size))
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise UserError(
            f"classifier.name: {spec.name} cannot be built for {spec.in_channels} x {spec.image_size} x "
            f"{spec.image_size} images ({error}); choose another model or data.image_size"
        ) from error
    return cast(nn.Module, model.train())


def to_input(images: Tensor, device: torch.device | str) -> Tensor:
    """Turn uint8 images (B, C, H, W) into the classifiers' input on `device`: float32 in [-1, 1]."""
    moved = images.to(device).contiguous(memory_format=torch.channels_last)
    return moved.to(torch.float32).div_(127.5).sub_(1.0)


def features_and_logits(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last layer's input (B, F) and the logits (B, K) of images x (B, C, H, W) in [-1, 1]."""
    classifier = cast(Classifier, model)
    maps = classifier.forward_features(x)
    return classifier.forward_head(maps, pre_logits=True), classifier.forward_head(maps)


def predict(
    model: nn.Module,
    images: Tensor,
    *,
    device: torch.device | str,
    batch_size: int = 256,
    tta_flip: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return features (N, F) and logits (N, K), float32 on the CPU, of uint8 images (N, C, H, W).

    The model is used in evaluation mode and left in the mode it was in.

    Args:
        model: a classifier on `device`.
        images: uint8 (N, C, H, W).
        device: where the model is.
        batch_size: images at once.
        tta_flip: average over the image and its mirror image.
    """
    training = model.training
    model.eval()
    features, logits = [], []
    try:
        with torch.inference_mode():
            for batch in torch.split(images, batch_size):
                x = to_input(batch, device)
                feature, logit = features_and_logits(model, x)
                if tta_flip:
                    flipped = features_and_logits(model, x.flip(3))
                    feature, logit = (feature + flipped[0]) / 2, (logit + flipped[1]) / 2
                features.append(feature.float().cpu())
                logits.append(logit.float().cpu())
    finally:
        model.train(training)
    if not features:
        raise ValueError("no images to predict")
    return torch.cat(features).clone(), torch.cat(logits).clone()


def save_classifier(directory: Path, model: nn.Module, spec: ClassifierSpec) -> None:
    """Write model.safetensors and config.json into `directory`, each file whole or not at all."""
    save_tensors(directory / "model.safetensors", model.state_dict())
    write_json(directory / "config.json", {"format_version": FORMAT_VERSION, **asdict(spec)})


def load_classifier(directory: Path, device: torch.device | str = "cpu") -> tuple[nn.Module, ClassifierSpec]:
    """Read what `save_classifier` wrote; the model comes in evaluation mode.

    Raises:
        UserError: a file is missing, damaged, of another format, or does not fit the other one.
    """
    path = directory / "config.json"
    values = read_json(path)
    if not isinstance(values, dict) or values.get("format_version") != FORMAT_VERSION:
        raise UserError(f"{path}: expected a classifier with format_version {FORMAT_VERSION}")
    names = {field.name for field in fields(ClassifierSpec)}
    if set(values) != names | {"format_version"}:
        raise UserError(f"{path}: expected the fields {', '.join(sorted(names))} and format_version")
    spec = ClassifierSpec(
        str(values["name"]),
        int(values["num_classes"]),
        int(values["in_channels"]),
        int(values["image_size"]),
        tuple(values["class_names"]),
    )
    model = create_classifier(spec, seed=0)
    load_weights(model, load_tensors(directory / "model.safetensors"), directory / "model.safetensors")
    return model.to(device).eval(), spec


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Put `weights`, read from `source`, into `model`.

    Raises:
        UserError: names or shapes differ from the model's; the message names the first of them.
    """
    expected = model.state_dict()
    wrong = [f"{name} is missing" for name in expected if name not in weights]
    wrong += [f"{name} is not part of the model" for name in weights if name not in expected]
    wrong += [
        f"{name} has shape {tuple(weights[name].shape)}, the model {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if wrong:
        raise UserError(
            f"{source}: the weights do not fit the model: {'; '.join(wrong[:3])}"
            + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
            + "; check classifier.name, the number of classes, data.image_size and data.channels"
        )
    model.load_state_dict(dict(weights))


def load_user_classifier(path: Path, spec: ClassifierSpec, device: torch.device | str = "cpu") -> nn.Module:
    """Read a classifier that the user brings: a folder of `save_classifier`, or a safetensors state dict.

    The network must take images scaled to [-1, 1] and give one logit a class, in the order of
    `spec.class_names`.

    Args:
        path: the folder, or the safetensors file of a model named `spec.name`.
        spec: what the run needs.
        device: where the model goes, in evaluation mode.

    Raises:
        UserError: nothing is there, or it does not fit `spec`.
    """
    if path.is_dir():
        model, found = load_classifier(path, device)
        mine, theirs = asdict(spec), asdict(found)
        different = [
            name for name in theirs if name != "name" and theirs[name] and theirs[name] != mine[name]
        ]
        if different:
            raise UserError(
                f"{path}: the classifier has {', '.join(f'{n} {theirs[n]}' for n in different)}; expected "
                f"{', '.join(f'{n} {mine[n]}' for n in different)}"
            )
        return model
    if not path.exists():
        raise UserError(f"{path}: no such classifier; expected a safetensors file or a saved folder")
    model = create_classifier(spec, seed=0)
    load_weights(model, load_tensors(path), path)
    return model.to(device).eval()
