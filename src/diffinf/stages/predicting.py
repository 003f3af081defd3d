"""The retrained classifier of a run, applied to image files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from diffinf.classify.model import load_classifier, predict
from diffinf.config import DataConfig
from diffinf.data.images import UnreadableImageError, decode_image, max_file_bytes, square
from diffinf.errors import UserError
from diffinf.run import Run
from diffinf.stages.workspace import resolve_device


def read_picture(path: Path, settings: DataConfig) -> Image.Image:
    """Decode a picture file, grey or RGB and upright; UserError when it is none, or larger than the settings allow."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; expected picture files, such as {path / '*.png'}")
    try:
        if not path.is_file():  # a pipe or a device would block or never end
            raise UserError(f"{path}: not a readable image (no such file); expected a picture file")
        if path.stat().st_size > max_file_bytes(settings.max_pixels):
            raise UnreadableImageError(f"larger than {max_file_bytes(settings.max_pixels)} bytes")
        return decode_image(path.read_bytes(), max_pixels=settings.max_pixels, icc=settings.icc)
    except (OSError, UnreadableImageError) as error:
        raise UserError(f"{path}: not a readable image ({error})") from error


def predict_files(run: Run, paths: list[Path], device: str = "auto") -> list[dict[str, Any]]:
    """Classify image files with the retrained classifier of a run.

    Returns:
        One dict a file: image, label, probabilities {class name: 0..1}.

    Raises:
        UserError: there is no retrained classifier yet, or a file is no readable image; then none is classified.
    """
    if not (run.classifier / "final" / "config.json").exists():
        raise UserError(
            f"{run.path}: no retrained classifier yet: it is that of the arm diffinf; run "
            f"`diffinf compare {run.path} --arms baseline,diffinf`"
        )
    model, spec = load_classifier(run.classifier / "final", resolve_device(device))
    try:
        pictures = [read_picture(path, run.config.data) for path in paths]
    except UserError as error:
        raise UserError(f"{error}; nothing was classified, leave it out") from error
    pixels = [
        torch.from_numpy(square(picture, size=spec.image_size, channels=spec.in_channels).copy())
        for picture in pictures
    ]
    logits = predict(model, torch.stack(pixels), device=resolve_device(device))[1]
    found = []
    for path, shares in zip(paths, logits.softmax(1).tolist(), strict=True):
        probabilities = dict(zip(spec.class_names, shares, strict=True))
        label = max(probabilities, key=lambda name: probabilities[name])
        found.append({"image": str(path), "label": label, "probabilities": probabilities})
    return found
