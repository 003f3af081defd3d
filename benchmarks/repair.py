"""The repair in figures: conversion, identity, realism, drift of factors, editors, terms of the objective, steps.

    python benchmarks/repair.py --rendered                       [--out runs/repair-rendered]
    python benchmarks/repair.py --data fer2013_ferplus.parquet   [--out runs/repair-fer]

The first line repairs rendered faces (bench-1, shipped weights), the second photographs by the protocol
FER-noise-8k (benchmarks/README.md); then the parts are measured against the truth, which the repair does not read. Each
part is kept in OUT/PART.json and is not measured again for the same repair; all of them are put together in
OUT/report.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console

import repair_judges
from diffinf.errors import UserError
from diffinf.files import atomic_path, read_json, stage_key, write_json
from diffinf.pipeline import execute
from diffinf.run import Run
from fer_noise import made_by, shareable
from repair_parts import ablation, editors, steps
from repair_quality import noise_free, quality
from repair_run import dataset, faces_seed, settings
from repair_tables import show
from repair_trials import Flagged

PARTS = ("quality", "editors", "ablation", "steps")
STEPS = "3,4,6,8,12,20,50"


def measure(flagged: Flagged, options: argparse.Namespace) -> dict[str, Any]:
    """Measure the parts that were asked for, or read what was measured of the same repair under the same options."""
    clean = noise_free(flagged) if "steps" in options.parts else None
    counts, reference = options.steps, options.steps_reference
    reference_n = options.reference_n or options.n
    work: dict[str, tuple[Callable[[], dict[str, Any]], list[Any]]] = {
        "quality": (
            lambda: quality(flagged, dlib=not options.no_dlib),
            [options.no_dlib, asdict(repair_judges.READER) if options.rendered else None],
        ),
        "editors": (lambda: editors(flagged, options.n), [options.n]),
        "ablation": (lambda: ablation(flagged, options.n), [options.n]),
        "steps": (
            lambda: steps(flagged, options.n, counts, reference, reference_n, clean),
            [options.n, counts, reference, reference_n],
        ),
    }
    found = {}
    for part in PARTS:
        if part not in options.parts:
            continue
        function, inputs = work[part]
        key = stage_key(part, flagged.run.key("refine"), options.half, inputs)
        path = options.out / f"{part}.json"
        if options.fresh or not path.exists() or read_json(path)["key"] != key:
            write_json(path, {"key": key, "date": date.today().isoformat(), "results": function()})
        found[part] = read_json(path)["results"]
    return found


def plot_steps(found: dict[str, Any], target: Path) -> None:
    """Draw steps against round-trip error and conversion as a PNG."""
    from matplotlib.figure import Figure

    rows = [row for row in found["rows"] if "note" not in row]
    total = [row["inversion"] + row["decode"] for row in rows]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(total, [row["error"] for row in rows], marker="o", color="#c4722d")
    left.set_ylabel("round trip: mean |error| in [-1, 1]")
    for oracle in rows[0]["conversion"] if rows else ():
        kept = [(n, row["conversion"][oracle]) for n, row in zip(total, rows, strict=True)]
        points = [(n, side) for n, side in kept if side["conversion"] is not None]
        line = right.plot(
            [n for n, _ in points], [side["conversion"] for _, side in points], marker="o", label=oracle
        )
        ends = [side["ci"] for _, side in points]
        right.fill_between(
            [n for n, _ in points],
            [low for low, _ in ends],
            [high for _, high in ends],
            alpha=0.15,
            color=line[0].get_color(),
        )
    right.set_ylabel("conversion")
    right.legend(fontsize=8.5)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(total, map(str, total))
        axes.minorticks_off()
        axes.set_xlabel("steps, inversion + decode")
        axes.grid(alpha=0.3)
    with atomic_path(target) as partial:
        figure.savefig(partial, format="png", dpi=130)


def report(
    arguments: list[str], options: argparse.Namespace, run: Run, data: dict[str, Any], found: dict[str, Any]
) -> dict[str, Any]:
    """What a figure needs to be believed, and the figures."""
    summary = read_json(run.summary)
    return {
        **made_by("repair.py", arguments, summary.get("device", "cpu")),
        "versions": summary.get("versions"),
        "data": data,
        "seed": summary.get("seed"),
        "n": {"looked_at": options.n, "half": options.half},
        "settings": shareable(run.config.model_dump(mode="json")),
        "timings": summary.get("timings"),
        "results": found,
    }


def _numbers(text: str) -> list[int]:
    if not all(part.strip().isdecimal() and int(part) > 0 for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text}: expected positive numbers with commas between")
    return [int(part) for part in text.split(",")]


def _pair(text: str) -> tuple[int, int]:
    numbers = _numbers(text)
    if len(numbers) != 2:
        raise argparse.ArgumentTypeError(f"{text}: expected steps of inversion and of decode, as 250,100")
    return numbers[0], numbers[1]


def _parts(text: str) -> list[str]:
    if unknown := set(text.split(",")) - set(PARTS):
        raise argparse.ArgumentTypeError(f"{unknown.pop()}: no such part; expected {', '.join(PARTS)}")
    return text.split(",")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--rendered", action="store_true", help="rendered faces: bench-1")
    data.add_argument("--data", type=Path, help="FER2013 with FER+ votes, as fer_noise.py --build makes it")
    parser.add_argument("--faces-seed", type=faces_seed, default=0, help="of the rendered faces (0)")
    parser.add_argument("--out", type=Path, help="folder for everything")
    parser.add_argument(
        "--parts", type=_parts, default=list(PARTS), help=f"of {','.join(PARTS)}; default all"
    )
    parser.add_argument("--n", type=int, default=200, help="flagged samples that are edited again (200)")
    parser.add_argument(
        "--half", choices=("all", "0", "1"), default="all", help="flagged samples measured, by a hash"
    )
    parser.add_argument("--steps", type=_numbers, default=_numbers(STEPS), help=f"default {STEPS}")
    parser.add_argument("--steps-reference", type=_pair, default=(250, 100), help="default 250,100")
    parser.add_argument("--reference-n", type=int, help="samples of the reference (default: as --n)")
    parser.add_argument("--no-dlib", action="store_true", help="do not judge identity by dlib")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--preset", help="as for `diffinf run`: gpu where there is one, else cpu")
    parser.add_argument("--set", action="append", default=[], metavar="stage.field=value", help="repeatable")
    options = parser.parse_args(arguments)
    if options.faces_seed and not options.rendered:
        parser.error("--faces-seed: photographs are not rendered, say --rendered")
    options.out = options.out or Path("runs/repair-rendered" if options.rendered else "runs/repair-fer")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Repair, measure, print tables, write JSON; a user's mistake is one line and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 150)  # a file has room for the widest table
    try:
        faces, data = dataset(options)
        run = execute(settings(options, faces), until="repair", out=options.out / "run")
        found = measure(Flagged(run, options.out, options.half), options)
        show(found, console)
        if "steps" in found:
            plot_steps(found["steps"], options.out / "steps.png")
        write_json(options.out / "report.json", report(arguments, options, run, data, found))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
