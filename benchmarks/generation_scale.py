"""Memory and time of the choice of negative contexts, and of separability, as their numbers grow.

    python benchmarks/generation_scale.py [--contexts 100000] [--rows 2000] [--images 5000 20000] [--out scale.json]

Contexts are random unit vectors of 64 components; negatives are chosen for `--rows` of them over all, and the time is
given for all: it grows with the rows, each costs the same. Images are random embeddings of 128 components, 20 a
person. Each figure has a process of its own; memory is its highest resident size above what it held before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from diffinf import __version__
from diffinf.evaluate.separability import identity_separability
from diffinf.generate import choose_negative_contexts, random_contexts
from fer_noise import shareable
from influence_scale import resident

STRATEGIES = ("random", "close", "mid", "far")
CONTEXT, EMBEDDING, EACH = 64, 128, 20


def one(what: str, count: int, rows: int, seed: int) -> dict[str, float | str]:
    """Measure one figure in this process: a strategy over `count` contexts, or separability of `count` images."""
    if what == "separability":
        rng = np.random.default_rng(seed)
        who = np.arange(count) % max(2, count // EACH)
        vectors = rng.normal(size=(who.max() + 1, EMBEDDING))[who] + rng.normal(size=(count, EMBEDDING))
        vectors = vectors.astype(np.float32)
        before, start = resident("VmRSS"), time.process_time()
        identity_separability(vectors, who)
        seconds = time.process_time() - start
    else:
        contexts = random_contexts(count, CONTEXT, seed)
        asked = torch.arange(min(rows, count)) * (count // min(rows, count))
        before, start = resident("VmRSS"), time.process_time()
        choose_negative_contexts(contexts, what, seed, rows=asked)  # type: ignore[arg-type]
        seconds = (time.process_time() - start) * count / len(asked)
    return {"what": what, "n": count, "cpu_seconds": seconds, "added_mb": resident("VmHWM") - before}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contexts", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=2000, help="contexts to choose a negative for")
    parser.add_argument("--images", type=int, nargs="*", default=[5000, 20_000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = sys.argv[1:] if arguments is None else arguments
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.one:
        print(json.dumps(one(given.one[0], int(given.one[1]), given.rows, given.seed)))
        return
    jobs = [(name, given.contexts) for name in STRATEGIES] + [("separability", n) for n in given.images]
    table, rows = Table("what", "n", "CPU s", "added MB"), []
    for what, count in jobs:
        command = [sys.executable, __file__, "--one", what, str(count)]
        command += ["--rows", str(given.rows), "--seed", str(given.seed)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        row = json.loads(done.stdout)
        rows.append(row)
        table.add_row(what, f"{count:,}", f"{row['cpu_seconds']:.1f}", f"{row['added_mb']:.0f}")
    Console().print(table)
    if given.out:
        report = {
            "command": shlex.join(["python", "benchmarks/generation_scale.py", *shareable(arguments)]),
            "version": __version__,
            "date": date.today().isoformat(),
            "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
            "seed": given.seed,
            "rows": rows,
        }
        given.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
