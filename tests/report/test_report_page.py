import html
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fake_run import CLASSES, make_run

from diffinf.errors import UserError
from diffinf.files import read_json, read_table, save_tensors, write_table, write_text
from diffinf.report import plots, write_report


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(scope="module")
def finished_page(finished):
    return page(finished)


@pytest.fixture
def undrawn(monkeypatch):
    """Charts are set up but not drawn, which is most of the time that a page takes."""
    monkeypatch.setattr(plots, "_svg", lambda figure: "data:image/svg+xml;base64,")


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run that a test may spoil."""
    return shutil.copytree(finished, tmp_path / "run")


def page(run_dir) -> str:
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    return path.read_text(encoding="utf-8")


def plain(text: str) -> str:
    """The text a reader sees, in one line."""
    body = re.sub(r"<style>.*?</style>|<[^>]+>", " ", text, flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(body))


def section(text: str, name: str) -> str:
    return re.search(rf'<section id="{name}">.*?</section>', text, flags=re.S).group()


def test_the_preset_for_tests_is_told(run, undrawn):
    warning = "Preset tiny: the figures and pictures of this run mean nothing"
    assert warning not in plain(page(run))
    settings = (run / "config.yaml").read_text()
    write_text(run / "config.yaml", settings.replace("preset: cpu", "preset: tiny"))
    assert warning in plain(page(run))


def test_page_is_self_contained_and_small(finished_page):
    text = finished_page
    loads = re.findall(r"""(?:src|href|srcset|action|data)\s*=\s*["']([^"']*)""", text)
    assert loads and all(load.startswith(("data:", "#")) for load in loads)
    assert not re.search(r"url\(|@import|<script|<link(?! rel=\"icon\")|<iframe", text)
    assert len(text) < 6e6
    assert set(re.findall(r'href="#(\w+)"', text)) <= set(re.findall(r'id="(\w+)"', text))
    assert all("alt=" in tag for tag in re.findall(r"<img [^>]*>", text))


def test_page_is_the_same_when_made_again(finished, finished_page):
    assert page(finished) == finished_page


def test_headline_of_a_run_that_helped(finished_page):
    text = plain(finished_page)
    assert "32 of 160 training labels look wrong" in text
    assert "It helped" in text and "rose from" in text


@pytest.mark.parametrize(("gain", "verdict"), [(0.0, "It did not help"), (-0.3, "the classifier got worse")])
def test_headline_of_a_run_that_did_not_help(undrawn, tmp_path, gain, verdict):
    text = plain(page(make_run(tmp_path / "run", gain=gain, n_test=60)))
    assert verdict in text and "It helped" not in text


def test_no_flags_is_a_legal_result(undrawn, tmp_path):
    text = plain(page(make_run(tmp_path / "run", flag_share=0.0)))
    assert "No evidence of wrong labels among 160 training samples" in text
    assert "0 of 160" in text


def test_counts_are_those_of_the_tables(finished, finished_page):
    text = finished_page
    edits = pq.read_table(finished / "edits.parquet").to_pylist()
    edited = sum(edit["status"] == "edited" for edit in edits)
    kept = [edit["reason"] for edit in edits if edit["status"] == "kept"]
    assert f"{edited} faces were edited" in plain(text) and f"{len(kept)} stayed as they were" in plain(text)
    assert f"{edited} flagged pictures were replaced" in plain(section(text, "edited"))
    refused = plain(section(text, "refused"))
    for reason in set(kept):
        assert f" {reason} {kept.count(reason)} " in refused
    found = section(text, "found")
    scores = pq.read_table(finished / "scores.parquet").to_pylist()
    for name in CLASSES:
        rows = [row for row in scores if row["label"] == name]
        flagged = sum(row["flagged"] for row in rows)
        assert f" {name} {len(rows)} {flagged} " in plain(found)
    for arm, figures in read_json(finished / "summary.json")["arms"].items():
        row = re.search(rf"<b>{arm}</b>.*?</tr>", section(text, "gain")).group()
        assert f">{figures['balanced_accuracy']:.3f}<" in row and f"{figures['ci'][0]:.3f} to" in row


def test_gallery_shows_only_accepted_edits_and_marks_false_flags(finished, finished_page):
    edits = {edit["id"]: edit for edit in pq.read_table(finished / "edits.parquet").to_pylist()}
    truths = {row["id"]: row["truth"] for row in pq.read_table(finished / "evaluation.parquet").to_pylist()}
    text = finished_page
    for name, status in (("edited", "edited"), ("refused", "kept")):
        cards = re.findall(r'<article class="card">.*?</article>', section(text, name), flags=re.S)
        assert cards
        for card in cards:
            edit = edits[re.search(r"face\d{5}", card).group()]
            assert edit["status"] == status
            false_flag = truths[edit["id"]] == edit["label"]
            assert ("false flag" in card) == false_flag and ("rightly flagged" in card) != false_flag
            assert ("no edit attempted" in card) == (edit["reason"] == "class_unreliable")


def test_identity_is_never_named_when_it_was_not_judged(undrawn, tmp_path):
    text = plain(page(make_run(tmp_path / "run", identity=False)))
    assert "Identity was not judged" in text and "identity not judged" in text
    assert not re.search(r"identity [01]\.", text)


def test_without_truth_there_is_no_section_of_it(undrawn, tmp_path):
    text = page(make_run(tmp_path / "run", truth=False))
    assert 'id="truth"' not in text and "rightly flagged" not in text and "false flag" not in text


def test_truth_is_shown_where_it_is_known(finished, finished_page):
    text = plain(section(finished_page, "truth"))
    conversion = read_json(finished / "evaluation.json")["conversion"]
    assert f"Of {conversion['n']} flagged faces" in text and "After" not in text
    assert "what a random order reaches" in text
    assert "loss 0.440 self influence 0.310" in text


def test_names_from_the_data_are_escaped(tmp_path):
    classes = ("<script>alert(1)</script>", "a & b", '"quoted"')
    text = page(make_run(tmp_path / "run", classes=classes))
    assert "<script" not in text and "&lt;script&gt;" in text
    assert 'labelled "quoted"' not in text


STAGES = (
    ("compare.parquet", "compare"),
    ("evaluation.json", "evaluation.parquet"),
    ("edits.parquet", "repair"),
    ("scores.parquet", "flags.json", "summary.json", "surrogate", "autoencoder"),
    ("config.yaml", "events.jsonl", "dataset.parquet", "quarantine.parquet"),
)


def test_a_run_stopped_half_way_says_so(undrawn, run):
    notes = ("retrained yet", "", "edited yet", "scored yet", "No stage has finished yet")
    for files, note in zip(STAGES, notes, strict=True):
        for name in files:
            path = run / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        text = plain(page(run))
        assert note in text
        if note:
            assert "Not finished" in text
    assert not [path for path in run.iterdir() if path.name != "report.html"]


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "summary.json",
        "scores.parquet",
        "edits.parquet",
        "repair",
        "compare.parquet",
        "compare",
        "evaluation.json",
    ],
)
def test_any_one_file_may_be_missing(undrawn, run, name):
    path = run / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "</html>" in page(run)


def test_damaged_files_are_named_and_left_out(undrawn, run):
    write_text(run / "summary.json", "{")
    (run / "scores.parquet").write_bytes(b"not a table")
    (run / "repair" / "pictures.safetensors").write_bytes(b"x")
    (run / "compare" / "predictions" / "diffinf-0.safetensors").write_bytes(b"")
    shutil.copy(
        run / "compare" / "test.safetensors", run / "compare" / "predictions" / "relabel-1.safetensors"
    )
    save_tensors(run / "compare" / "predictions" / "filter-1.safetensors", {"logits": torch.zeros(3, 4)})
    text = plain(page(run))
    names = ("summary.json", "scores.parquet", "repair/pictures.safetensors")
    for name in (*names, "compare/predictions/filter-1.safetensors"):
        assert f"left out: {name}" in text


def test_one_seed_is_called_one_seed(undrawn, tmp_path):
    text = plain(page(make_run(tmp_path / "run", seeds=1)))
    assert "With one seed the intervals know nothing of the chance in training" in text


def test_costs_and_commands(finished_page):
    text = plain(section(finished_page, "costs"))
    assert "train-autoencoder 3 min 25 s" in text and "seed 7" in text and "torch 2.15.0" in text
    assert "diffinf run faces/labels.csv --config finished/config.yaml --out finished-again" in text
    assert "auroc 0.871" in text and "last roundtrip l1 0.034" in text


def test_quarantined_files_are_listed(finished_page):
    assert "broken1 images/broken1.png truncated image" in plain(section(finished_page, "quarantine"))


def test_no_directory_is_a_users_mistake(tmp_path):
    with pytest.raises(UserError, match="no such run directory"):
        write_report(tmp_path / "absent")


def test_of_ordered_classes_the_distance_stands_beside_the_accuracy(tmp_path, undrawn):
    path = make_run(tmp_path / "run")
    assert "mean error in classes" not in plain(page(path))
    table = read_table(path / "compare.parquet")
    errors = pa.array([0.625] * table.num_rows)
    write_table(path / "compare.parquet", table.append_column("mean_absolute_error", errors), CLASSES)
    text = plain(page(path))
    assert "mean error in classes" in text and "0.625" in text
