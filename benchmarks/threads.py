"""How fast a classifier trains beside busy neighbours, by how its threads wait for each other.

    python benchmarks/threads.py [--neighbours 0,2] [--seconds 6]

Steps a second of the small network on batches of 64 images of 64 px, each way in a process of its own (the waiting is
read from the environment when PyTorch is loaded): as PyTorch has it, as `diffinf` sets it, and on one thread.
Neighbours are processes that keep a core busy each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

WAYS = {
    "PyTorch's own": {},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
BUSY = "while True: sum(range(10_000))"


def train(seconds: float) -> float:
    """Train for so long, in this process; steps a second."""
    import torch
    from torch.nn.functional import cross_entropy

    from diffinf.classify.model import SMALL_CNN, ClassifierSpec, create_classifier

    model = create_classifier(ClassifierSpec(SMALL_CNN, 5, 3, 64), seed=0).train()
    images, labels = torch.rand(64, 3, 64, 64), torch.arange(64) % 5
    optimizer = torch.optim.AdamW(model.parameters())
    start = steps = 0.0
    while not start or time.perf_counter() - start < seconds:
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        start, steps = (start, steps + 1) if start else (time.perf_counter(), 0.0)  # the first step is slower
    return steps / (time.perf_counter() - start)


def main() -> None:
    """Measure every way beside each number of neighbours, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--neighbours", default="0,2", help="how many busy processes beside it (0,2)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each training (6)")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        print(f"{train(given.seconds):.1f}")
        return
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    for count in map(int, given.neighbours.split(",")):
        neighbours = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
        try:
            for way, environment in WAYS.items():
                command = [sys.executable, __file__, "--here", "--seconds", str(given.seconds)]
                done = subprocess.run(
                    command, env=plain | environment, check=True, capture_output=True, text=True
                )
                print(f"{count} busy neighbours, {way}: {done.stdout.strip()} steps a second")
        finally:
            for process in neighbours:
                process.kill()


if __name__ == "__main__":
    main()
