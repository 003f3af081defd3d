"""The figures of the repair as tables on a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

Found = dict[str, Any]


def show(found: Found, console: Console) -> None:
    """Print the parts that were measured."""
    for part, results in found.items():
        {"quality": _quality, "editors": _editors, "ablation": _ablation, "steps": _steps}[part](
            results, console
        )


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _with_ends(value: float | None, ends: Any, digits: int = 3) -> str:
    if value is None or ends is None:
        return _number(value, digits)
    return f"{value:.{digits}f} ({ends[0]:.{digits}f} to {ends[1]:.{digits}f})"


def _share(found: Found) -> str:
    return f"{_with_ends(found['share'], found['ci'])}, n {found['n']}"


def _ratio(realism: Found | None, measure: str) -> str:
    ratio = None if realism is None else realism[measure]["ratio"]
    return "-" if ratio is None else _with_ends(ratio["estimate"], (ratio["low"], ratio["high"]), 2)


def _quality(found: Found, console: Console) -> None:
    oracles = Table(
        "oracle", "accuracy", "balanced accuracy", "recall by class", title="oracles, out of fold"
    )
    for name, oracle in found["oracles"].items():
        recall = ", ".join(f"{label} {_number(value, 2)}" for label, value in oracle["recall"].items())
        oracles.add_row(name, _number(oracle["accuracy"]), _number(oracle["balanced_accuracy"]), recall)
    console.print(oracles)
    for title in ("conversion", "conversion_with_dlib", "conversion_unjudged_kept"):
        if title in found:
            console.print(_conversion(title.replace("_", " "), found[title]))
    lines = Table("figure", "value", title="accepted edits")
    lines.add_row("false flags changed", _share(found["false_flags_changed"]))
    for oracle, value in found["real_read_as_these_labels"].items():
        lines.add_row(f"real faces of these labels, read so by the {oracle}", _number(value))
    identity = found["identity"]
    if "note" in identity:
        lines.add_row("identity", identity["note"])
    else:
        lines.add_row(f"above the threshold of {identity['judge']}", _share(identity["above"]))
        lines.add_row("identity not judged", _share(identity["not_judged"]))
    for name, row in found.get("roundtrip", {"rows": {}})["rows"].items():
        for against, value in row.items():
            text = f"median {value['median']:.2f}, mean {value['mean']:.2f}"
            lines.add_row(f"PSNR of round trips, {name}, {against.replace('_', ' ')}, dB", text)
    for side, counts in found["class_counts"].items():
        lines.add_row(f"class counts {side}", ", ".join(f"{name} {n}" for name, n in counts.items()))
    console.print(lines)
    if found["by_spare"]:
        console.print(_by_spare(found["by_spare"]))
    if "drift" in found:
        console.print(_drift(found["drift"]))
    if found["realism"] is not None:
        console.print(_realism(found["realism"]))


def _conversion(title: str, found: Found) -> Table:
    table = Table("oracle", "class", "before", "round trip", "after", "any edit", "n", title=title)
    for oracle, result in found.items():
        for name, row in {"all": result["overall"], **result["by_class"]}.items():
            shares = [
                _with_ends(row[key], row[ends])
                for key, ends in (
                    ("before", "before_ci"),
                    ("roundtrip", "roundtrip_ci"),
                    ("conversion", "ci"),
                )
            ]
            table.add_row(oracle, name, *shares, _number(row["attempted"]), str(row["n"]))
    return table


def _by_spare(rows: list[Found]) -> Table:
    table = Table("spare", *rows[0]["conversion"], "false flags changed", title="conversion by repair.spare")
    for row in rows:
        table.add_row(
            str(row["spare"]), *map(_share, row["conversion"].values()), _share(row["false_flags_changed"])
        )
    return table


def _drift(found: Found) -> Table:
    title = f"drift: mean |change| / standard deviation, {found['n']} edits, {len(found['left_out'])} factors unread"
    table = Table("pictures", "identity", "nuisance", "most moved", title=title)
    for name, row in found["rows"].items():
        worst = ", ".join(f"{factor} {value:.2f}" for factor, value in row["worst"].items())
        table.add_row(name, _number(row["identity"]), _number(row["nuisance"]), worst)
    return table


def _realism(found: Found) -> Table:
    title = f"realism, relative to as many real images; features: {found['features']}"
    table = Table("class", "precision", "density", "coverage", "edits", title=title)
    for name, row in {"all": found["overall"], **found["by_class"]}.items():
        ratios = [_ratio(row, measure) for measure in ("precision", "density", "coverage")]
        table.add_row(name, *ratios, "-" if row is None else str(row["n_edited"]))
    return table


def _row(row: Found) -> list[str]:
    plain, balanced = row["conversion"].values()
    cost = row["evaluations"]
    return [
        _with_ends(plain["conversion"], plain["ci"]),
        _with_ends(balanced["conversion"], balanced["ci"]),
        _share(next(iter(row["reads_label_at_strength_1"].values()))),
        _share(row["accepted"]),
        _number(row["mean_change"]),
        f"{cost['mean']:.1f} / {cost['max']:.0f}",
    ]


_COLUMNS = (
    "conversion",
    "balanced oracle",
    "read at strength 1",
    "accepted",
    "|change|",
    "evaluations, mean / max",
)


def _editors(found: Found, console: Console) -> None:
    table = Table("editor", *_COLUMNS, title="editors, on the same samples")
    for name, row in found["editors"].items():
        table.add_row(f"{name} (default)" if name == found["default"] else name, *_row(row))
    console.print(table)


def _ablation(found: Found, console: Console) -> None:
    surrogate = found["surrogate"]
    title = (
        f"terms of the objective; AUROC of the surrogate {_number(surrogate['auroc'])}, n {surrogate['n']}"
    )
    table = Table("objective", *_COLUMNS, title=title)
    for name, row in found["rows"].items():
        table.add_row(name, *_row(row))
    terms = Table("objective", *found["terms_before"], title="mean of each term, unweighted")
    terms.add_row("before", *(_number(value) for value in found["terms_before"].values()))
    for name, row in found["rows"].items():
        terms.add_row(name, *(_number(value) for value in row["terms"].values()))
    console.print(table, terms)


def _steps(found: Found, console: Console) -> None:
    columns = ("PSNR, dB", "error", "evaluations", "conversion", "minus reference", "density", "coverage")
    first, second = found["reference"]
    title = f"steps; reference {first} + {second}; evaluations an image, mean / max; PSNR against the original, median"
    table = Table("steps", "n", *columns, "s an image", "x bare", title=title)
    for row in found["rows"]:
        name = f"{row['inversion']} + {row['decode']}{' (as set)' if row['is_setting'] else ''}"
        if "note" in row:
            table.add_row(name, "", row["note"])
            continue
        against = next(iter(row["minus_reference"].values())) if "minus_reference" in row else None
        plain = next(iter(row["conversion"].values()))
        table.add_row(
            name,
            str(row["n"]),
            _number(row["psnr"]["median"], 2),
            _number(row["error"], 4),
            f"{row['evaluations']['mean']:.1f} / {row['evaluations']['max']:.0f}",
            _with_ends(plain["conversion"], plain["ci"]),
            "-" if against is None else _with_ends(against["difference"], against["ci"]),
            _ratio(row["realism"], "density"),
            _ratio(row["realism"], "coverage"),
            _number(row["seconds_an_image"]),
            _number(row["times_bare_evaluations"], 2),
        )
    console.print(table)
