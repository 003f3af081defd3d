"""The benchmark of the repair: what its figures are made of, how evaluations are counted, and the whole way."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffinf.classify.model import ClassifierSpec
from diffinf.config import RepairConfig, make_config
from diffinf.data.rendered.render import render_faces
from diffinf.data.rendered.sample import sample_faces
from diffinf.data.rendered.tasks import class_names
from diffinf.data.rendered.write import render_dataset
from diffinf.diffusion.autoencoder import DiffusionAutoencoder, create_autoencoder
from diffinf.diffusion.first_stage import PatchComponents
from diffinf.repair.edit import decode_edit, take_apart
from diffinf.repair.editors import Wish
from diffusion.tiny_autoencoder import SPEC, make_autoencoder, pictures

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import repair_judges
import repair_measures as measures
import repair_quality
import repair_run
import repair_trials
from repair_tables import show

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "repair.py"
IDS = [f"face{row:03d}" for row in range(200)]


def load() -> ModuleType:
    """The script, which is called as a folder of the tests is."""
    spec = importlib.util.spec_from_file_location("repair_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark = load()


def test_halves_are_those_of_the_hash() -> None:
    first, second = measures.in_half(IDS, "0"), measures.in_half(IDS, "1")
    expected = [int(hashlib.sha256(f"dev:{id_}".encode()).hexdigest(), 16) % 2 for id_ in IDS]
    assert second.astype(int).tolist() == expected and (first ^ second).all()
    assert measures.in_half(IDS, "all").all() and 70 < first.sum() < 130


def test_nobody_chose_the_samples() -> None:
    order = sorted(IDS, key=lambda id_: hashlib.sha256(f"sheet:{id_}".encode()).hexdigest())
    assert [IDS[row] for row in measures.chosen(IDS, 40, "sheet:")] == order[:40]
    assert [IDS[::-1][row] for row in measures.chosen(IDS[::-1], 40, "sheet:")] == order[:40]
    assert len(measures.chosen(IDS, 999)) == len(IDS)


def test_psnr() -> None:
    dark = np.zeros((3, 3, 8, 8), dtype=np.uint8)
    other = dark.copy()
    other[1] = 255
    other[2, 0] = 10  # a third of the values: mean square 100 / 3
    equal, opposite, little = measures.psnr(dark, other)
    assert equal == math.inf and opposite == 0
    assert little == pytest.approx(10 * math.log10(255**2 * 3 / 100))


def test_drift_is_in_units_of_the_spread_between_persons() -> None:
    persons = np.array(["a", "a", "b", "b"])
    values = np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0], [6.0, 1.0]])
    between, over_all = measures.spread(values, persons), measures.spread(values)
    assert between.tolist() == [2, 0] and over_all[0] == pytest.approx(5**0.5)
    moved = values + np.array([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    found = measures.drift(values, moved, between)
    assert found[0] == 0.5 and math.isnan(found[1]), "opposite changes do not cancel, a constant has no scale"
    assert np.isnan(measures.drift(values[:0], moved[:0], between)).all()


def test_factors_that_nobody_can_read_are_left_out_of_the_drift() -> None:
    truth = np.random.default_rng(0).normal(size=(500, 3))
    read = truth.copy()
    read[:, 1] = truth[::-1, 1]
    truth[:, 2] = read[:, 2] = 1
    quality = measures.r_squared(truth, read)
    assert quality[0] == 1 and quality[1] < 0 and quality[2] == -math.inf
    row = measures.grouped_drift(
        np.array([0.1, 9.0, 0.3, 0.2]),
        np.array([True, False, True, True]),
        ["age", "gaze", "yaw", "pitch"],
        ["identity", "nuisance", "nuisance", "nuisance"],
    )
    assert row["identity"] == 0.1 and row["nuisance"] == pytest.approx(0.25)
    assert list(row["worst"]) == ["yaw", "pitch", "age"]


def test_shares_and_paired_differences_know_their_n() -> None:
    assert measures.share([]) == {"share": None, "ci": None, "n": 0}
    found = measures.share([True, True, False, False])
    assert found["share"] == 0.5 and found["ci"][0] < 0.2 < 0.8 < found["ci"][1] and found["n"] == 4
    a, b = np.array([True] * 6 + [False] * 4), np.array([True] * 4 + [False] * 6)
    assert measures.paired(a, b)["difference"] == pytest.approx(0.2)
    assert measures.paired(a, a)["ci"] == [0, 0]
    assert measures.paired(a[:1], b[:1])["difference"] is None


def test_every_row_given_to_the_network_is_counted() -> None:
    model: DiffusionAutoencoder = make_autoencoder()
    images, shown = pictures(3, 11), torch.tensor([[0.1, 0.9], [1.0, 0.0], [0.3, 0.7]])
    config = RepairConfig(diffusion_steps=3, inversion_steps=5, depth=0.5, guidance=2.0, finish_steps=2)
    with repair_trials.counted(model) as before:
        parts = take_apart(model, images, shown, config)
    assert before.rows == [3] * 8 and before.guide == 0, "5 steps up, 3 down"
    with repair_trials.counted(model) as during:
        wish = Wish(parts.code, torch.tensor([0, 1, 0]), shown)
        counted = decode_edit(model, parts, wish, 1.0, config)
    assert during.rows == [3] * 3 + [6] * 2, "one context draws, both finish"
    assert during.guide == 3 * 6, "noise and its negative"
    again = decode_edit(model, parts, wish, 1.0, config)
    assert torch.equal(counted.images, again.images), "counting changes nothing"
    assert len(during.rows) == 5, "and it has ended"


class FakeDlib:
    """Finds no face in black images, and embeds the others by their first pixel as an angle."""

    name = "dlib"
    judges_identity = True

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        angle = images[:, 0, 0, 0].float() / 40
        return torch.stack([angle.cos(), angle.sin()], 1), angle > 0


def test_dlib_judges_where_it_finds_a_face(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair_quality, "DlibFaces", FakeDlib)

    def images(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4)

    edits = [{"status": status} for status in ("edited", "edited", "edited", "kept", "edited")]
    flagged: Any = SimpleNamespace(
        workspace=SimpleNamespace(images=images(*range(1, 120), 0), seed=0),
        pictures={"original": images(50, 50, 50, 50, 0), "edited": images(50, 120, 0, 120, 9)},
        edits=edits,
        counted=np.ones(5, dtype=bool),
    )
    figures, judged = repair_quality.dlib_identity(flagged)
    assert judged is not None
    cosines, threshold = judged
    assert 0.9 < threshold < 1 and figures["no_face_in_training_images"]["share"] == pytest.approx(1 / 120)
    assert figures["above"] == measures.share([True, False, False]), "a face that is lost is not the person"
    assert figures["not_judged"] == measures.share([False, False, False, True])
    assert cosines[0] == pytest.approx(1) and cosines[1] < threshold and math.isnan(cosines[2])
    assert cosines[4] == 1, "where the original shows no face, nothing is said against the edit"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rendered", "--parts", "quality,colour"], "colour: no such part"),
        (["--rendered", "--steps-reference", "250"], "250: expected steps of inversion and of decode"),
        (["--rendered", "--steps", "3,none"], "3,none: expected positive numbers"),
        ([], "one of the arguments --rendered --data is required"),
    ],
)
def test_options_that_do_not_fit(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(arguments)
    assert stopped.value.code == 2 and words in capsys.readouterr().err


def test_other_faces_lie_in_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(path: Path, *, preset: str, seed: int) -> None:
        path.write_text(f"{preset}, seed {seed}")

    monkeypatch.setattr(repair_run, "render_dataset", draw)
    for seed in (0, 7):
        options = SimpleNamespace(rendered=True, out=tmp_path, faces_seed=seed)
        path, said = repair_run.dataset(options)  # type: ignore[arg-type]
        assert path.read_text() == said["rendered"] == f"bench-1, seed {seed}"
    assert len(list(tmp_path.iterdir())) == 2


def test_the_reader_of_factors_learns_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lesson = repair_judges.Lesson(faces=600, persons=60, roundtrips=64, steps=120)
    monkeypatch.setattr(repair_judges, "READER", lesson)
    workspace = SimpleNamespace(
        run=SimpleNamespace(key=lambda stage: stage),
        config=make_config("x", preset_name="tiny"),
        dataset=SimpleNamespace(image_size=32, class_names=class_names("expression")),
        spec=ClassifierSpec("small_cnn", 5, 3, 32),
        device=torch.device("cpu"),
    )
    spec = replace(SPEC, class_names=class_names("expression"), image_channels=3, image_size=32)
    stage = PatchComponents.fit(pictures(64, 7, size=32, channels=3), spec.latent_channels, spec.patch_size)
    model = create_autoencoder(spec, stage).freeze()
    names = ["yaw", "skin_tone", "exposure"]
    reader = repair_judges.FactorReader(workspace, model, names, tmp_path)  # type: ignore[arg-type]
    factors, _ = sample_faces(200, 5, "expression", identities=50)  # other persons
    images = torch.from_numpy(render_faces(factors, 32))
    values = repair_judges.factor_values(factors, names)
    assert (measures.r_squared(values, reader.read(images)) > 0.3).all()
    before = (tmp_path / "model.safetensors").stat().st_mtime_ns
    again = repair_judges.FactorReader(workspace, model, names, tmp_path)  # type: ignore[arg-type]
    assert (again.read(images) == reader.read(images)).all() and not len(reader.read(images[:0]))
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == before
    monkeypatch.setattr(repair_judges, "READER", replace(lesson, roundtrips=8, steps=2))
    repair_judges.FactorReader(workspace, model, names, tmp_path)  # type: ignore[arg-type]
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns > before


@pytest.mark.slow
def test_the_whole_way_on_rendered_faces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair_judges, "READER", repair_judges.Lesson(64, 16, 16, steps=10))
    render_dataset(tmp_path / "faces.parquet", n=200, size=32, identities=40, rate=0.3)
    loose = ("judge_margin=0", "spare=0", "roundtrip_limit=2", "influence_quantile=1", "identity=none")
    command = ["--rendered", "--out", str(tmp_path), "--preset", "tiny", "--n", "8"]
    command += ["--steps", "2,3", "--steps-reference", "4,3", "--set", "device=cpu"]
    command += ["--set", "autoencoder.weights=null", "--set", "compare.workers=1"]
    command += [part for setting in loose for part in ("--set", f"repair.{setting}")]
    benchmark.main(command)
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("balanced oracle", "guided (default)", "neither", "4 + 3"))
    report = json.loads((tmp_path / "report.json").read_text())
    assert str(tmp_path) not in json.dumps(report) and report["results"].keys() == set(benchmark.PARTS)
    quality, steps = report["results"]["quality"], report["results"]["steps"]
    shares = quality["conversion"]["oracle"]
    assert sum(row["n"] for row in shares["by_class"].values()) == shares["overall"]["n"] > 0
    assert quality["roundtrip"]["n"] == quality["n_flagged"]
    assert [row["is_setting"] for row in steps["rows"]] == [True, False, False]
    errors = [row["error"] for row in steps["rows"]]
    assert errors[0] > errors[1], "more steps, smaller error"
    assert [row["evaluations"]["max"] for row in steps["rows"]] == [12, 17, 18], (
        "one context draws, two finish"
    )
    terms = report["results"]["ablation"]["rows"]
    assert terms["as set"]["terms"]["label"] < terms["codes not moved"]["terms"]["label"]
    assert (tmp_path / "steps.png").stat().st_size > 1000
    # What was measured is read back; another half is measured again.
    before = (tmp_path / "quality.json").read_bytes()
    benchmark.main([*command, "--parts", "quality"])
    assert (tmp_path / "quality.json").read_bytes() == before
    benchmark.main([*command, "--parts", "quality", "--half", "0", "--fresh"])
    half = json.loads((tmp_path / "quality.json").read_text())["results"]
    assert 0 < half["n_flagged"] < quality["n_flagged"]
    show({"quality": half}, benchmark.Console(width=140))
