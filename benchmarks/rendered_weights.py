"""Train the diffusion autoencoder for rendered faces that the package carries.

    python benchmarks/rendered_weights.py [--out runs/rendered-weights] [--prior-only]

Renders bench-1 with seed 0, scores its training split, trains the autoencoder on it with the settings of the preset
"cpu", but 3,000 steps, and writes the autoencoder to src/diffinf/weights/rendered. About 40 minutes on two
cores; a run that was interrupted goes on where it was. No truth is read.

At its end what belongs to the weights as they are written is added: the latent prior that new faces are drawn from, and
what the denoiser is usually off by. With --prior-only the weights that are there are kept, byte for byte, and that end
alone is done, after rendering and scoring (the prior hears the classes' estimated shares): about 25 minutes.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from diffinf.data.dataset import open_dataset
from diffinf.data.rendered.write import FILE_NAME, render_dataset
from diffinf.diffusion.autoencoder import DiffusionAutoencoder
from diffinf.diffusion.familiarity import usual_error
from diffinf.diffusion.prior import train_prior
from diffinf.pipeline import repair_dataset
from diffinf.stages.workspace import Workspace
from diffinf.training.monitor import held_out

TARGET = Path(__file__).parents[1] / "src" / "diffinf" / "weights" / "rendered"
PRIOR_STEPS = 1000


def add_prior(folder: Path, workspace: Workspace, steps: int = PRIOR_STEPS) -> None:
    """Train a prior of the training images' codes, and measure the usual error; both join the weights in `folder`."""
    images = workspace.images
    model = DiffusionAutoencoder.from_pretrained(folder, device=workspace.device)
    with torch.no_grad():
        codes = torch.cat([model.code(model.to_latents(part)).cpu() for part in torch.split(images, 256)])
    scratch = workspace.run.scratch("prior")
    model.prior, _ = train_prior(
        codes,
        workspace.class_shares(),
        model.alphas_cumprod,
        steps=steps,
        seed=workspace.seed,
        device=workspace.device,
        directory=scratch,
    )
    held = held_out(len(images), workspace.config.autoencoder.validation_share, workspace.seed)
    model.usual_error = usual_error(model, images[held] if len(held) else images)
    model.save_pretrained(folder, dtype=torch.float16)
    shutil.rmtree(scratch)


def main() -> None:
    """Train and copy."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/rendered-weights"), help="the run's directory")
    parser.add_argument(
        "--prior-only", action="store_true", help="keep the weights that are there, and add to them"
    )
    arguments = parser.parse_args()
    out: Path = arguments.out
    faces = out.with_name(f"{out.name}-faces") / FILE_NAME
    if not faces.exists():
        render_dataset(faces, preset="bench-1", seed=0)
    run = repair_dataset(
        faces,
        out=out,
        until="score" if arguments.prior_only else "train-autoencoder",
        preset="cpu",
        seed=0,
        data={"id": "id", "split": "split", "identity": "identity"},
        autoencoder={"steps": 3000, "prior_steps": 0},  # the prior is trained on the weights as written
    )
    if not arguments.prior_only:
        shutil.rmtree(TARGET, ignore_errors=True)
        DiffusionAutoencoder.from_pretrained(run.autoencoder).save_pretrained(TARGET, dtype=torch.float16)
    dataset = open_dataset(run.config.dataset, run.config.data, seed=run.config.seed)
    add_prior(TARGET, Workspace(run, dataset))
    size = sum(path.stat().st_size for path in TARGET.rglob("*") if path.is_file())
    print(f"{TARGET}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
