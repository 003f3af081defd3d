"""What exact self-influence costs: against plain forward and backward of the same batches, and torch.func.

    python benchmarks/influence.py [--out influence.json] [--batch 64] [--repeats 5] [--threads 1]
    python benchmarks/influence.py --exactness      # error and fallback of many architectures instead, no times

Times are medians over repeats, taken in turn in one process: CPU seconds on a CPU (which other programs disturb
less than the clock's), the clock's on a GPU. Ratios are to plain forward and backward (eval mode, mean
cross-entropy, gradients of all parameters).
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from diffinf.influence.ghost import GradientNorms


def networks() -> dict[str, tuple[nn.Module, int, int]]:
    """Name -> (model in eval mode, channels, image side)."""
    import timm

    from diffinf.classify.model import ClassifierSpec, create_classifier

    small = create_classifier(ClassifierSpec("small_cnn", 7, 3, 64), seed=0)
    return {
        "resnet18, 64 px": (timm.create_model("resnet18", pretrained=False, num_classes=7).eval(), 3, 64),
        "small_cnn, 64 px": (small.eval(), 3, 64),
    }


def plain(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """One forward and one backward for the gradients of all parameters."""
    loss = F.cross_entropy(model(images), labels)
    torch.autograd.grad(loss, list(model.parameters()))


def by_torch_func(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Exact squared norms (N,) from per-sample gradients, a chunk of samples at a time."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        output = torch.func.functional_call(model, parameters, (image[None],))
        return F.cross_entropy(output, label[None])

    def norm(image: Tensor, label: Tensor) -> Tensor:
        gradients = torch.func.grad(loss)(parameters, image, label)
        return torch.stack([g.square().sum() for g in gradients.values()]).sum()

    return torch.func.vmap(norm, chunk_size=16)(images, labels)


def medians(runs: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, float]:
    """Seconds of each, in turn, so that a machine's moods meet all alike."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = clock()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:  # the first is for warming up
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure(model: nn.Module, images: Tensor, labels: Tensor, repeats: int) -> dict[str, float]:
    """Times, ratios and the largest relative difference from torch.func."""
    norms, head = GradientNorms(model), GradientNorms(model, scope="head")
    found, truth = norms(images, labels), by_torch_func(model, images, labels)
    head(images, labels)
    runs = {
        "plain": lambda: plain(model, images, labels),
        "all": lambda: norms(images, labels),
        "head": lambda: head(images, labels),
        "torch_func": lambda: by_torch_func(model, images, labels),
    }
    seconds = medians(runs, repeats, images.device)
    return {
        **{f"{name}_seconds": value for name, value in seconds.items()},
        **{f"{name}_ratio": value / seconds["plain"] for name, value in seconds.items()},
        "relative_error": float(((found - truth).abs() / truth).max()),
        "fallback_parameters": len(norms.fallback),
    }


# Name in timm -> options; 32 px where nothing else is said.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "resnet10t": {},
    "resnet18": {},
    "regnetx_002": {},
    "mobilenetv3_small_050": {},
    "mobilenetv4_conv_small": {},
    "efficientnet_b0": {},
    "ghostnet_050": {},
    "convnext_atto": {},
    "convnextv2_atto": {},
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8},
    "deit_tiny_patch16_224": {"img_size": 32, "patch_size": 8},
    "mixer_s16_224": {"img_size": 32},
    "gmlp_s16_224": {"img_size": 32},
    "resmlp_12_224": {"img_size": 32},
    "edgenext_xx_small": {},
    "mobilevitv2_050": {},
    "fastvit_t8": {},
    "densenet121": {},
    "swin_tiny_patch4_window7_224": {"img_size": 32, "window_size": 4},
    "levit_128s": {"img_size": 64},
    "maxvit_rmlp_pico_rw_256": {"img_size": 64},
    "beit_base_patch16_224": {"img_size": 32, "depth": 2},
    "nf_resnet26": {},
}


def exactness(name: str, options: dict[str, Any], seed: int) -> dict[str, Any]:
    """Largest relative error of three samples' squared norms against float64, and what took the fallback."""
    import timm

    torch.manual_seed(seed)
    model = timm.create_model(name, pretrained=False, num_classes=7, **options).eval()
    with torch.no_grad():
        for p in model.parameters():  # away from the zeros and ones of the initialisation
            p.add_(torch.randn_like(p) * 0.02)
    side = options.get("img_size", 32)
    images, labels = torch.randn(3, 3, side, side), torch.tensor([0, 3, 6])
    norms = GradientNorms(model)
    found = norms(images, labels)
    truth = []
    for i in range(3):
        wide = copy.deepcopy(model).double()
        # A pair: PyTorch's batch norm has a wrong gradient for some batches of one.
        value = F.cross_entropy(wide(images[[i, i]].double()), labels[[i, i]], reduction="none")[0]
        gradients = torch.autograd.grad(value, list(wide.parameters()), allow_unused=True)
        truth.append(sum(float(g.square().sum()) for g in gradients if g is not None))
    expected = torch.tensor(truth, dtype=torch.float64)
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    return {
        "parameters": sum(sizes.values()),
        "relative_error": float(((found.double() - expected).abs() / expected).max()),
        "fallback_share": sum(sizes[n] for n in norms.fallback) / sum(sizes.values()),
        "fallback": dict(norms.fallback),
    }


def show_exactness(seed: int) -> dict[str, dict[str, Any]]:
    """Print a row for each architecture; name -> its figures."""
    table = Table("network", "parameters", "largest relative error", "on the fallback", "of them")
    results = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, options in ARCHITECTURES.items():
            row = results[name] = exactness(name, options, seed)
            endings = sorted({key.rpartition(".")[2] for key in row["fallback"]})
            table.add_row(
                name,
                f"{row['parameters'] / 1e6:.2f} M",
                f"{row['relative_error']:.0e}",
                f"{row['fallback_share']:.2%}",
                ", ".join(endings),
            )
    Console(width=110).print(table)
    return results


def show_cost(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Print a row for each network; name -> its figures."""
    device = torch.device(options.device)
    results: dict[str, dict[str, float]] = {}
    table = Table("network", "plain ms", "all", "head", "torch.func", "error", title="cost, plain = 1")
    for name, (model, channels, side) in networks().items():
        images = torch.randn(options.batch, channels, side, side, device=device)
        labels = torch.randint(7, (options.batch,), device=device)
        row = results[name] = measure(model.to(device), images, labels, options.repeats)
        table.add_row(
            name,
            f"{row['plain_seconds'] * 1e3:.1f}",
            *(f"{row[f'{way}_ratio']:.2f}" for way in ("all", "head", "torch_func")),
            f"{row['relative_error']:.1e}",
        )
    Console().print(table)
    return results


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=64, help="samples a batch")
    parser.add_argument("--repeats", type=int, default=5, help="timed repeats")
    parser.add_argument("--threads", type=int, default=None, help="threads of torch")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--seed", type=int, default=0, help="of weights and images")
    parser.add_argument("--exactness", action="store_true", help="errors of many architectures, no times")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    results = show_exactness(options.seed) if options.exactness else show_cost(options)
    if options.out:
        report = {
            "command": " ".join(["python", *sys.argv]),
            "date": date.today().isoformat(),
            "hardware": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "batch": options.batch,
            "seed": options.seed,
            "networks": results,
        }
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
