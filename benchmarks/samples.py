"""Faces drawn from the prior of the shipped weights, against held-out rendered faces, beside as many real ones.

    python benchmarks/samples.py [--n 500] [--steps 20] [--split test] [--out runs/samples]

Renders bench-1 with seed 0 and trains an oracle on the true labels of its training split. Half of the held-out faces
are what is compared with, the other half are the real ones beside; as many faces are drawn, of their classes. A
held-out face is in one half by chance, with seed 0. Faces are drawn with and without restarts, under several w. Two
kinds of features: what the oracle reads expressions by, and broad colours, to which it is blind. OUT/samples.png shows
the first 16 of each case, each class in turn, below as many real ones. Nothing is chosen on the split `test`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate
from torchvision.utils import save_image

import diffinf
from diffinf.classify.model import ClassifierSpec, predict
from diffinf.classify.train import train_classifier
from diffinf.config import make_config
from diffinf.data.dataset import FaceDataset, open_dataset
from diffinf.data.rendered.write import FILE_NAME, render_dataset
from diffinf.diffusion.autoencoder import DiffusionAutoencoder
from diffinf.evaluate.fidelity import (
    frechet_distance,
    precision_recall_density_coverage,
)
from fer_noise import made_by

WEIGHTS = Path(diffinf.__file__).parent / "weights" / "rendered"
ORACLE = "the penultimate layer of a small_cnn trained on the true labels of the training split"
COLOURS = "mean colours of 4 x 4 fields"
CASES = ((0.0, 0), (0.0, 4), (2.0, 4), (4.0, 4))  # guidance, restarts
CPU = torch.device("cpu")


def train_oracle(dataset: FaceDataset, directory: Path) -> nn.Module:
    """A classifier of the true labels, for measuring alone."""
    rows, truth = dataset.rows("train"), dataset.truth_labels()
    assert truth is not None, "rendered faces carry it"
    return train_classifier(
        dataset.images(rows, size=dataset.image_size, channels=dataset.channels),
        torch.from_numpy(truth[rows]),
        spec=ClassifierSpec(
            "small_cnn", len(dataset.class_names), dataset.channels, dataset.image_size, dataset.class_names
        ),
        config=make_config("faces", preset_name="cpu").classifier,
        seed=0,
        directory=directory,
        record=False,
    )


def measured(oracle: nn.Module, reference: Tensor, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Figures of images (N, C, H, W) that should show `labels` (N,), against reference images, by both features."""
    (real, _), (own, logits) = (predict(oracle, x, device=CPU) for x in (reference, images))
    broad, own_broad = (adaptive_avg_pool2d(x.float() / 255, 4).flatten(1) for x in (reference, images))
    right = (logits.argmax(1) == labels).double()
    by_class = [float(right[labels == k].mean()) for k in labels.unique().tolist()]
    return {
        "n": len(images),
        ORACLE: fidelity(real, own),
        COLOURS: fidelity(broad, own_broad),
        "read_as_asked": float(right.mean()),
        "by_class": by_class,
    }


def fidelity(real: Tensor, own: Tensor) -> dict[str, float]:
    """The measures of docs/measures.md on features (N, D)."""
    pair = real.numpy(), own.numpy()
    found = precision_recall_density_coverage(*pair)
    shares = {name: getattr(found, name) for name in ("precision", "recall", "density", "coverage")}
    return {"frechet": frechet_distance(*pair).distance, **shares}


def sheet(images: Tensor, labels: Tensor) -> Tensor:
    """The first 16 images, each class in turn, as floats."""
    rank = torch.zeros(len(labels), dtype=torch.long)
    for k in labels.unique():
        mine = (labels == k).nonzero().squeeze(1)
        rank[mine] = torch.arange(len(mine))
    first = (rank * len(labels.unique()) + labels).argsort()[:16]
    return images[first].float() / 255


def main(arguments: list[str] | None = None) -> None:
    """Draw, measure, print a table, write JSON and a sheet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=500, help="faces of each kind")
    parser.add_argument("--steps", type=int, default=20, help="of the decode")
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--out", type=Path, default=Path("runs/samples"))
    arguments = sys.argv[1:] if arguments is None else arguments
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    faces = given.out / FILE_NAME
    if not faces.exists():
        render_dataset(faces, preset="bench-1", seed=0)
    config = make_config(str(faces), values={"data": {"id": "id", "split": "split", "identity": "identity"}})
    dataset = open_dataset(config.dataset, config.data, seed=0)
    oracle, truth = train_oracle(dataset, given.out / "oracle"), dataset.truth_labels()
    assert truth is not None
    rows = np.random.default_rng(0).permutation(dataset.rows(given.split))
    half = len(rows) // 2
    images = dataset.images(rows, size=dataset.image_size, channels=dataset.channels)
    reference, real = images[:half], images[half : half + given.n]
    labels = torch.from_numpy(truth[rows])[half : half + given.n]
    model = DiffusionAutoencoder.from_pretrained(WEIGHTS)
    results, sheets = {"real": measured(oracle, reference, real, labels)}, [sheet(real, labels)]
    for guidance, restarts in CASES:
        start = time.process_time()
        drawn = model.sample(len(labels), labels, steps=given.steps, guidance=guidance, restarts=restarts)
        seconds = (time.process_time() - start) / len(labels)
        case = f"w = {guidance:g}, {restarts} restarts"
        results[case] = measured(oracle, reference, drawn, labels) | {"cpu_seconds": seconds}
        sheets.append(sheet(drawn, labels))
    for features in (ORACLE, COLOURS):
        table = Table(
            "faces", *results["real"][features], "read as asked", *dataset.class_names, title=features
        )
        for name, found in results.items():
            figures = [*found[features].values(), found["read_as_asked"], *found["by_class"]]
            table.add_row(name, *(f"{figure:.3g}" for figure in figures))
        Console(width=160).print(table)
    big = [interpolate(x, scale_factor=2.0, mode="nearest") for x in sheets]
    save_image(torch.cat(big), given.out / "samples.png", nrow=16, padding=4)
    report = {
        **made_by("samples.py", arguments, "cpu"),
        "version": diffinf.__version__,
        "seed": 0,
        "n_reference": half,
        "class_names": list(dataset.class_names),
        "results": results,
    }
    (given.out / "samples.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
