from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffinf.classify.model import load_classifier, save_classifier
from diffinf.cli import main
from diffinf.data.rendered.write import render_dataset
from diffinf.generate.folder import TABLE, image_path
from diffinf.stages import judging
from diffinf.stages.oracle import RECORD
from faces import png

CLASSES = ("ann", "ben", "cat")
FAMILY = {"ann": "north", "ben": "north", "cat": "south"}
SETTINGS = ("--set", "classifier.steps=30", "--set", "classifier.batch_size=16", "--device", "cpu")


def face(label: str, rng: np.random.Generator, noise: float = 25) -> bytes:
    """A noisy picture whose bright band tells the class."""
    pixels = rng.normal(90, noise, (32, 32))
    top = 11 * CLASSES.index(label)
    pixels[top : top + 10] += 70
    return png(pixels.clip(0, 255).astype(np.uint8))


def write_table(root: Path, rows: list[tuple[str, str, bytes]], *, family: bool = True) -> Path:
    """An image folder with a table, rows of (split, label, image)."""
    root.mkdir(parents=True)
    with (root / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "label", "split", "family"])
        for number, (split, label, data) in enumerate(rows):
            (root / f"{number:03}.png").write_bytes(data)
            table.writerow([f"{number:03}.png", label, split, FAMILY[label] if family else ""])
    return root


def write_folders(root: Path, asked: dict[str, list[bytes]]) -> Path:
    for label, images in asked.items():
        (root / label).mkdir(parents=True)
        for number, data in enumerate(images):
            (root / label / f"{number:02}.png").write_bytes(data)
    return root


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Real images; generated ones of the right classes, and ones where ben is drawn as ann; an oracle of the first."""
    root = tmp_path_factory.mktemp("rca")
    rng = np.random.default_rng(0)
    counts = (("train", 24), ("validation", 4), ("test", 12))
    rows = [(split, name, face(name, rng)) for split, n in counts for name in CLASSES for _ in range(n)]
    shown = {"good": {name: name for name in CLASSES}, "bad": {"ann": "ann", "ben": "ann", "cat": "cat"}}
    made = {
        kind: write_folders(
            root / kind, {name: [face(drawn[name], rng) for _ in range(10)] for name in CLASSES}
        )
        for kind, drawn in shown.items()
    }
    return {"root": root, "real": write_table(root / "real", rows), **made}


def rca(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "rca", *(str(argument) for argument in arguments)])
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def oracle(places: dict[str, Path]) -> Path:
    """What a first measurement leaves, with the saved oracle in it."""
    out = places["root"] / "out"
    pair = ("--generated", places["bad"], "--real", places["real"])
    assert rca(*pair, "--out", out, "--group", "family", *SETTINGS) == 0
    return out / "oracle"


def figures(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "rca.json").read_text()))


def test_a_drawn_class_that_is_another_one_is_found(oracle: Path, places: dict[str, Path]) -> None:
    found = figures(oracle.parent)
    assert found["real_accuracy"]["estimate"] > 0.9 and found["n_real"] == 36 and found["n_generated"] == 30
    assert found["rca"]["estimate"] == pytest.approx(2 / 3, abs=0.1)
    assert found["rca"]["low"] < found["rca"]["estimate"] < found["rca"]["high"]
    assert found["per_class"]["ben"]["rca"]["estimate"] < 0.2 < found["per_class"]["ann"]["rca"]["estimate"]
    worst = found["confused"][0]
    assert (worst["asked"], worst["read"]) == ("ben", "ann") and "less often" in found["verdict"]
    assert all(id_.startswith("ben/") for id_ in worst["example_ids"]) and len(worst["example_ids"]) == 4
    assert found["groups"]["north"]["inside"] == 1.0 and found["groups"]["north"]["classes"] == ["ann", "ben"]
    assert found["oracle"]["training_images"] == 72 and found["oracle"]["disjoint_from_real"] is True
    for name in found["files"][1:]:
        with Image.open(oracle.parent / name) as picture:
            picture.verify()
    assert found["files"] == ["rca.json", "confusion.png", "confused.png"]


def test_a_saved_oracle_gives_the_same_and_right_classes_pass(
    oracle: Path, places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = ("--real", places["real"], "--oracle", oracle, "--device", "cpu")
    assert rca(*pair, "--generated", places["bad"], "--out", tmp_path / "again") == 0
    again, first = figures(tmp_path / "again"), figures(oracle.parent)
    for name in ("rca", "per_class", "generated_confusion", "real_confusion", "confused"):
        assert again[name] == first[name]
    capsys.readouterr()
    assert rca(*pair, "--generated", places["good"], "--out", tmp_path / "good", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == figures(tmp_path / "good") and shown["rca"]["estimate"] > 0.9
    assert not shown["oracle"]["trained_here"] and shown["warnings"] != []  # such classes are too easy
    assert "too easy" in shown["warnings"][0]


def test_what_generate_wrote_is_taken_by_its_table(
    oracle: Path, places: dict[str, Path], tmp_path: Path
) -> None:
    made = tmp_path / "made"
    files, people = [], []
    for picture in sorted(places["good"].glob("*/*.png")):
        files.append(image_path(f"{picture.parent.name}/", int(picture.stem)))  # a name that no folder has
        people.append(picture.parent.name)
        (made / files[-1]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, made / files[-1])
    pq.write_table(pa.table({"file": files, "context_id": people}), made / TABLE)
    out = tmp_path / "out"
    assert rca("--generated", made, "--real", places["real"], "--oracle", oracle, "--out", out) == 0
    shown = figures(out)
    assert shown["rca"]["estimate"] > 0.8 and shown["n_generated"] == len(files)


def test_an_oracle_that_has_seen_the_real_images_is_refused(
    oracle: Path, places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = ("--generated", places["good"], "--real", places["real"], "--out", tmp_path / "out")
    assert rca(*pair, "--oracle", oracle, "--real-split", "all", "--device", "cpu") == 2
    assert "trained on 72 of the 120 real images" in capsys.readouterr().err
    assert rca(*pair, "--train", places["real"], "--real-split", "all", *SETTINGS) == 2
    assert "trained on 72 of the 120" in capsys.readouterr().err
    assert rca(*pair, "--real-split", "all", *SETTINGS) == 2
    assert "--train or --oracle" in capsys.readouterr().err
    assert not (tmp_path / "out" / "rca.json").exists()


def test_what_an_oracle_was_trained_on_is_believed_of_that_model_alone(
    oracle: Path, places: dict[str, Path], tmp_path: Path
) -> None:
    model, spec = load_classifier(oracle)
    save_classifier(tmp_path / "plain", model, spec)
    pair = ("--generated", places["good"], "--real", places["real"], "--device", "cpu")

    def judged(name: str) -> dict[str, Any]:
        assert rca(*pair, "--oracle", tmp_path / "plain", "--out", tmp_path / name) == 0
        return figures(tmp_path / name)

    found = judged("one")
    assert (
        "cannot be checked" in " ".join(found["warnings"]) and found["oracle"]["disjoint_from_real"] is None
    )
    next(model.parameters()).data.add_(1e-3)
    save_classifier(tmp_path / "plain", model, spec)
    (tmp_path / "plain" / RECORD).write_bytes((oracle / RECORD).read_bytes())
    assert "cannot be checked" in " ".join(judged("two")["warnings"])
    (tmp_path / "plain" / RECORD).write_text("[]")
    assert rca(*pair, "--oracle", tmp_path / "plain", "--out", tmp_path / "three") == 2


def test_images_in_two_splits_are_not_trained_on_and_copies_are_told(
    places: dict[str, Path], tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    test = [("test", name, face(name, rng)) for name in CLASSES for _ in range(6)]
    train = [("train", name, face(name, rng)) for name in CLASSES for _ in range(10)]
    twice = [("train", label, data) for _, label, data in test[:3]]
    rest = [("validation", name, face(name, rng)) for name in CLASSES]
    real = write_table(tmp_path / "real", [*test, *train, *twice, *rest], family=False)
    asked = {"ann": [train[0][2], test[0][2], face("ann", rng)], "cat": [face("cat", rng)]}
    made = write_folders(tmp_path / "made", asked)
    (made / "cat" / "broken.png").write_bytes(b"no picture")
    pair = ("--generated", made, "--real", real, "--out", tmp_path / "out")
    assert rca(*pair, "--group", "family", *SETTINGS) == 0
    found = figures(tmp_path / "out")
    told = " ".join(found["warnings"])
    assert found["oracle"]["training_images"] == 30 and "3 training images were left out" in told
    assert "1 of 4 generated images are copies of the oracle's training images" in told
    assert "1 of 4 generated images are copies of the real images" in told
    assert "1 generated images were left out, such as cat/broken.png" in told
    assert "Left out for want of generated images: ben" in told and found["groups"] == {}


def test_classes_must_be_the_oracles(
    oracle: Path, places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = write_folders(tmp_path / "made", {"ann": [face("ann", np.random.default_rng(0))], "Ben": [b""]})
    (made / "Ben" / "00.png").write_bytes(face("ben", np.random.default_rng(0)))
    pair = ("--generated", made, "--real", places["real"], "--out", tmp_path / "out", "--device", "cpu")
    assert rca(*pair, "--oracle", oracle) == 2
    said = capsys.readouterr().err
    assert "made" in said and "'Ben' (1 images)" in said and "'ann', 'ben', 'cat'" in said
    nameless, spec = load_classifier(oracle)
    save_classifier(tmp_path / "nameless", nameless, type(spec)(**{**vars(spec), "class_names": ()}))
    assert rca(*pair, "--oracle", tmp_path / "nameless") == 2
    assert "class_names is empty" in capsys.readouterr().err


def test_bad_input_is_named(
    oracle: Path, places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    real = ("--real", places["real"], "--oracle", oracle, "--device", "cpu", "--out", tmp_path / "out")
    nobody = ("--real", places["real"], "--oracle", tmp_path / "nobody", "--device", "cpu")
    for arguments, words in (
        (("--generated", places["good"], *nobody), "nobody: no such folder; expected a saved classifier"),
        (("--generated", tmp_path / "empty", *real), "empty: no images found"),
        (("--generated", tmp_path / "none", *real), "none: no such"),
        (("--generated", places["good"], *real, "--train", places["real"]), "give one of them"),
        (("--generated", places["good"], *real, "--real-split", "some"), "--real-split some"),
        (("--generated", places["good"], *real, "--group", "tribe"), "tribe"),
        (("--generated", places["good"], *real, "--generated-format", "tarball"), "data.format"),
        (("--generated", places["good"], *real[:-1], places["good"] / "out"), "inside the dataset"),
    ):
        assert rca(*arguments) == 2
        assert words in capsys.readouterr().err, words


def test_persons_as_classes_of_rendered_faces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the person is the class, the splits by person give way to splits by id."""
    real = render_dataset(tmp_path / "real.parquet", n=150, size=32, identities=4, noise="none", rate=0)
    made = render_dataset(tmp_path / "made.parquet", n=80, size=32, identities=4, noise="none", rate=0)
    arguments = ("--real", real, "--label", "identity", "--split", "", "--set", "classifier.steps=3")
    pair = ("--generated", made, "--generated-label", "identity", "--device", "cpu")
    assert rca("--real", real, *pair, "--out", tmp_path / "none") == 2  # persons against expressions
    assert "they are persons of the real images: name their column with --label" in capsys.readouterr().err
    assert rca(*arguments, *pair, "--out", tmp_path / "out") == 0
    shown = capsys.readouterr().out
    assert "errs too often" in shown and "by class, the worst first" in shown
    assert len(figures(tmp_path / "out")["classes"]) == 4


def test_what_cannot_be_measured_is_refused_before_an_oracle_is_trained(
    places: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(judging, "train_oracle", lambda *_, **__: pytest.fail("trained"))
    rng = np.random.default_rng(0)
    rows = [
        (split, name, face(name, rng)) for split in ("train", "validation") for name in CLASSES for _ in "ab"
    ]
    real = write_table(tmp_path / "real", [*rows, ("test", "ann", face("ann", rng))])
    made = write_folders(tmp_path / "made", {"cat": [face("cat", rng)]})
    strange = write_folders(tmp_path / "strange", {"dan": [face("cat", rng)]})
    out = ("--out", tmp_path / "out", *SETTINGS)
    for arguments, words in (
        (("--generated", made, "--real", real), "no class has both generated and real images"),
        (("--generated", strange, "--real", real), "does not know: 'dan'"),
        (
            ("--generated", places["good"], "--real", real, "--train", real, "--real-split", "all"),
            "trained on 6 of",
        ),
    ):
        assert rca(*arguments, *out) == 2
        assert words in capsys.readouterr().err, words
