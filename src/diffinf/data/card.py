"""What a refined dataset says of itself: provenance, a row a sample, and a dataset card."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diffinf import __version__
from diffinf.data.readers import SPLITS

if TYPE_CHECKING:
    import pyarrow as pa

    from diffinf.data.dataset import FaceDataset

ACTIONS = ("edited", "relabelled", "dropped", "kept", "untouched", "quarantined")
MADE_BY = b"made_by"  # schema metadata key of the provenance: settings and hashes of models, as JSON
_MEANING = {
    "edited": "the image was replaced by a synthetic edit; the label is as annotated",
    "relabelled": "the label was changed; the image is as it was",
    "dropped": "left out of the refined dataset",
    "kept": "flagged as suspicious, but left as it was; the reason says why",
    "untouched": "as it was, byte for byte",
    "quarantined": "image unreadable or label missing; no part in anything, copied where there is a file",
}


def provenance_path(out: Path) -> Path:
    """Where the provenance of the refined dataset `out` lies: beside it, for a folder of Parquet files is data."""
    return out.with_name(f"{out.name}.provenance.parquet")


def provenance(
    dataset: FaceDataset,
    replacements: Mapping[str, bytes],
    dropped: Collection[str],
    relabelled: Mapping[str, str],
    reasons: Mapping[str, str],
    paths: Mapping[str, str],
    folder: Path,
) -> pa.Table:
    """What became of every sample.

    Columns: id; target (""); action, one of `ACTIONS`; reason; split; label_before, label_after (null where there is
    none); path in the refined dataset (null where it is not there); source_sha256 of the image as it was; sha256
    of an edited image as it is now, in tables that of the PNG; tool. Rows are sorted by id.

    Args:
        dataset: the source.
        replacements: id -> the new image.
        dropped: ids left out.
        relabelled: id -> new class.
        reasons: id -> why, for what was changed or flagged and left.
        paths: id -> path, as `write_refined` returns it.
        folder: where the refined dataset lies now.
    """
    import pyarrow as pa

    rows = []
    for row, sample in enumerate(dataset.ids.tolist()):
        label = dataset.class_names[int(dataset.labels[row])]
        edited = replacements.get(sample) if sample not in dropped else None
        action = "kept" if sample in reasons else "untouched"
        action = "relabelled" if sample in relabelled else action
        action = "dropped" if sample in dropped else "edited" if edited is not None else action
        if edited is not None and not dataset.store.in_table:
            edited = (folder / paths[sample]).read_bytes()
        rows.append(
            {
                "id": sample,
                "target": "",
                "action": action,
                "reason": reasons.get(sample, ""),
                "split": str(dataset.splits[row]),
                "label_before": label,
                "label_after": None if action == "dropped" else relabelled.get(sample, label),
                "path": paths.get(sample),
                "source_sha256": dataset.source_sha256(row),
                "sha256": None if edited is None else hashlib.sha256(edited).hexdigest(),
            }
        )
    rows += [
        {"id": q.id, "target": "", "action": "quarantined", "reason": q.reason} for q in dataset.quarantine
    ]
    names = (
        "id",
        "target",
        "action",
        "reason",
        "split",
        "label_before",
        "label_after",
        "path",
        "source_sha256",
    )
    schema = pa.schema([(name, pa.string()) for name in (*names, "sha256", "tool")])
    ordered = sorted(rows, key=lambda row: str(row["id"]))
    return pa.Table.from_pylist([{**row, "tool": f"diffinf {__version__}"} for row in ordered], schema)


def dataset_card(dataset: FaceDataset, story: pa.Table, out: Path) -> str:
    """README.md of the refined dataset `out`, from its provenance.

    It names what was changed and by what, how often and why, and says that edited faces are synthetic.
    """
    actions = Counter(story["action"].to_pylist())
    told = zip(story["action"].to_pylist(), story["reason"].to_pylist(), strict=True)
    reasons = Counter((action, reason) for action, reason in told if reason)
    lines = [
        *front_matter(["synthetic"] if actions["edited"] else []),
        f"# {dataset.source.name.rstrip('/').rpartition('/')[2]}, refined",
        "",
        synthetic_notice(actions["edited"], story.num_rows - actions["dropped"]),
        "",
        f"Written by diffinf {__version__} in the layout `{dataset.source.layout}` of its source, whose fingerprint is",
        f"`{dataset.fingerprint}`. Validation and test are as they were.",
        "",
        "| what | samples | meaning |",
        "|---|---|---|",
        *(f"| {action} | {actions[action]} | {_MEANING[action]} |" for action in ACTIONS),
        "",
    ]
    if reasons:
        lines += ["| what | reason | samples |", "|---|---|---|"]
        lines += [f"| {action} | {cell(reason)} | {n} |" for (action, reason), n in sorted(reasons.items())]
        lines.append("")
    lines += [*class_table(dataset), "", *_makers(story)]
    lines.append(
        f"`{provenance_path(out).name}`, beside this folder, has a row for every sample: what was done and why, the"
        " label before and after, and the digest of the image as it was."
    )
    return "\n".join(lines) + "\n"


def _makers(story: pa.Table) -> list[str]:
    """Lines on what made the edits, where the provenance knows."""
    made_by = json.loads((story.schema.metadata or {}).get(MADE_BY, b"{}"))
    models = {role: digest for role, digest in made_by.pop("models", {}).items() if digest}
    lines = [f"- {name}: `{value}`" for name, value in made_by.items()]
    lines += [
        f"- weights of the {role.replace('_', ' ')}, sha256: `{digest}`" for role, digest in models.items()
    ]
    return ["What made the edits:", "", *lines, ""] if lines else []


def synthetic_notice(edited: int, total: int) -> str:
    """The sentence on synthetic content that belongs at the top of a card."""
    if not edited:
        return f"**Synthetic content:** none; no image of {total} was edited."
    return (
        f"**Synthetic content:** {edited} of {total} images were edited by a generative model. They do not show what"
        " a camera saw. Say so wherever this dataset, or what was trained on it, is published, and do not use edited"
        " faces to identify anybody."
    )


def front_matter(tags: list[str]) -> list[str]:
    """Lines at the top of a card that name its tags."""
    return ["---", "tags:", *(f"- {tag}" for tag in ["faces", "diffinf", *tags]), "---", ""]


def class_table(dataset: FaceDataset) -> list[str]:
    """Lines of a table of samples by class and split, as annotated."""
    lines = [f"| class, as annotated | {' | '.join(SPLITS)} |", f"|---|{'---|' * len(SPLITS)}"]
    for code, name in enumerate(dataset.class_names):
        counts = [int(np.sum((dataset.labels == code) & (dataset.splits == split))) for split in SPLITS]
        lines.append(f"| {cell(name)} | {' | '.join(map(str, counts))} |")
    return lines


def cell(text: str) -> str:
    """Text that cannot break out of a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
