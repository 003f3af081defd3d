"""The retrained classifier of a run, applied to image files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from diffinf.classify.model import load_classifier, predict
from diffinf.data.images import UnreadableImageError, decode_image, square
from diffinf.errors import UserError
from diffinf.run import Run
from diffinf.stages.workspace import resolve_device


def predict_files(run: Run, paths: list[Path], device: str = "auto") -> list[dict[str, Any]]:
    """Classify image files with the retrained classifier of a run.

    Returns:
        One dict a file: image, label, probabilities {class name: 0..1}.

    Raises:
        UserError: there is no retrained classifier yet, or a file is no readable image.
    """
    if not (run.classifier / "final" / "config.json").exists():
        raise UserError(f"{run.path}: no retrained classifier yet; run `diffinf compare {run.path}` first")
    model, spec = load_classifier(run.classifier / "final", resolve_device(device))
    pixels = []
    for path in paths:
        try:
            settings = run.config.data
            image = decode_image(path.read_bytes(), max_pixels=settings.max_pixels, icc=settings.icc)
        except (OSError, UnreadableImageError) as error:
            raise UserError(f"{path}: not a readable image ({error})") from error
        pixels.append(torch.from_numpy(square(image, size=spec.image_size, channels=spec.in_channels).copy()))
    logits = predict(model, torch.stack(pixels), device=resolve_device(device))[1]
    found = []
    for path, shares in zip(paths, logits.softmax(1).tolist(), strict=True):
        probabilities = dict(zip(spec.class_names, shares, strict=True))
        label = max(probabilities, key=lambda name: probabilities[name])
        found.append({"image": str(path), "label": label, "probabilities": probabilities})
    return found
