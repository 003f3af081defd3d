"""Which score finds wrong labels best: on rendered faces with three kinds of noise, and on photographs (FER-noise).

    python benchmarks/scores.py [--data fer2013_ferplus.parquet] [--seed 0] [--out runs/scores-0] [--json FILE]

Trains and scores one run a dataset (it goes on where it was stopped) and compares the score that flags with what it is
made of, with the scores that others use, and with the same given the true joint. Photographs are split in halves by a
hash of the id: the last choices were made on the rendered faces and the half "choose", see docs/scores.md.
benchmarks/README.md says how to build the file of --data.
"""

from __future__ import annotations

import argparse
import hashlib
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from sklearn.metrics import average_precision_score

from diffinf.classify.crossfit import load_crossfit
from diffinf.classify.train import load_dynamics
from diffinf.data.rendered.write import render_dataset
from diffinf.files import read_class_names, read_json, read_table, write_json
from diffinf.influence.noise import (
    class_noise_rates,
    confident_joint,
    error_log_odds,
    label_posterior,
    label_trust,
    refined_joint,
)
from diffinf.influence.rivals import margin, self_confidence
from diffinf.pipeline import repair_dataset
from diffinf.run import Run
from diffinf.stages.scores import RIVALS
from fer_data import prepare
from fer_noise import hardware

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

NOISES = ("confounded", "symmetric", "asymmetric")
OURS = "score (default)"
_RESAMPLES = 500


def rendered(noise: str, out: Path, seed: int) -> Run:
    """Score 4,000 rendered faces (3,960 where the noise is not bench-1's) with 27 % wrong labels."""
    faces = out / f"{noise}.parquet"
    if not faces.exists():
        preset = "bench-1" if noise == "confounded" else None
        render_dataset(faces, noise=noise, preset=preset, seed=seed)  # type: ignore[arg-type]
    columns = {"split": "split", "identity": "identity", "truth": ["truth_label"]}
    settings: dict[str, Any] = {"data": columns, "classifier": {"steps": 1000}, "seed": seed}
    return repair_dataset(faces, out=out / noise, until="score", preset="cpu", **settings)


def photographs(data: Path, out: Path, seed: int) -> Run:
    """Score the training rows of FER-noise."""
    faces = out / "photographs.parquet"
    if not faces.exists():
        prepare(data, faces, None)
    columns = {"split": "split", "truth": ["truth_label"]}
    settings: dict[str, Any] = {"data": columns, "classifier": {"steps": 3000, "folds": 5}, "seed": seed}
    return repair_dataset(faces, out=out / "photographs", until="score", preset="cpu", **settings)


def candidates(run: Run) -> tuple[dict[str, Floats], Bools, list[str]]:
    """Scores (N,) by name, higher = more suspicious; whether each label is wrong, (N,); the ids."""
    table, known = read_table(run.scores), read_table(run.evaluation.parent / "evaluation.parquet")
    names = list(read_class_names(table))
    labels = np.array([names.index(name) for name in table["label"].to_pylist()])
    truth = np.array([names.index(name) for name in known["truth"].to_pylist()])
    crossfit, last = load_crossfit(run.crossfit), load_dynamics(run.classifier)[-1]
    outside = crossfit.logits.double().softmax(1).numpy()
    baseline = last.double().softmax(1).numpy()
    folds = int(crossfit.fold.max()) + 1
    mean = (crossfit.fitted.double().numpy() * (folds - 1) + baseline) / folds
    found = {OURS: table["score"].to_numpy()}
    found |= _parts(labels, mean, baseline, outside)
    for name in ("self_influence", *RIVALS):
        if not table[name].null_count:
            found[name] = np.nan_to_num(table[name].to_numpy(), posinf=np.finfo(np.float64).max)
    found["loss, in-sample"] = self_confidence(labels, last.double().numpy())
    joint = np.zeros((len(names), len(names)))
    np.add.at(joint, (labels, truth), 1 / len(labels))
    posterior = label_posterior(labels, _sharpened(mean), joint, steps=2)
    found["the same with the true joint (not allowed)"] = 1 - posterior[np.arange(len(labels)), labels]
    return found, truth != labels, table["id"].to_pylist()


def _parts(labels: Ints, mean: Floats, baseline: Floats, outside: Floats) -> dict[str, Floats]:
    """The default with one thing changed, and what came before it."""
    joint = confident_joint(labels, outside)
    rates = class_noise_rates(refined_joint(labels, outside, joint)).clip(1e-3, 1 - 1e-3)
    odds = np.log(rates / (1 - rates))[labels]
    plain = margin(labels, np.log(outside.clip(1e-12)))
    return {
        "margin of the mean, no noise estimate": margin(labels, np.log(mean.clip(1e-12))),
        "loss of the mean, no noise estimate": self_confidence(labels, np.log(mean.clip(1e-12))),
        "not sharpened": _posterior(labels, mean, steps=2),
        "1 step instead of 2": _posterior(labels, _sharpened(mean), steps=1),
        "5 steps instead of 2": _posterior(labels, _sharpened(mean), steps=5),
        "the baseline alone": error_log_odds(labels, baseline),
        "out-of-fold instead of in-sample": error_log_odds(labels, outside),
        "out-of-fold, not sharpened, 5 steps": 1 - label_trust(labels, outside, joint),
        "out-of-fold margin + 0.3 log-odds of class noise": plain + 0.3 * odds,
        "out-of-fold margin + 2 log-odds of class noise": plain + 2 * odds,
    }


def _sharpened(probabilities: Floats) -> Floats:
    sharp = probabilities.clip(1e-12) ** 1.5
    return np.asarray(sharp / sharp.sum(1, keepdims=True))


def _posterior(labels: Ints, probabilities: Floats, steps: int) -> Floats:
    joint = refined_joint(labels, probabilities, confident_joint(labels, probabilities), steps=steps)
    posterior = label_posterior(labels, probabilities, joint, steps=steps)
    return np.asarray(1 - posterior[np.arange(len(labels)), labels])


def estimates(run: Run) -> dict[str, Any]:
    """What the run says without truth, beside the truth: shares of wrong labels and of right flags."""
    flags, detection = read_json(run.flags), read_json(run.evaluation)["detection"]
    classes = {
        name: {"estimated": share, "true": detection["per_class"][name]["base_rate"]}
        for name, share in flags["estimated_class_noise"].items()
    }
    return {
        "wrong": {"estimated": flags["estimated_noise"], "true": detection["base_rate"]},
        "flags_right": {
            "estimated": flags["estimated_precision"],
            "true": detection["precision_at_flagged"],
        },
        "wrong_by_class": classes,
    }


def halves(ids: list[str]) -> dict[str, Bools]:
    """Rows (N,) of the half on which choices were made, and of the other."""
    even = np.array([int(hashlib.sha256(f"half:{id_}".encode()).hexdigest(), 16) % 2 == 0 for id_ in ids])
    return {"choose": even, "report": ~even}


def measured(found: dict[str, Floats], wrong: Bools) -> dict[str, Any]:
    """Average precision by score; of the default, and of its lead over the best rival, with 95 % intervals."""
    table = {name: float(average_precision_score(wrong, values)) for name, values in found.items()}
    rivals = [name for name in table if name in (*RIVALS, "loss, in-sample")]
    best = max(rivals, key=lambda name: table[name])
    generator = np.random.default_rng(0)
    draws = []
    for _ in range(_RESAMPLES):
        rows = generator.integers(len(wrong), size=len(wrong))
        draws.append([average_precision_score(wrong[rows], found[name][rows]) for name in (OURS, best)])
    own, other = np.array(draws).T
    return {
        "n": len(wrong),
        "base_rate": float(wrong.mean()),
        "average_precision": table,
        "ci": np.quantile(own, [0.025, 0.975]).tolist(),
        "best_rival": best,
        "lead": table[OURS] - table[best],
        "lead_ci": np.quantile(own - other, [0.025, 0.975]).tolist(),
    }


def main() -> None:
    """Train, score, compare, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="FER2013 with FER+ votes; none: rendered faces alone")
    parser.add_argument("--seed", type=int, default=0, help="of the rendered faces and of every training")
    parser.add_argument("--out", type=Path, help="default runs/scores-SEED")
    parser.add_argument("--json", type=Path, help="the report's place (default OUT/scores.json)")
    options = parser.parse_args()
    out = options.out or Path(f"runs/scores-{options.seed}")
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    said: dict[str, Any] = {}
    for noise in NOISES:
        run = rendered(noise, out, options.seed)
        found, wrong, _ = candidates(run)
        results[noise], said[noise] = measured(found, wrong), estimates(run)
    if options.data is not None:
        run = photographs(options.data, out, options.seed)
        found, wrong, ids = candidates(run)
        said["photographs"] = estimates(run)
        for half, rows in halves(ids).items():
            part = {name: values[rows] for name, values in found.items()}
            results[f"photographs, {half}"] = measured(part, wrong[rows])
    show(results)
    report = {
        "date": str(date.today()),
        "seed": options.seed,
        "hardware": hardware("cpu"),
        "results": results,
        "estimates": said,
    }
    write_json(options.json or out / "scores.json", report)


def show(results: dict[str, Any]) -> None:
    """Print average precisions, a column a dataset."""
    console = Console(width=160)
    table = Table("average precision", *results)
    for name in next(iter(results.values()))["average_precision"]:
        table.add_row(name, *(f"{result['average_precision'][name]:.3f}" for result in results.values()))
    table.add_section()
    table.add_row("n", *(f"{result['n']:,}" for result in results.values()))
    table.add_row("base rate", *(f"{result['base_rate']:.3f}" for result in results.values()))
    table.add_row("best rival", *(result["best_rival"] for result in results.values()))
    intervals = [(r["lead"], *r["lead_ci"]) for r in results.values()]
    table.add_row(
        "lead over it (95 %)", *(f"{d:+.3f} ({low:+.3f} to {high:+.3f})" for d, low, high in intervals)
    )
    console.print(table)


if __name__ == "__main__":
    main()
