"""Which pictures the shipped weights for rendered faces say are of other data: single ones, and datasets of them.

    python benchmarks/other_data.py [--data fer2013_ferplus.parquet] [--n 500] [--held-out 2000] [--out FILE]

Held-out faces are rendered with seed 1: other people, none of which training or the choice of the thresholds saw.
With `--data` (benchmarks/README.md says how to build it) photographs of its training rows are asked too, as they are
(grey) and in the colours of skin. What was chosen was chosen on the validation faces of seed 0, and on photographs of
PublicTest. A dataset of each kind is asked by its latents, as a run does, and by its codes, as of an imported DiffAE.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import diffinf
from diffinf.data.images import decode_square
from diffinf.data.rendered.presets import preset_plan
from diffinf.data.rendered.render import render_faces
from diffinf.data.rendered.write import sample_dataset
from diffinf.diffusion.autoencoder import DiffusionAutoencoder
from diffinf.diffusion.familiarity import moments, unlike_pictures, unlike_set
from fer_noise import made_by

WEIGHTS = Path(diffinf.__file__).parent / "weights" / "rendered"
SIZE = 64
REASONS = {"spread": "standard deviations of the latents", "error": "the denoiser is off"}


def photographs(path: Path, n: int) -> Tensor:
    """`n` photographs of the training rows, uint8 (n, 3, 64, 64), drawn with seed 0."""
    table = pq.read_table(path, columns=["image", "usage"])
    rows = np.flatnonzero(np.array(table["usage"].to_pylist()) == "Training")
    chosen = np.random.default_rng(0).choice(rows, min(n, len(rows)), replace=False)
    files = [table["image"][int(row)].as_py()["bytes"] for row in chosen]
    images = [decode_square(file, size=SIZE, channels=3, max_pixels=10**7) for file in files]
    return torch.from_numpy(np.stack(images))


def tinted(grey: Tensor) -> Tensor:
    """Grey photographs (N, 3, H, W) with red raised and blue lowered, as in skin."""
    exponents = torch.tensor([0.75, 1.05, 1.3])[:, None, None]
    return ((grey / 255) ** exponents * 255).round().to(torch.uint8)


def kinds(held_out: Tensor, n: int, data: Path | None) -> dict[str, Tensor]:
    """Pictures by kind, uint8 (N, 3, 64, 64); all but the first are of other data."""
    generator = torch.Generator().manual_seed(0)
    some = held_out[:n]

    def uniform(side: int) -> Tensor:
        return torch.randint(0, 256, (n, 3, side, side), generator=generator).float()

    found = {
        "held-out rendered faces": held_out,
        "noise": uniform(SIZE).to(torch.uint8),
        "smooth noise": torch.nn.functional.interpolate(uniform(8), size=SIZE, mode="bilinear").to(
            torch.uint8
        ),
        "one colour": uniform(1).to(torch.uint8).expand(-1, -1, SIZE, SIZE),
        "inverted colours": 255 - some,
        "red and blue swapped": some.flip(1),
        "upside down": some.flip(2),
        "a quarter of the contrast": some // 4 + 80,
        "without colour": some.float().mean(1, keepdim=True).round().to(torch.uint8).expand(-1, 3, -1, -1),
    }
    if data is not None:
        found["photographs"] = photographs(data, n)
        found["photographs, tinted"] = tinted(found["photographs"])
    return found


@torch.no_grad()
def codes_differ(model: DiffusionAutoencoder, images: Tensor) -> str | None:
    """What is said of a dataset where nothing but the statistics of the codes is known."""
    codes = torch.cat([model.code(model.to_latents(part)) for part in torch.split(images, 64)])
    return unlike_set("codes", moments(codes), (torch.zeros(codes.shape[1]), torch.ones(codes.shape[1])))


def main(arguments: list[str] | None = None) -> None:
    """Ask, print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="photographs of FER2013 with the votes of FER+")
    parser.add_argument("--n", type=int, default=500, help="pictures of each other kind")
    parser.add_argument("--held-out", type=int, default=2000, help="held-out faces")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = sys.argv[1:] if arguments is None else arguments
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    faces = sample_dataset(preset_plan("bench-1"), 1)
    rows = np.linspace(0, len(faces.labels) - 1, min(given.held_out, len(faces.labels))).astype(int)
    held_out = torch.from_numpy(render_faces(faces.factors.take(rows), SIZE))
    held_out = held_out[torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))]
    model = DiffusionAutoencoder.from_pretrained(WEIGHTS)
    table = Table("pictures", "n", *REASONS, "either", "a dataset, by latents", "by codes")
    results = []
    for kind, images in kinds(held_out, given.n, given.data).items():
        said = unlike_pictures(model, images)
        row: dict[str, Any] = {"pictures": kind, "n": len(said)}
        row |= {name: float(np.mean([part in (x or "") for x in said])) for name, part in REASONS.items()}
        row["either"] = float(np.mean([x is not None for x in said]))
        row["latents"], row["codes"] = model.differs_from(images), codes_differ(model, images)
        results.append(row)
        shares = [f"{row[name]:.3f}" for name in (*REASONS, "either")]
        sets = ["told" if row[name] else "-" for name in ("latents", "codes")]
        table.add_row(kind, f"{row['n']:,}", *shares, *sets)
    Console().print(table)
    if given.out:
        report = {
            **made_by("other_data.py", arguments, "cpu"),
            "version": diffinf.__version__,
            "seed": 0,
            "told": results,
        }
        given.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
