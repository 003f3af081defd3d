"""What the report says of the surrogate and of the objective that moved the codes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fake_run import make_run
from test_report_page import page, plain, section

from diffinf.files import read_json, write_json
from diffinf.report import plots


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "_svg", lambda figure: "data:image/svg+xml;base64,")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_figures_are_those_of_held_out_samples_beside_their_plot(finished: Path) -> None:
    found = section(page(finished), "edited")
    assert "Is the surrogate calibrated?" in found
    words = plain(found)
    assert "On 80 training samples held out" in words
    assert "AUROC 0.871; 0.5 is chance" in words and "its Brier score is 0.112" in words


def test_the_plot_has_all_bins(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[list[float]]] = []
    monkeypatch.setattr(plots, "calibration", lambda bins: drawn.append(bins.tolist()) or "data:,")
    page(run)
    assert drawn == [read_json(run / "surrogate" / "metrics.json")["bins"]]


def test_a_surrogate_that_cannot_be_ranked_says_so(run: Path) -> None:
    path = run / "surrogate" / "metrics.json"
    write_json(path, {**read_json(path), "auroc": None})
    assert "could not be ranked" in plain(section(page(run), "edited"))


def test_every_term_stands_with_its_weight_before_and_after(finished: Path) -> None:
    words = plain(section(page(finished), "edited"))
    assert "label the attribute head does not read the label 1.00 2.345 0.097" in words
    assert "influence the surrogate expects high influence 0.30 1.500 0.500" in words


@pytest.mark.parametrize("name", ["surrogate/metrics.json", "repair/terms.json"])
def test_either_may_be_missing(run: Path, name: str) -> None:
    (run / name).unlink()
    words = plain(section(page(run), "edited"))
    assert ("AUROC" in words) == (name != "surrogate/metrics.json")
    assert ("mean before" in words) == (name != "repair/terms.json")
    assert "What moved the codes" in words


def test_without_both_nothing_is_said(run: Path) -> None:
    (run / "repair" / "terms.json").unlink()
    (run / "surrogate" / "metrics.json").unlink()
    assert "What moved the codes" not in page(run)
