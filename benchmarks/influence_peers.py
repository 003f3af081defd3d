"""What exact gradient norms cost with other libraries: the same samples, networks and machine, in one run.

    python benchmarks/influence_peers.py [--out peers.json] [--batch 32] [--batches 2] [--repeats 3] [--threads 1]

Compared is what is installed of captum (the extra `peers`), torch.func, opacus, BackPACK (`backpack-for-pytorch`)
and kronfluence. Times are medians over repeats, taken in turn in one process: CPU seconds on a CPU. Ratios are to
plain forward and backward (eval mode, mean cross-entropy, gradients of all parameters). Every result is compared
with this package's, over the parameters that the peer covers. Preparation of a peer (hooks, wrappers) is not timed.

Peak memory is measured apart, in a process for each way: the highest resident size during three batches of
`--batch` samples, less that before them; the median of three processes for plain, diffinf and torch.func, one for
the others.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import logging
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from diffinf.influence.ghost import GradientNorms
from influence import by_torch_func, medians, networks, plain

CLASSES = 7
Way = Callable[[Tensor, Tensor], Any]
Made = tuple[Way, list[str]]
"""(images, labels) -> squared norms (n,), and the names of the parameters covered."""


def split(run: Way, batch: int) -> Way:
    """`run` on one batch after the other."""

    def whole(images: Tensor, labels: Tensor) -> Tensor:
        parts = zip(images.split(batch), labels.split(batch), strict=True)
        found = [run(x, y) for x, y in parts]
        return torch.cat(found) if isinstance(found[0], Tensor) else found

    return whole


def names(model: nn.Module, *kinds: type[nn.Module]) -> list[str]:
    """Parameters of the modules of these kinds; of all without."""
    chosen = [m for m in model.modules() if not kinds or isinstance(m, kinds)]
    inside = {id(p) for m in chosen for p in m.parameters(recurse=not kinds)}
    return [name for name, p in model.named_parameters() if id(p) in inside]


def ours(model: nn.Module, batch: int) -> Made:
    """The package itself."""
    return split(GradientNorms(model), batch), names(model)


def plain_way(model: nn.Module, batch: int) -> Made:
    """No norms: forward and backward."""
    return split(lambda x, y: plain(model, x, y), batch), []


def torch_func(model: nn.Module, batch: int) -> Made:
    """vmap over grad."""
    return split(lambda x, y: by_torch_func(model, x, y), batch), names(model)


def captum(model: nn.Module, batch: int, sample_wise: bool) -> Made:
    """TracInCP, one checkpoint; its fast way knows convolutions and linear layers alone."""
    from captum.influence import TracInCP

    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]

    def run(images: Tensor, labels: Tensor) -> Tensor:
        dataset = TensorDataset(images, labels)
        tracin = TracInCP(
            model,
            dataset,
            ["as it is"],
            checkpoints_load_func=lambda *_: 1.0,
            layers=layers if sample_wise else None,
            loss_fn=nn.CrossEntropyLoss(reduction="sum" if sample_wise else "none"),
            batch_size=batch,
            sample_wise_grads_per_batch=sample_wise,
        )
        return tracin.self_influence(DataLoader(dataset, batch_size=batch))

    return run, names(model, nn.Conv2d, nn.Linear) if sample_wise else names(model)


def captum_loop(model: nn.Module, batch: int) -> Made:
    """TracInCP for all parameters."""
    return captum(model, batch, sample_wise=False)


def captum_sample_wise(model: nn.Module, batch: int) -> Made:
    """TracInCP's fast way."""
    return captum(model, batch, sample_wise=True)


def opacus(model: nn.Module, batch: int) -> Made:
    """GradSampleModule: every sample's gradients held at once."""
    from opacus.grad_sample import GradSampleModule

    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # its hooks do not allow it
    wrapped = GradSampleModule(model, loss_reduction="sum", strict=False)

    def run(images: Tensor, labels: Tensor) -> Tensor:
        F.cross_entropy(wrapped(images), labels, reduction="sum").backward()
        parts = [p.grad_sample.flatten(1).square().sum(1) for p in wrapped.parameters()]
        wrapped.zero_grad()
        for p in wrapped.parameters():
            p.grad_sample = None
        return torch.stack(parts).sum(0)

    return split(run, batch), names(model)


def backpack(model: nn.Module, batch: int) -> Made:
    """BatchL2Grad."""
    from backpack import backpack as running
    from backpack import extend
    from backpack.extensions import BatchL2Grad

    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    extended, loss = extend(model), extend(nn.CrossEntropyLoss(reduction="sum"))
    extended.eval()

    def run(images: Tensor, labels: Tensor) -> Tensor:
        value = loss(extended(images), labels)
        with running(BatchL2Grad()):
            value.backward()
        parts = [p.batch_l2 for p in extended.parameters()]
        extended.zero_grad()
        return torch.stack(parts).sum(0)

    return split(run, batch), names(model)


def kronfluence(model: nn.Module, batch: int) -> Made:
    """Self scores without preconditioning; convolutions and linear layers alone."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class Classification(Task):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    task = Classification()
    prepared = prepare_model(model, task)
    folder = tempfile.mkdtemp()
    analyzer = Analyzer("bench", prepared, task, cpu=True, output_dir=folder, disable_tqdm=True)
    ready: list[bool] = []

    def run(images: Tensor, labels: Tensor) -> Tensor:
        dataset = TensorDataset(images, labels)
        if not ready:
            analyzer.fit_all_factors(
                "f", dataset, per_device_batch_size=batch, factor_args=FactorArguments(strategy="identity")
            )
            ready.append(True)
        analyzer.compute_self_scores(
            "s",
            "f",
            dataset,
            per_device_train_batch_size=batch,
            score_args=ScoreArguments(),
            overwrite_output_dir=True,
        )
        return analyzer.load_self_scores("s")["all_modules"]

    return run, [n.replace(".original_module", "") for n in names(model, nn.Conv2d, nn.Linear)]


WAYS: dict[str, tuple[str, Callable[[nn.Module, int], Made]]] = {
    "plain forward and backward": ("torch", plain_way),
    "diffinf": ("diffinf", ours),
    "torch.func vmap(grad)": ("torch", torch_func),
    "captum TracInCP": ("captum", captum_loop),
    "captum TracInCP, sample-wise": ("captum", captum_sample_wise),
    "opacus GradSampleModule": ("opacus", opacus),
    "BackPACK BatchL2Grad": ("backpack-for-pytorch", backpack),
    "kronfluence self scores": ("kronfluence", kronfluence),
}


def installed(package: str) -> str | None:
    """Its version, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def measure(name: str, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Way -> seconds, ratio, largest relative difference, share of the parameters covered."""
    model, channels, side = networks()[name]
    total = options.batch * options.batches
    images, labels = torch.randn(total, channels, side, side), torch.randint(CLASSES, (total,))
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    runs, rows = {}, {}
    for way, (package, make) in WAYS.items():
        if installed(package) is None:
            rows[way] = {"missing": f"{package} is not installed"}
            continue
        try:
            run, covered = make(copy.deepcopy(model), options.batch)
            found = run(images, labels)
        except Exception as error:  # a peer that cannot do this network is a result too
            rows[way] = {"missing": f"{type(error).__name__}: {error}".splitlines()[0][:160]}
            continue
        row: dict[str, Any] = {"covered": sum(sizes[n] for n in covered) / sum(sizes.values())}
        if covered:
            norms = GradientNorms(model, scope=covered)
            truth = torch.cat([norms(x, y) for x, y in zip(images.split(64), labels.split(64), strict=True)])
            row["relative_difference"] = float(((found.reshape(-1) - truth).abs() / truth).max())
        runs[way], rows[way] = (lambda run=run: run(images, labels)), row
    seconds = medians(runs, options.repeats, images.device)
    base = seconds["plain forward and backward"]
    for way, value in seconds.items():
        rows[way] |= {"seconds": value, "ratio": value / base}
    return rows


def resident(field: str) -> float:
    """VmRSS or VmHWM of this process in MB."""
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) / 1024


def peak(network: str, way: str, batch: int) -> float:
    """MB that three batches take at most, above what is resident before them; in this process."""
    model, channels, side = networks()[network]
    run, _ = WAYS[way][1](model, batch)
    images, labels = torch.randn(batch, channels, side, side), torch.randint(CLASSES, (batch,))
    model(images[:2])
    gc.collect()
    before = resident("VmRSS")
    for _ in range(3):
        run(images, labels)
    return resident("VmHWM") - before


def peaks(network: str, ways: list[str], options: argparse.Namespace) -> dict[str, float]:
    """Way -> peak MB, each in a process of its own."""
    found = {}
    for way in ways:
        command = [sys.executable, __file__, "--batch", str(options.batch), "--peak", network, way]
        command += ["--threads", str(torch.get_num_threads())]
        done = [
            subprocess.run(command, capture_output=True, text=True, check=False)
            for _ in range(3 if WAYS[way][0] in ("torch", "diffinf") else 1)
        ]
        if all(process.returncode == 0 for process in done):
            found[way] = statistics.median(float(process.stdout.split()[-1]) for process in done)
    return found


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=32, help="samples a batch")
    parser.add_argument("--batches", type=int, default=2, help="batches a measurement")
    parser.add_argument("--repeats", type=int, default=3, help="timed repeats")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--seed", type=int, default=0, help="of weights and images")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    parser.add_argument("--peak", nargs=2, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    if options.peak:
        print(peak(*options.peak, options.batch))
        return
    started, results = time.time(), {}
    for name in networks():
        rows = measure(name, options)
        for way, megabytes in peaks(name, [w for w, r in rows.items() if "seconds" in r], options).items():
            rows[way]["peak_mb"] = megabytes
        base = rows["plain forward and backward"].get("peak_mb")
        table = Table("way", "parameters", "time", "peak memory", "difference", title=f"{name}; plain = 1")
        for way, row in rows.items():
            if "missing" in row:
                table.add_row(way, row["missing"])
                continue
            memory = f"{row['peak_mb'] / base:.2f}" if base and "peak_mb" in row else ""
            difference = f"{row['relative_difference']:.0e}" if "relative_difference" in row else ""
            table.add_row(way, f"{row['covered']:.1%}", f"{row['ratio']:.2f}", memory, difference)
        Console(width=110).print(table)
        results[name] = rows
    if options.out:
        report = {
            "command": " ".join(["python", *sys.argv]),
            "date": date.today().isoformat(),
            "hardware": platform.processor(),
            "threads": options.threads,
            "batch": options.batch,
            "samples": options.batch * options.batches,
            "seed": options.seed,
            "versions": {package: installed(package) for package, _ in WAYS.values()},
            "wall_seconds": time.time() - started,
            "networks": results,
        }
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
