"""What a GPU makes of it: whether its figures are the CPU's, and the time and memory of the presets' autoencoders.

    python benchmarks/gpu.py [--device cuda] [--steps 40] [--n 64] [--out gpu.json]

A few minutes. *Agreement*: rendered faces of bench-1, seed 1, with the shipped weights: a round trip of 50 + 50 steps,
an edit at strength 1, exact self-influence under an untrained network; each computed in float32 on both, and on the
device with TensorFloat-32 too, which PyTorch allows convolutions by default. *Training*: seconds a step and peak
memory of the presets gpu-48 and gpu-128 in every precision the device has, with gradient checkpointing and without;
a step is the difference of two trainings, so that what they begin and end with does not count.

What the repair costs on it, `repair.py --rendered --parts steps` says.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import one_hot

from diffinf.classify.model import SMALL_CNN, ClassifierSpec, create_classifier, to_input
from diffinf.config import AutoencoderConfig, RepairConfig, preset
from diffinf.data.rendered.presets import preset_plan
from diffinf.data.rendered.render import render_faces
from diffinf.data.rendered.write import sample_dataset
from diffinf.demo import RENDERED_REPAIR
from diffinf.diffusion.autoencoder import DiffusionAutoencoder
from diffinf.diffusion.train import train_autoencoder
from diffinf.errors import UserError
from diffinf.influence.ghost import squared_gradient_norms
from diffinf.repair.edit import decode_edit, keep_unchanged, take_apart
from diffinf.repair.editors import Wish
from diffinf.stages.workspace import resolve_device
from diffinf.training.acceleration import resolve_precision
from fer_noise import made_by
from rendered_weights import TARGET as WEIGHTS

SIDES = {"gpu-48": 48, "gpu-128": 128}
PRECISIONS = ("float32", "bfloat16", "float16")
FACES = 1  # seed of the rendered ones
WARM = 5  # steps of the training that is taken off
ROUND_TRIP = 50  # steps of inversion, and of decode
IMAGES = 512  # trained on


@contextmanager
def tensor_float(allowed: bool) -> Iterator[None]:
    """Allow matrix products and convolutions of a GPU to round their factors to TensorFloat-32, or forbid it."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = allowed
    try:
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


def computed(images: Tensor, labels: Tensor, device: torch.device) -> dict[str, Tensor]:
    """Compute on `device` what is compared: "round trip" and "edit" (N, C, H, W), "self-influence" (N,); on the CPU."""
    model = DiffusionAutoencoder.from_pretrained(WEIGHTS, device=device)
    config = RepairConfig(**RENDERED_REPAIR)
    classes = len(model.class_names)
    # Away from a class that is not the label's; that it need not be what the face shows does not matter here.
    shown = one_hot((labels + 1) % classes, classes).float().to(device)
    there, asked = images.to(device), labels.to(device)
    parts = take_apart(model, there, shown, config)
    edited = decode_edit(model, parts, Wish(parts.code, asked, shown), 1.0, config)
    judge = create_classifier(ClassifierSpec(SMALL_CNN, classes, images.shape[1], images.shape[2]), seed=0)
    judge = judge.eval().to(device)
    return {
        "round trip": model.reconstruct(images, steps=ROUND_TRIP)[0].cpu(),
        "edit": keep_unchanged(there, parts.roundtrip, edited, config).cpu(),
        "self-influence": squared_gradient_norms(judge, to_input(images, device), asked).cpu(),
    }


def agreement(device: torch.device, n: int) -> dict[str, dict[str, float]]:
    """Return how far the device is from the CPU, by arithmetic: of images in steps of 1/255, of norms in relation."""
    plan = preset_plan("bench-1")
    faces = sample_dataset(plan, FACES)
    images = torch.from_numpy(render_faces(faces.factors.take(range(n)), plan.size))
    labels = torch.from_numpy(faces.labels[:n])
    expected, found = computed(images, labels, torch.device("cpu")), {}
    for name, allowed in (("float32", False), ("TensorFloat-32", True)):
        with tensor_float(allowed):
            values = computed(images, labels, device)
        row = {}
        for what in ("round trip", "edit"):
            off = (values[what].int() - expected[what].int()).abs().float()
            row[f"{what}: mean"], row[f"{what}: largest"] = float(off.mean()), float(off.max())
        ratio = values["self-influence"] / expected["self-influence"]
        found[name] = row | {"self-influence: largest": float((ratio - 1).abs().max())}
    return found


def training(device: torch.device, steps: int, presets: list[str]) -> list[dict[str, Any]]:
    """Return seconds a step and peak memory of each preset's autoencoder; "refused" where the device cannot."""
    rows = []
    for name in presets:
        settings = {**preset(name)["autoencoder"], "guide_steps": 1, "prior_steps": 0, "sheets": 0}  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (IMAGES, 1, SIDES[name], SIDES[name]), generator=generator).byte()
        for precision in PRECISIONS:
            for checkpointing in (False, True):
                row = {"preset": name, "precision": precision, "gradient checkpointing": checkpointing}
                config = AutoencoderConfig(
                    **settings, precision=precision, gradient_checkpointing=checkpointing
                )
                try:
                    resolve_precision(config.precision, device)
                except UserError as error:
                    rows.append({**row, "refused": str(error)})
                    continue
                try:
                    rows.append({**row, **_timed(images, config, steps, device)})
                except torch.OutOfMemoryError:
                    rows.append({**row, "refused": "out of memory"})
    return rows


def _timed(images: Tensor, config: AutoencoderConfig, steps: int, device: torch.device) -> dict[str, float]:
    seconds = []
    for count in (WARM, WARM, WARM + steps):  # what happens once in a process falls on the first
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            train_autoencoder(
                images,
                torch.full((len(images), 7), 1 / 7),
                None,
                config.model_copy(update={"steps": count}),
                class_names=tuple("abcdefg"),
                seed=0,
                device=device,
                directory=Path(folder),
            )
            seconds.append(time.perf_counter() - start)
    found = {"batch": config.batch_size, "seconds a step": (seconds[2] - seconds[1]) / steps}
    if device.type == "cuda":
        found["peak GB"] = torch.cuda.max_memory_allocated(device) / 1e9
    return found


def show(report: dict[str, Any], console: Console) -> None:
    """Print both parts."""
    rows = report["agreement"]
    table = Table("off by", *rows, title=f"the CPU's figures against those of {report['device']}")
    for what in next(iter(rows.values())):
        table.add_row(what, *(f"{row[what]:.2g}" for row in rows.values()))
    console.print(table)
    table = Table("preset", "precision", "checkpointing", "batch", "s a step", "peak GB", title="training")
    for row in report["training"]:
        cells = [
            "" if (value := row.get(key)) is None else f"{value:.3g}"
            for key in ("batch", "seconds a step", "peak GB")
        ]
        if "refused" in row:
            cells[0] = "not on this device" if row["refused"] != "out of memory" else "out of memory"
        table.add_row(
            row["preset"], row["precision"], "yes" if row["gradient checkpointing"] else "no", *cells
        )
    console.print(table)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a positive number")
    return int(text)


def _presets(text: str) -> list[str]:
    if unknown := set(text.split(",")) - set(SIDES):
        raise argparse.ArgumentTypeError(f"{unknown.pop()}: no such preset; expected {', '.join(SIDES)}")
    return text.split(",")


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write JSON; a device that is not there is one line and exit code 2."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=_positive, default=40, help="timed training steps")
    parser.add_argument("--n", type=_positive, default=64, help="faces compared")
    parser.add_argument("--presets", type=_presets, default=list(SIDES), help="whose training is timed")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = sys.argv[1:] if arguments is None else arguments
    given = parser.parse_args(arguments)
    try:
        device = resolve_device(given.device)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    parts: dict[str, Callable[[], Any]] = {
        "agreement": lambda: agreement(device, given.n),
        "training": lambda: training(device, given.steps, given.presets),
    }
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    report = {
        **made_by("gpu.py", arguments, device.type),
        "device": name,
        "torch": torch.__version__,
        "seeds": {"faces": FACES, "training": 0},
        "n": given.n,
        **{part: function() for part, function in parts.items()},
    }
    show(report, Console())
    if given.out:
        given.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
