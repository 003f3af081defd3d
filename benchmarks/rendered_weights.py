"""Train the diffusion autoencoder for rendered faces that the package carries.

    python benchmarks/rendered_weights.py [--out runs/rendered-weights]

Renders bench-1 with seed 0, scores its training split, trains the autoencoder on it with the settings of the preset
"cpu", but 3,000 steps, and writes the autoencoder to src/diffinf/weights/rendered. About 40 minutes on two
cores; a run that was interrupted goes on where it was. No truth is read.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from diffinf.data.rendered.write import FILE_NAME, render_dataset
from diffinf.diffusion.autoencoder import DiffusionAutoencoder
from diffinf.pipeline import repair_dataset

TARGET = Path(__file__).parents[1] / "src" / "diffinf" / "weights" / "rendered"


def main() -> None:
    """Train and copy."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/rendered-weights"), help="the run's directory")
    out: Path = parser.parse_args().out
    faces = out.with_name(f"{out.name}-faces") / FILE_NAME
    if not faces.exists():
        render_dataset(faces, preset="bench-1", seed=0)
    longer = {"steps": 3000}
    columns = {"id": "id", "split": "split", "identity": "identity"}
    run = repair_dataset(
        faces, out=out, until="train-autoencoder", preset="cpu", seed=0, data=columns, autoencoder=longer
    )
    shutil.rmtree(TARGET, ignore_errors=True)
    DiffusionAutoencoder.from_pretrained(run.autoencoder).save_pretrained(TARGET, dtype=torch.float16)
    size = sum(path.stat().st_size for path in TARGET.rglob("*") if path.is_file())
    print(f"{TARGET}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
