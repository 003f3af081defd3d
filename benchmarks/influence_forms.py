"""Whether the engine chooses the fastest form: every form of a layer's norm, timed, over layers of usual sizes.

    python benchmarks/influence_forms.py [--batch 32] [--threads 1] [--out forms.json]

The regret of a layer is the time of the form that is chosen over that of the best one. Times are the least of a
few repeats, in CPU seconds. Forms that are estimated at more than 40 times the best are not tried. Where the
regret is large on other hardware, the constants of `diffinf.influence.forms` want measuring anew.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from diffinf.influence import forms
from diffinf.influence.pieces import ConvolutionCall

# Inputs, outputs, kernel, stride, side, groups.
LAYERS = [
    *[(3, 16, 3, 2, 64, 1), (16, 32, 3, 2, 32, 1), (32, 32, 3, 1, 16, 1), (32, 64, 3, 2, 16, 1)],
    *[(64, 64, 3, 1, 8, 1), (64, 96, 3, 2, 8, 1), (96, 96, 3, 1, 4, 1), (3, 64, 7, 2, 64, 1)],
    *[(64, 64, 3, 1, 16, 1), (64, 128, 3, 2, 16, 1), (128, 128, 3, 1, 8, 1), (128, 256, 3, 2, 8, 1)],
    *[(256, 256, 3, 1, 4, 1), (256, 512, 3, 2, 4, 1), (512, 512, 3, 1, 2, 1), (64, 128, 1, 2, 16, 1)],
    *[(16, 96, 1, 1, 32, 1), (96, 24, 1, 1, 16, 1), (128, 512, 1, 1, 8, 1), (16, 16, 1, 1, 32, 1)],
    *[(24, 144, 1, 1, 8, 1), (96, 96, 3, 1, 16, 96), (96, 96, 3, 2, 32, 96), (144, 144, 5, 1, 8, 144)],
    *[(40, 40, 7, 1, 16, 40), (240, 240, 3, 1, 4, 240), (24, 24, 3, 1, 32, 3), (56, 56, 3, 2, 16, 7)],
    *[(152, 152, 3, 1, 8, 19), (64, 64, 3, 1, 16, 4), (3, 32, 4, 4, 64, 1), (3, 32, 3, 1, 32, 1)],
    *[(1, 16, 3, 1, 48, 1), (16, 16, 3, 1, 32, 1), (8, 8, 3, 1, 32, 1), (32, 16, 3, 1, 16, 1)],
    *[(16, 64, 3, 2, 32, 1), (8, 32, 3, 2, 32, 1)],
]


def layer(shape: tuple[int, ...], batch: int, layout: torch.memory_format) -> ConvolutionCall:
    """A convolution's two ends, filled with noise."""
    inputs, outputs, kernel, stride, side, groups = shape
    padding = 0 if kernel == stride else kernel // 2
    out = (side + 2 * padding - kernel) // stride + 1
    x = torch.randn(batch, inputs, side, side).to(memory_format=layout)
    delta = torch.randn(batch, outputs, out, out).to(memory_format=layout)
    square, steps = (kernel, kernel), (stride, stride)
    return ConvolutionCall(x, delta, square, steps, (padding, padding), (1, 1), groups)


def least(call: ConvolutionCall, form: str, space: int, budget: float = 0.25) -> float:
    """CPU seconds of a form: the least of 3 to 12 repeats."""
    times: list[float] = []
    while len(times) < 4 or (sum(times) < budget and len(times) < 13):
        start = time.process_time()
        forms.in_chunks(call.batch, space, call.x.device, lambda rows: forms.NORMS[form]([call], rows))
        times.append(time.process_time() - start)
    return min(times[1:])


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=32, help="samples")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    rows: list[dict[str, Any]] = []
    table = Table("layer", "layout", *(f"{form}, ms" for form in forms.NORMS), "chosen", "regret")
    for shape in LAYERS:
        for name, layout in (("last", torch.channels_last), ("first", torch.contiguous_format)):
            call = layer(shape, options.batch, layout)
            estimates = forms._forms([call])
            limit = 40 * min(cost for cost, _ in estimates.values())
            found = {f: least(call, f, space) for f, (cost, space) in estimates.items() if cost <= limit}
            chosen = min(estimates, key=lambda form: estimates[form][0])
            regret = found[chosen] / min(found.values())
            rows.append(
                {"layer": shape, "channels": name, "seconds": found, "chosen": chosen, "regret": regret}
            )
            times = (f"{found[form] * 1e3:.2f}" if form in found else "" for form in forms.NORMS)
            table.add_row(" ".join(map(str, shape)), name, *times, chosen, f"{regret:.2f}")
    Console(width=110).print(table)
    mean = math.exp(sum(math.log(row["regret"]) for row in rows) / len(rows))
    Console().print(f"{len(rows)} layers; geometric mean of the regret {mean:.3f}")
    if options.out:
        report = {
            "command": " ".join(["python", *sys.argv]),
            "date": date.today().isoformat(),
            "hardware": platform.processor(),
            "threads": options.threads,
            "torch": torch.__version__,
            "batch": options.batch,
            "mean_regret": mean,
            "rows": rows,
        }
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
