"""Train the diffusion autoencoder for rendered faces that the package carries.

    python benchmarks/rendered_weights.py [--out runs/rendered-weights]

Renders bench-1 with seed 0, scores its training split, trains the autoencoder on it with the settings of the preset
"cpu", but 3,000 steps, and copies weights and specification to src/diffinf/weights/rendered. About 40 minutes on two
cores; a run that was interrupted goes on where it was. No truth is read.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from diffinf.data.rendered.write import FILE_NAME, render_dataset
from diffinf.pipeline import repair_dataset

TARGET = Path(__file__).parents[1] / "src" / "diffinf" / "weights" / "rendered"
FILES = ("autoencoder.json", "autoencoder.safetensors")


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
    TARGET.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(run.autoencoder / name, TARGET / name)
    size = sum((TARGET / name).stat().st_size for name in FILES)
    print(f"{TARGET}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
