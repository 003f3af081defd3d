"""The FER-noise benchmark: the file it builds, the dataset it prepares, what it reads out of a run."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from diffinf.config import DataConfig, make_config
from diffinf.data.dataset import open_dataset
from diffinf.files import save_tensors, write_json, write_table
from diffinf.run import Run

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import fer_data

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fer_noise.py"

USAGES = ("Training", "PublicTest", "PrivateTest")


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fer_noise", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fer_noise"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


fer = load()


def originals(folder: Path, *, n: int = 330, swap: bool = False) -> tuple[Path, Path]:
    """Two CSV files in the manner of the public ones; row 5 is no face, row 9 a copy of row 2.

    Every third row is labelled otherwise than the votes say, every eleventh has no clear truth.
    """
    rng = np.random.default_rng(0)
    faces, judged, named = [["emotion", "pixels", "Usage"]], [["Usage", "Image name", *fer_data.VOTES]], 0
    pictures = rng.integers(0, 256, (n, 48 * 48), dtype=np.uint8)
    pictures[9] = pictures[2]
    for row in range(n):
        usage = USAGES[0 if row < n * 0.7 else 1 if row < n * 0.9 else 2]
        truth = row % 7
        label = (truth + (row % 3 == 0)) % 7
        votes = [0] * 10
        votes[truth] = 4 if row % 11 == 0 else 7
        votes[8] = 10 - votes[truth] - (row % 11 == 0) * 4
        votes[9] = 10 - sum(votes)
        name = "" if row == 5 else f"fer{named:07d}.png"
        named += row != 5
        code = fer_data.FER2013_LABELS.index(fer.LABELS[label])
        faces.append([str(code), " ".join(map(str, pictures[row])), usage])
        judged.append([USAGES[1] if swap and row == 7 else usage, name, *map(str, votes)])
    paths = folder / "fer2013.csv", folder / "fer2013new.csv"
    for path, rows in zip(paths, (faces, judged), strict=True):
        with path.open("w", newline="") as handle:
            csv.writer(handle).writerows(rows)
    return paths


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fer")
    fer.main(["--build", *map(str, originals(folder)), str(folder / "fer.parquet")])
    return folder / "fer.parquet"


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in pq.read_table(path).to_pylist()}


def test_build_reads_both_files(built: Path, tmp_path: Path) -> None:
    rows = rows_of(built)
    usages = Counter(row["usage"] for row in rows.values())
    assert usages == {"Training": 231 - 2, "PublicTest": 66}  # no face and a copy left out, PrivateTest too
    assert "fer0000008" not in rows and "fer0000004" in rows  # row 9 is named 8: row 5 has no name
    row = rows["fer0000006"]  # row 7 of the originals
    assert (row["label"], row["votes"]) == (0, [7, 0, 0, 0, 0, 0, 0, 0, 3, 0])
    pixels = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
    original = np.random.default_rng(0).integers(0, 256, (330, 48 * 48), dtype=np.uint8)[7]
    assert pixels.dtype == np.uint8 and (pixels.ravel() == original).all()
    features = json.loads(pq.read_schema(built).metadata[b"huggingface"])["info"]["features"]
    assert features["label"] == {"names": list(fer.LABELS), "_type": "ClassLabel"}
    again = tmp_path / "again.parquet"
    fer.build(*originals(tmp_path), again)
    assert again.read_bytes() == built.read_bytes()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("order", "row 9: expected Usage Training as in fer2013.csv, found Usage PublicTest"),
        ("short", "row 41: expected Usage PrivateTest as in fer2013.csv, found no row"),
        ("long", "more rows than fer2013.csv"),
        ("column", "no column 'contempt'"),
        ("pixels", "row 2: expected 2304 pixels"),
        ("missing", "cannot be read"),
    ],
)
def test_build_refuses_files_that_do_not_fit(
    damage: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faces, judged = originals(tmp_path, n=40, swap=damage == "order")
    lines = judged.read_text().splitlines()
    if damage == "short":
        judged.write_text("\n".join(lines[:-1]))
    elif damage == "long":
        judged.write_text("\n".join([*lines, lines[-1]]))
    elif damage == "column":
        judged.write_text("\n".join(lines).replace("contempt", "scorn"))
    elif damage == "pixels":
        faces.write_text(faces.read_text().replace(" ", "", 1))
    elif damage == "missing":
        faces.unlink()
    with pytest.raises(SystemExit) as stopped:
        fer.main(["--build", str(faces), str(judged), str(tmp_path / "out.parquet")])
    assert stopped.value.code == 2 and words in capsys.readouterr().err
    assert not list(tmp_path.glob("*.parquet*")) and not list(tmp_path.glob(".*"))


def test_prepare_follows_the_protocol(built: Path, tmp_path: Path) -> None:
    prepared = fer.prepare(built, tmp_path / "all.parquet", None)
    source, found = rows_of(built), rows_of(tmp_path / "all.parquet")
    clear = {id_ for id_, row in source.items() if max(row["votes"][:7]) >= 5}
    assert found.keys() == clear and len(clear) < len(source)
    for id_, row in found.items():
        truth = int(np.argmax(source[id_]["votes"]))
        digest = int(hashlib.sha256(f"test:{id_}".encode()).hexdigest(), 16)
        test = source[id_]["usage"] == "Training" and digest % 10 < 3
        assert row["split"] == (
            "validation" if source[id_]["usage"] == "PublicTest" else "test" if test else "train"
        )
        assert (row["truth_label"], row["truth_votes"]) == (truth, source[id_]["votes"])
        assert row["label"] == (truth if test else source[id_]["label"])
        assert row["image"] == source[id_]["image"]
    training = [row for row in found.values() if row["split"] != "validation"]
    assert prepared.kept == {"Training": len(training), "PublicTest": len(found) - len(training)}
    wrong = [source[row["id"]]["label"] != row["truth_label"] for row in training]
    assert prepared.disagreement["all"] == pytest.approx(np.mean(wrong)) and 0.2 < np.mean(wrong) < 0.45


def test_prepared_file_opens_as_a_dataset(built: Path, tmp_path: Path) -> None:
    fer.prepare(built, tmp_path / "all.parquet", None)
    dataset = open_dataset(tmp_path / "all.parquet", DataConfig(id="id", split="split"))
    assert dataset.class_names == fer.LABELS
    assert (dataset.image_size, dataset.channels, len(dataset.quarantine)) == (48, 1, 0)
    truth, test = dataset.truth_labels(), dataset.rows("test")
    assert truth is not None and (truth[test] == dataset.labels[test]).all()
    assert (truth != dataset.labels)[dataset.rows("train")].any()
    assert dataset.truth()["truth_votes"].shape == (len(dataset), 10)


def test_a_subset_keeps_shares_and_the_smallest_hashes(built: Path, tmp_path: Path) -> None:
    whole = fer.prepare(built, tmp_path / "all.parquet", None)
    part = fer.prepare(built, tmp_path / "60.parquet", 60)
    assert sum(part.counts["train"].values()) == 60
    assert part.counts["validation"] == whole.counts["validation"]
    assert part.counts["test"] == whole.counts["test"]
    everything, kept = rows_of(tmp_path / "all.parquet"), rows_of(tmp_path / "60.parquet")
    total = sum(whole.counts["train"].values())
    for code, name in enumerate(fer.LABELS):
        assert abs(part.counts["train"][name] - 60 * whole.counts["train"][name] / total) < 1
        members = [id_ for id_, row in everything.items() if row["split"] == "train" and row["label"] == code]
        members.sort(key=lambda id_: hashlib.sha256(f"0:{id_}".encode()).hexdigest())
        chosen = {id_ for id_, row in kept.items() if row["split"] == "train" and row["label"] == code}
        assert chosen == set(members[: part.counts["train"][name]])


def test_prepare_only_prints_and_reports(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "report.json"
    arguments = ["--data", str(built), "--subset", "all", "--out", str(tmp_path / "out"), "--prepare-only"]
    fer.main([*arguments, "--json", str(target)])
    printed = capsys.readouterr().out
    assert "22820" in printed and "disagree" in printed and "not the rows" in printed
    report = json.loads(target.read_text())
    assert report["results"] is None and report["data"]["sha256"] == fer.file_sha256(built)
    assert str(tmp_path) not in target.read_text()  # places on this machine are nobody's business
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["all.parquet"]


@pytest.mark.parametrize(
    ("change", "words"),
    [("subset", "8k, all or a number"), ("votes", "no column votes"), ("label", "expected one of neutral")],
)
def test_mistakes_are_one_line(
    change: str, words: str, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pq.read_table(built)
    if change == "votes":
        table = table.drop(["votes"])
    elif change == "label":
        names = pa.array(["joy"] * table.num_rows)
        table = table.set_column(2, "label", names).replace_schema_metadata(None)
    pq.write_table(table, tmp_path / "fer.parquet")
    subset = "some" if change == "subset" else "all"
    with pytest.raises(SystemExit) as stopped:
        fer.main(["--data", str(tmp_path / "fer.parquet"), "--subset", subset, "--out", str(tmp_path / "o")])
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and words in message and message.count("\n") == 1


def finished_run(folder: Path) -> Run:
    """A run with three seeds of three arms: diffinf right everywhere but on disgust, one filter diverged."""
    run = Run.create(folder, make_config("faces.parquet"), "0" * 64)
    labels = torch.arange(70) % 7
    save_tensors(run.compare / "test.safetensors", {"labels": labels})
    rows = []
    for arm in ("baseline", "filter", "diffinf"):
        for seed in range(3):
            diverged = (arm, seed) == ("filter", 1)
            rows.append({"arm": arm, "seed": seed, "diverged": diverged})
            guess = labels.clone()
            guess[labels == 5] = 0
            if arm != "diffinf":
                guess[: 20 + seed] = 0
            if not diverged:
                logits = torch.nn.functional.one_hot(guess, 7).float()
                path = run.compare / "predictions" / f"{arm}-{seed}.safetensors"
                save_tensors(path, {"logits": logits})
    write_table(run.comparison, pa.Table.from_pylist(rows), fer.LABELS)
    figures = {"average_precision": 0.7, "base_rate": 0.3, "precision_at_flagged": None, "ci": [0.6, 0.8]}
    figures |= {"n": 9, "n_flagged": 0, "rivals": {"margin": 0.5}, "curve": [[0, 1]], "per_class": {}}
    shares = {"n": 4, "before": 0.1, "before_ci": [0, 0.2], "roundtrip": 0.2, "roundtrip_ci": [0, 0.4]}
    shares |= {"conversion": 0.5, "ci": [0.2, 0.8]}
    write_json(run.evaluation, {"detection": figures, "conversion": shares})
    counts = {"edited": 1, "kept": 3, "relabelled": 0, "dropped": 0, "kept_reasons": {"judge": 3}}
    write_json(run.summary, counts)
    return run


def test_results_measure_arms_with_and_without_disgust(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = fer.results(finished_run(tmp_path / "run"))
    arms, differences = found["arms"], found["diffinf_minus"]
    assert arms["diffinf"]["balanced_accuracy_six"]["estimate"] == 1
    assert arms["diffinf"]["balanced_accuracy_seven"]["estimate"] == pytest.approx(6 / 7)
    assert arms["filter"]["seeds"] == [0, 2] and arms["filter"]["diverged"] == 1
    assert differences.keys() == {"baseline", "filter"} and differences["filter"]["seeds"] == 2
    expected = 1 - arms["baseline"]["balanced_accuracy_six"]["estimate"]
    assert differences["baseline"]["estimate"] == pytest.approx(expected) and expected > 0
    assert differences["baseline"]["p_value"] <= differences["baseline"]["p_holm"] <= 1
    json.dumps(found, allow_nan=False)
    fer.show_results(found, fer.Console(width=140))
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("0.700", "base rate", "round trip", "2 (1 diverged)", "0.857"))


def test_places_are_reduced_to_names() -> None:
    command = ["--data", "/data/fer.parquet", "--set", "autoencoder.weights=/models/a", "--out", "runs/x"]
    expected = ["--data", "fer.parquet", "--set", "autoencoder.weights=a", "--out", "runs/x"]
    assert fer.shareable({"command": [*command, 3, None]}) == {"command": [*expected, 3, None]}
