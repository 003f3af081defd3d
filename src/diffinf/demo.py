"""The demonstration: rendered faces with confounded label noise, and its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffinf.config import RunConfig, make_config, merge
from diffinf.data.rendered.write import FILE_NAME, render_dataset

# Drawn faces bear large steps, and gentle edits show their label there; few steps keep them like real ones. What only
# a strong edit makes the judge sure of is torn: rather a gentle one of which it is less sure.
RENDERED_REPAIR: dict[str, Any] = {
    "diffusion_steps": 2,
    "finish_steps": 2,
    "strengths": [0.5, 0.8, 1.1],
    "judge_margin": 0.1,
}
SETTINGS: dict[str, Any] = {
    "data": {"id": "id", "split": "split", "identity": "identity"},
    "autoencoder": {"weights": "rendered"},
    # Half the steps of the preset "cpu", three seeds and a fifth of the faces: all of it in ten minutes on two cores.
    "classifier": {"steps": 500, "folds": 3, "checkpoints": 3},
    "influence": {"share": 0.2},
    "repair": RENDERED_REPAIR,
    "compare": {"seeds": 3},
}


def demo_settings(
    out: Path, seed: int, values: dict[str, Any], overrides: list[str], from_scratch: bool
) -> RunConfig:
    """Render the faces beside the directory `out`, unless they are there, and return the run's settings.

    Args:
        out: the run's directory; the faces go to OUT-faces.
        seed: of faces and run.
        values: nested settings that were given.
        overrides: "stage.field=value".
        from_scratch: train the diffusion autoencoder instead of taking the shipped weights.
    """
    folder = out.with_name(f"{out.name}-faces") / f"seed-{seed}"
    faces = folder / FILE_NAME
    if not faces.exists():
        render_dataset(faces, preset="bench-1", seed=seed)
    overrides = [*(["autoencoder.weights=null"] if from_scratch else []), *overrides]
    nested = merge(merge(SETTINGS, {"seed": seed}), values)
    return make_config(str(faces.resolve()), values=nested, overrides=overrides)
