"""What an imported DiffAE costs: encoding and decoding at 128 px, with drawn weights of the FFHQ128 network.

    python benchmarks/diffae.py [--out diffae.json] [--steps 20] [--batch 1] [--threads 2] [--device cpu]

Drawn weights cost what trained ones cost. One evaluation of the network is timed on its own, so that other numbers
of steps can be told from it: encoding is the semantic code and `steps` evaluations, decoding `steps` more. Peak
memory is the process's on a CPU (weights, activations, libraries), the allocator's on a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from diffinf.diffusion.diffae.autoencoder import DiffAE
from diffinf.diffusion.diffae.config import PRESETS


def timed(function: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, float, float]:
    """Return a function's result, its seconds by the clock, and its seconds of CPU over all threads."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start, cpu = time.perf_counter(), time.process_time()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - start, time.process_time() - cpu


@torch.no_grad()
def measure(name: str, steps: int, batch: int, device: torch.device) -> dict[str, Any]:
    """Return seconds an image of each part, and the peak of memory in GB."""
    torch.manual_seed(0)
    model = DiffAE(PRESETS[name]).eval().requires_grad_(False).to(device)
    side = model.config.image_size
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
    latents = model.to_latents(images)
    code, *encoder = timed(lambda: model.code(latents), device)
    context = model.context(code, torch.zeros(batch, 2))

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        return model.predict(noisy, t, context)

    t = torch.full((batch,), 500, device=device)
    _, *evaluation = timed(lambda: predict(latents, t), device)
    noisy, *inversion = timed(lambda: model.invert_latents(latents, predict, steps=steps), device)
    _, *decode = timed(lambda: model.decode_latents(noisy, predict, steps=steps), device)
    parts = {"code": encoder, "one evaluation": evaluation, "inversion": inversion, "decoding": decode}
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 1e9
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {
        "network": name,
        "steps": steps,
        "batch": batch,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "seconds_per_image": {part: seconds / batch for part, (seconds, _) in parts.items()},
        "cpu_seconds_per_image": {part: cpu / batch for part, (_, cpu) in parts.items()},
        "peak_gb": peak,
        "date": date.today().isoformat(),
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--network", default="ffhq128", choices=sorted(PRESETS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    found = measure(arguments.network, arguments.steps, arguments.batch, torch.device(arguments.device))
    table = Table(
        "part",
        "seconds an image",
        "CPU seconds an image",
        title=f"{found['network']}, {found['steps']} steps",
    )
    for part, seconds in found["seconds_per_image"].items():
        table.add_row(part, f"{seconds:.2f}", f"{found['cpu_seconds_per_image'][part]:.2f}")
    Console(file=sys.stderr).print(table, f"peak memory {found['peak_gb']:.2f} GB")
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
