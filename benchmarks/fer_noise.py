"""FER-noise: real photographs, real annotators. FER2013's labels, judged by the ten votes of FER+.

    python benchmarks/fer_noise.py --build fer2013.csv fer2013new.csv fer2013_ferplus.parquet
    python benchmarks/fer_noise.py --data fer2013_ferplus.parquet [--subset 8k] [--seeds 5]

The first line makes one file of the two public originals, see benchmarks/README.md. The second keeps the rows
whose votes agree, splits them, takes them all the way through diffinf and measures against the votes (FER+:
arXiv 1608.01041). In OUT (runs/fer-noise) it leaves SUBSET.parquet, the run SUBSET/ and SUBSET.json; started
again it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from diffinf.config import make_config
from diffinf.errors import UserError
from diffinf.files import file_sha256, load_tensors, read_json, read_table, write_json
from diffinf.run import Run
from fer_data import (
    EXPECTED_DISAGREEMENT,
    EXPECTED_KEPT,
    LABELS,
    SPARSE,
    Prepared,
    build,
    prepare,
)

ARMS = ("baseline", "filter", "relabel", "resample", "roundtrip", "diffinf")


def results(run: Run) -> dict[str, Any]:
    """Detection, conversion, arms with 95 % intervals and paired differences, from the files of a run.

    Balanced accuracy over "seven" classes and over the "six" without disgust, which is the primary figure.
    """
    summary, evaluation = read_json(run.summary), read_json(run.evaluation)
    detection = {name: value for name, value in evaluation["detection"].items() if name != "curve"}
    edits = {name: summary[name] for name in ("edited", "kept", "relabelled", "dropped", "kept_reasons")}
    arms, differences = _arms(run)
    return {
        "detection": detection,
        "edits": edits,
        "conversion": evaluation["conversion"],
        "arms": arms,
        "diffinf_minus": differences,
    }


def _arms(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    from diffinf.evaluate.gain import arm_interval, holm, paired_difference

    truth = load_tensors(run.compare / "test.safetensors")["labels"].numpy()
    six = [index for index, name in enumerate(LABELS) if name != SPARSE]
    seeds: dict[str, list[int]] = {}
    diverged: Counter[str] = Counter()
    for row in read_table(run.comparison).to_pylist():
        seeds.setdefault(row["arm"], [])
        if row["diverged"]:
            diverged[row["arm"]] += 1
        else:
            seeds[row["arm"]].append(row["seed"])

    def logits(arm: str, chosen: list[int]) -> npt.NDArray[np.float32]:
        folder = run.compare / "predictions"
        return np.stack([load_tensors(folder / f"{arm}-{s}.safetensors")["logits"].numpy() for s in chosen])

    arms: dict[str, Any] = {}
    differences: dict[str, Any] = {}
    for arm, sound in seeds.items():
        arms[arm] = {"seeds": sound, "diverged": diverged[arm]}
        if not sound:
            continue
        outputs = logits(arm, sound)
        arms[arm] |= {
            "accuracy": arm_interval(outputs, truth, "accuracy").to_dict(),
            "balanced_accuracy_seven": arm_interval(outputs, truth).to_dict(),
            "balanced_accuracy_six": arm_interval(outputs, truth, classes=six).to_dict(),
        }
        shared = sorted(set(sound) & set(seeds.get("diffinf", [])))
        if arm != "diffinf" and shared:
            pair = logits("diffinf", shared), logits(arm, shared)
            differences[arm] = paired_difference(*pair, truth, classes=six).to_dict()
    adjusted = holm({arm: found["p_value"] for arm, found in differences.items()})
    return arms, {arm: {**found, "p_holm": adjusted[arm]} for arm, found in differences.items()}


def hardware(device: str) -> dict[str, Any]:
    """The class of machine: CPU model, cores this process may use, GPU if `device` is one."""
    model = platform.processor() or platform.machine()
    described = Path("/proc/cpuinfo")
    if described.exists():
        lines = (line.partition(":") for line in described.read_text().splitlines())
        model = next((value.strip() for name, _, value in lines if name.strip() == "model name"), model)
    usable = getattr(os, "sched_getaffinity", None)
    gpu = None
    if device.startswith("cuda"):
        import torch

        gpu = torch.cuda.get_device_name(device)
    return {"cpu": model, "cores": len(usable(0)) if usable else os.cpu_count(), "gpu": gpu}


def shareable(value: Any) -> Any:
    """Settings or words of a command with the places of this machine's files reduced to their names."""
    if isinstance(value, dict):
        return {name: shareable(item) for name, item in value.items()}
    if isinstance(value, list):
        return [shareable(item) for item in value]
    if isinstance(value, str):
        name, equals, path = value.rpartition("=")
        if path.startswith(("/", "..", "~")) or Path(path).is_absolute():
            return f"{name}{equals}{Path(path).name}"
    return value


def made_by(script: str, arguments: list[str], device: str) -> dict[str, Any]:
    """The command that made a report, when, and on what class of machine."""
    return {
        "command": shlex.join(["python", f"benchmarks/{script}", *shareable(arguments)]),
        "date": date.today().isoformat(),
        "hardware": hardware(device),
    }


def show_prepared(prepared: Prepared, console: Console) -> None:
    """Print counts and disagreement beside those of the file that the published figures were taken on."""
    kept = Table("usage", "kept", "expected", title="rows with a clear truth")
    for usage, expected in EXPECTED_KEPT.items():
        kept.add_row(usage, str(prepared.kept[usage]), str(expected))
    splits = Table("class", *prepared.counts, "disagree", "expected", title="rows by split (test: truth)")
    for name in LABELS:
        share = prepared.disagreement.get(name)
        counts = [str(found[name]) for found in prepared.counts.values()]
        splits.add_row(name, *counts, _figure(share), f"{EXPECTED_DISAGREEMENT[name]:.2f}")
    totals = [str(sum(found.values())) for found in prepared.counts.values()]
    splits.add_row(
        "all", *totals, _figure(prepared.disagreement["all"]), f"{EXPECTED_DISAGREEMENT['all']:.2f}"
    )
    console.print(kept, splits)
    off = [
        name
        for name, share in EXPECTED_DISAGREEMENT.items()
        if abs(prepared.disagreement.get(name, 0) - share) > 0.01
    ]
    if prepared.kept != EXPECTED_KEPT or off:
        console.print("These are not the rows of the published figures: compare arms within this run alone.")


def show_results(found: dict[str, Any], console: Console) -> None:
    """Print detection, conversion and arms."""
    detection = found["detection"]
    scores = Table("score", "average precision", "95 % interval", title="detection of wrong labels")
    scores.add_row("score that flags", _figure(detection["average_precision"]), _ends(detection["ci"]))
    for name, value in detection["rivals"].items():
        scores.add_row(name, _figure(value), "")
    scores.add_row("base rate", _figure(detection["base_rate"]), "")
    flags = f"{detection['n_flagged']} of {detection['n']} flagged"
    scores.add_row(f"precision at flagged ({flags})", _figure(detection["precision_at_flagged"]), "")
    console.print(scores)
    if (converted := found["conversion"]) is not None:
        title = f"flagged with a wrong label read as their label ({converted['n']})"
        shares = Table("picture", "share", "95 % interval", title=title)
        shares.add_row("before", _figure(converted["before"]), _ends(converted["before_ci"]))
        shares.add_row("round trip", _figure(converted["roundtrip"]), _ends(converted["roundtrip_ci"]))
        shares.add_row("after", _figure(converted["conversion"]), _ends(converted["ci"]))
        console.print(shares)
    title = f"arms; six: without {SPARSE}; difference: diffinf - arm, over six"
    arms = Table("arm", "seeds", "accuracy", "balanced, seven", "balanced, six", "difference", title=title)
    for name, arm in found["arms"].items():
        measures = ("accuracy", "balanced_accuracy_seven", "balanced_accuracy_six")
        cells = [_interval(arm.get(measure)) for measure in measures]
        seeds = f"{len(arm['seeds'])}" + (f" ({arm['diverged']} diverged)" if arm["diverged"] else "")
        arms.add_row(name, seeds, *cells, _interval(found["diffinf_minus"].get(name)))
    console.print(arms)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _ends(ends: Any) -> str:
    return "" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"


def _interval(interval: dict[str, Any] | None) -> str:
    if interval is None:
        return "-"
    return f"{interval['estimate']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"


def benchmark(dataset: Path, directory: Path, options: argparse.Namespace) -> Run:
    """Take the prepared dataset all the way, or go on with it."""
    from diffinf.pipeline import execute
    from diffinf.stages.workspace import default_preset

    values = {
        "seed": 0,
        "data": {"id": "id", "split": "split"},
        # The protocol fixes the rows, and two test faces are in training too, under other ids.
        "compare": {"arms": list(ARMS), "seeds": options.seeds, "allow_overlap": True},
    }
    name = options.preset or default_preset()
    config = make_config(str(dataset.resolve()), preset_name=name, values=values, overrides=options.set)
    return execute(config, out=directory)


def report(
    arguments: list[str], options: argparse.Namespace, dataset: Path, prepared: Prepared, run: Run | None
) -> dict[str, Any]:
    """What a figure needs to be believed, and the figures."""
    summary = {} if run is None else read_json(run.summary)
    return {
        **made_by("fer_noise.py", arguments, summary.get("device", "cpu")),
        "versions": summary.get("versions"),
        "data": {
            "file": options.data.name,
            "sha256": file_sha256(options.data),
            "prepared_sha256": file_sha256(dataset),
            "subset": options.subset,
            "kept": prepared.kept,
            "disagreement": prepared.disagreement,
        },
        "n": {split: sum(found.values()) for split, found in prepared.counts.items()},
        "n_by_class": prepared.counts,
        "seed": summary.get("seed"),
        "settings": None if run is None else shareable(run.config.model_dump(mode="json")),
        "timings": summary.get("timings"),
        "results": None if run is None else results(run),
    }


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--data", type=Path, help="FER2013 with FER+ votes, Parquet, as --build makes it")
    task.add_argument(
        "--build", type=Path, nargs=3, metavar=("FER2013_CSV", "FERPLUS_CSV", "OUT"), help="make that file"
    )
    parser.add_argument("--subset", default="8k", help="training rows: 8k (default), all, or a number")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each arm (default 5)")
    parser.add_argument("--out", type=Path, default=Path("runs/fer-noise"), help="folder for everything")
    parser.add_argument("--prepare-only", action="store_true", help="write the dataset, print counts, stop")
    parser.add_argument(
        "--preset",
        choices=("cpu", "cpu-small", "gpu", "gpu-48", "gpu-128", "tiny"),
        help="as for `diffinf run`",
    )
    parser.add_argument("--set", action="append", default=[], metavar="stage.field=value", help="repeatable")
    parser.add_argument("--json", type=Path, help="report to write (default OUT/SUBSET.json)")
    return parser.parse_args(arguments)


def _subset_size(text: str) -> int | None:
    if text == "all":
        return None
    size = 8000 if text == "8k" else int(text) if text.isdecimal() else 0
    if size < 1:
        raise UserError(f"--subset {text}: expected 8k, all or a number of training rows")
    return size


def main(arguments: list[str] | None = None) -> None:
    """Build, or prepare, run, print tables, write JSON; a user's mistake is one line and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)  # a file has room for the widest table
    try:
        if options.build:
            for fate, count in sorted(build(*options.build).items()):
                console.print(f"{count:6} {fate}")
            return
        dataset = options.out / f"{options.subset}.parquet"
        prepared = prepare(options.data, dataset, _subset_size(options.subset))
        show_prepared(prepared, console)
        run = None if options.prepare_only else benchmark(dataset, options.out / options.subset, options)
        found = report(arguments, options, dataset, prepared, run)
        if run is not None:
            show_results(found["results"], console)
        if run is not None or options.json:
            write_json(options.json or options.out / f"{options.subset}.json", found)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
