"""Memory and time of self-influence from 10,000 to 1,000,000 samples that are drawn when they are asked for.

    python benchmarks/influence_scale.py [--out scale.json] [--samples 10000 100000 1000000] [--threads 1]

32 px colour images of noise, a network of one small convolution, batch norm and a linear layer, two checkpoints,
finished parts on disk as in a run. Each n has a process of its own; memory is its highest resident size, in all and
above what it held before the first sample.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from diffinf import progress
from diffinf.influence.self_influence import self_influence

CLASSES = 10


class Drawn:
    """`samples` pairs of an image (3, 32, 32) uint8 and a label; a function of the seed and the range."""

    def __init__(self, samples: int, seed: int) -> None:
        """Nothing is drawn yet."""
        self.samples, self.seed = samples, seed

    def __len__(self) -> int:
        """Samples."""
        return self.samples

    def __getitem__(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Draw images (n, 3, 32, 32) and labels (n,)."""
        generator = torch.Generator().manual_seed(self.seed * 2**40 + rows.start)
        count = rows.stop - rows.start
        images = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        return images, torch.randint(CLASSES, (count,), generator=generator)


def network(seed: int) -> nn.Module:
    """About 1,900 parameters."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 16, CLASSES),
    ).eval()


def to_input(images: Tensor, device: torch.device) -> Tensor:
    """Uint8 to [-1, 1]."""
    return images.to(device).float().div_(127.5).sub_(1)


def resident(field: str) -> float:
    """VmRSS or VmHWM of this process in MB."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def one(samples: int, seed: int, batch_size: int | None) -> dict[str, float]:
    """Score so many samples in this process."""
    progress.set_quiet(True)
    checkpoints = [(network(0), 0.1), (network(1), 0.1)]
    self_influence(checkpoints, Drawn(512, seed + 1), None, to_input=to_input, batch_size=batch_size)
    before, wall, cpu = resident("VmRSS"), time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        found = self_influence(
            checkpoints,
            Drawn(samples, seed),
            None,
            to_input=to_input,
            batch_size=batch_size,
            scratch=Path(scratch),
        )
    assert len(found) == samples and (found > 0).all()
    return {
        "samples": samples,
        "cpu_seconds": time.process_time() - cpu,
        "wall_seconds": time.perf_counter() - wall,
        "peak_mb": resident("VmHWM"),
        "added_mb": resident("VmHWM") - before,
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument(
        "--batch", type=int, default=None, help="samples a batch; found by itself if not given"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--seed", type=int, default=0, help="of weights and images")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    parser.add_argument("--one", type=int, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one:
        print(json.dumps(one(options.one, options.seed, options.batch)))
        return
    table = Table(
        "samples", "CPU s", "µs a sample", "peak MB", "above the start, MB", title="two checkpoints"
    )
    rows = []
    for samples in options.samples:
        command = [sys.executable, __file__, "--one", str(samples), "--seed", str(options.seed)]
        command += ["--threads", str(options.threads)]
        command += ["--batch", str(options.batch)] if options.batch else []
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        table.add_row(
            f"{samples:,}",
            f"{row['cpu_seconds']:.1f}",
            f"{row['cpu_seconds'] / samples * 1e6:.0f}",
            f"{row['peak_mb']:.0f}",
            f"{row['added_mb']:.0f}",
        )
    Console().print(table)
    if options.out:
        report = {
            "command": " ".join(["python", *sys.argv]),
            "date": date.today().isoformat(),
            "hardware": platform.processor(),
            "threads": options.threads,
            "torch": torch.__version__,
            "seed": options.seed,
            "rows": rows,
        }
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
