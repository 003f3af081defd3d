"""What the report says of identity: who judged, how that was calibrated, on how many images the judge failed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_run import make_run
from test_report_page import page, plain, section

from diffinf.files import read_json, read_table, write_json, write_table
from diffinf.report import plots
from diffinf.report.files import read_run
from diffinf.report.identity import identity


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "_svg", lambda figure: "data:image/svg+xml;base64,")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def words(run: Path) -> str:
    found = identity(read_run(run))
    assert found is not None
    return " ".join(found["sentences"])


def rewrite_gate(run: Path, threshold: float | None, **figures: Any) -> None:
    gate = read_json(run / "repair" / "gate.json")
    gate["identity_threshold"] = threshold
    gate["identity"] = {**gate["identity"], "threshold": threshold, **figures}
    write_json(run / "repair" / "gate.json", gate)


def judged_by_dlib(run: Path, threshold: float | None = 0.9) -> None:
    rewrite_gate(
        run,
        threshold,
        judge="dlib",
        calibrated_on="pairs of different images",
        failed=0.17,
        accepted=None,
        pairs_same=0,
        same=[],
    )


def test_the_judge_of_the_datasets_persons_is_named_with_its_threshold(finished: Path) -> None:
    text = words(finished)
    assert "an embedder trained on persons that the dataset names" in text
    assert "from a similarity of 0.42 on, which 1.0" in text and "4,200 pairs of different persons" in text
    assert "Of 310 pairs of one person 83.0" in text
    assert "found no face" not in text  # it takes every image for a face
    found = identity(read_run(finished))
    assert found is not None and found["chart"]
    assert "Is it still the same person?" in plain(section(page(finished), "edited"))


def test_what_dlib_could_not_judge_is_counted(run: Path) -> None:
    judged_by_dlib(run)
    table = read_table(run / "edits.parquet")
    rows = table.to_pylist()
    accepted = [row for row in rows if row["status"] == "edited"]
    lost = next(row for row in rows if row["reason"] == "identity")
    for row in (*accepted[:2], lost):
        row["identity_similarity"] = None
    write_table(run / "edits.parquet", type(table).from_pylist(rows, table.schema))
    text = words(run)
    assert "dlib's face recogniser" in text and "pairs of different images" in text
    assert "some of these pairs may show one person" in text
    assert "found no face in 17.0" in text
    assert f"For 2 of {len(accepted)} accepted edits identity was not judged" in text
    assert "1 edits were refused because it found none" in text
    assert "nothing kept to the person" in text
    assert "identity not judged" in plain(page(run))


def test_the_head_that_was_taught_is_said_to_be_as_good_as_it_is(run: Path) -> None:
    judged_by_dlib(run)
    quality = {"trained": 640, "held_out": 160, "cosine": 0.16, "auroc": 0.715}
    write_json(run / "surrogate" / "identity_head.json", quality)
    text = words(run)
    assert "71.5" in text and "160 images held out" in text and "nothing kept" not in text


@pytest.mark.parametrize("too_few", [True, False])
def test_identity_that_was_not_judged_is_said_so(tmp_path: Path, too_few: bool) -> None:
    run = make_run(tmp_path / "run", identity=False)
    if too_few:
        write_json(
            run / "repair" / "gate.json",
            {"identity_threshold": None, "identity": {"judge": "dlib", "threshold": None, "failed": 0.995}},
        )
    text = words(run)
    assert text.startswith("Identity was not judged in this run")
    assert ("found no face in 99.5" in text) == too_few
    assert "similarity of" not in text


def test_similar_codes_are_never_called_identity(tmp_path: Path) -> None:
    text = plain(page(make_run(tmp_path / "run", identity=False)))
    assert "code similarity 0." in text and "identity 0." not in text


def test_a_gate_written_before_there_was_a_choice_is_read(run: Path) -> None:
    old = {"threshold": 0.3, "accepted": 0.5, "persons": 2, "pairs_same": 6, "pairs_other": 9}
    write_json(run / "repair" / "gate.json", {"identity_threshold": 0.3, "identity": old})
    assert "similarity of 0.30 on." in words(run)
    assert "Is it still the same person?" in page(run)


def test_before_the_repair_nothing_is_said(run: Path) -> None:
    (run / "edits.parquet").unlink()
    assert identity(read_run(run)) is None
    assert "Is it still the same person?" not in page(run)


def test_the_own_head_knows_the_persons_only_if_it_was_trained_here(run: Path) -> None:
    write_json(run / "repair" / "terms.json", {"identity": {"weight": 4.0, "before": 0.0, "after": 0.1}})
    config = run / "config.yaml"
    settings = yaml.safe_load(config.read_text(encoding="utf-8")) or {}

    def words_with(weights: str | None) -> str:
        autoencoder = {**(settings.get("autoencoder") or {}), "weights": weights}
        config.write_text(yaml.safe_dump({**settings, "autoencoder": autoencoder}), encoding="utf-8")
        return words(run)

    assert "trained on the persons of this dataset" in words_with(None)
    taken = words_with("rendered")
    assert "weights were taken" in taken and "trained on the persons of this dataset" not in taken
    write_json(run / "repair" / "terms.json", {"identity": {"weight": 0.0, "before": 0.0, "after": 0.1}})
    assert "codes were moved" not in words_with(None)
