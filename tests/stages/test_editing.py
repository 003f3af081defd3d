"""A user's own pictures edited: any shape of file, any kind of model, and what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

import diffinf
from diffinf.classify.model import ClassifierSpec, create_classifier, save_classifier
from diffinf.cli import main
from diffinf.config import RunConfig
from diffinf.data.images import square
from diffinf.errors import UserError
from diffinf.files import write_table
from diffinf.run import Run
from diffinf.stages.editing import ATTRIBUTE_HEAD, CLASSIFIER, edit_images
from diffinf.stages.strips import draw_strip, write_strip
from diffusion.tiny_autoencoder import SPEC, make_autoencoder, pictures
from diffusion.tiny_diffae import make_diffae
from faces import png

# The files are noise, and what they are is told.
pytestmark = pytest.mark.filterwarnings("ignore:.*the autoencoder was trained on other data")
QUICK = {"strengths": [0.5, 1.0], "diffusion_steps": 2, "code_steps": 2, "batch_size": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder alone: grey, 16 px, calm or smile."""
    path = tmp_path_factory.mktemp("model") / "autoencoder"
    make_autoencoder().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Run:
    """A run that has come as far as its autoencoder."""
    config = RunConfig(dataset="faces", device="cpu", repair=QUICK)
    run = Run.create(tmp_path_factory.mktemp("runs") / "run", config, "f" * 64)
    make_autoencoder().save_pretrained(run.autoencoder)
    spec = ClassifierSpec("small_cnn", 2, SPEC.image_channels, SPEC.image_size, SPEC.class_names)
    save_classifier(run.classifier, create_classifier(spec, seed=1), spec)
    people = pa.table({"id": ["a"], "identity": pa.array(["p"], pa.string())})
    write_table(run.path / "dataset.parquet", people, SPEC.class_names)
    run.stage("train-autoencoder", "key", lambda: None)
    return run


def face(path: Path, height: int, width: int, channels: int = 1) -> Path:
    shape = (height, width) if channels == 1 else (height, width, channels)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)))
    return path


@pytest.mark.parametrize(("height", "width", "channels"), [(16, 16, 1), (31, 57, 1), (40, 17, 3), (5, 3, 3)])
def test_pictures_of_any_shape(tmp_path: Path, run: Run, height: int, width: int, channels: int) -> None:
    path = face(tmp_path / "face.png", height, width, channels)
    (edit,) = edit_images([path], "smile", run.path, device="cpu")
    assert edit.source_size == (width, height) and edit.size == 16
    assert edit.resized == ((height, width) != (16, 16))
    expected = square(Image.open(path), size=16, channels=1)
    assert np.array_equal(edit.original.numpy(), expected)
    for image in (edit.roundtrip, *edit.edited.values()):
        assert image.dtype == torch.uint8 and image.shape == edit.original.shape
    assert list(edit.edited) == list(edit.after) == [0.5, 1.0] and edit.read_by == CLASSIFIER
    for shares in (edit.before, edit.unedited, *edit.after.values()):
        assert list(shares) == ["calm", "smile"] and sum(shares.values()) == pytest.approx(1)
    difference = edit.roundtrip.float() - edit.original.float()
    assert edit.roundtrip_error == pytest.approx(float(difference.abs().mean() / 127.5))


def test_a_stronger_edit_differs_and_the_same_one_is_the_same(tmp_path: Path, run: Run) -> None:
    paths = [face(tmp_path / f"{n}.png", 20 + n, 20) for n in range(3)]
    first = edit_images(paths, "smile", run.path, strengths=[2.0, 0.5, 2.0], device="cpu")
    assert [list(edit.edited) for edit in first] == [[0.5, 2.0]] * 3
    assert not torch.equal(first[0].edited[0.5], first[0].edited[2.0])
    again = edit_images(paths[2:], "smile", run.path, strengths=[2.0], device="cpu")
    assert torch.equal(again[0].edited[2.0], first[2].edited[2.0]), "neighbours do not matter"


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_picture_of_other_data_is_told_and_edited_all_the_same(tmp_path: Path, run: Run) -> None:
    alike, flat = tmp_path / "alike.png", tmp_path / "flat.png"
    alike.write_bytes(png(pictures(1, 8)[0, 0].numpy()))
    flat.write_bytes(png(np.full((16, 16), 90, dtype=np.uint8)))
    (known,) = edit_images([alike], "smile", run.path, strengths=[1.0], device="cpu")  # in silence
    assert known.warning is None
    with pytest.warns(UserWarning, match=r"flat\.png: the autoencoder was trained on other data: "):
        edits = edit_images([alike, flat], "smile", run.path, strengths=[1.0], device="cpu")
    assert edits[0].warning is None and (edits[1].warning or "").startswith("the autoencoder was trained on")
    found = write_strip(edits, tmp_path / "strip.png")
    assert [row["warning"] for row in found["pictures"]] == [None, edits[1].warning]


def test_an_autoencoder_alone_reads_by_its_head(tmp_path: Path, folder: Path) -> None:
    path = face(tmp_path / "face.png", 16, 16)
    (edit,) = edit_images([path], "calm", folder, strengths=[1.0], device="cpu")
    assert edit.read_by == ATTRIBUTE_HEAD and edit.shown == "smile" and edit.label == "calm"
    model = make_autoencoder()
    logits = model.read_code(model.code(model.to_latents(edit.original[None])))[0]
    assert edit.before["calm"] == pytest.approx(
        float(logits.softmax(1)[0, 0]), abs=1e-2
    )  # weights saved in 16 bits
    given = edit_images([path], "calm", folder, strengths=[1.0], shown="smile", device="cpu")
    assert torch.equal(given[0].edited[1.0], edit.edited[1.0])


def test_what_is_refused(tmp_path: Path, run: Run, folder: Path) -> None:
    path = face(tmp_path / "face.png", 16, 16)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(path.read_bytes()[:60])
    for name, message in (
        ("text.png", "not a readable image"),
        ("cut.png", "cut.png"),
        ("none.png", "no such file"),
        (".", r"is a folder; expected picture files, such as .*\*\.png"),
    ):
        with pytest.raises(UserError, match=message):
            edit_images([path, tmp_path / name], "smile", run.path, device="cpu")
    for arguments, message in (
        ({"to": "angry"}, "--to angry: no such class; expected one of calm, smile"),
        ({"to": "smile", "shown": "angry"}, "--from angry: no such class"),
        ({"to": "smile", "shown": "smile"}, "expected another class than --to"),
        ({"to": "smile", "strengths": [0.0]}, "--strength"),
        ({"to": "smile", "strengths": [float("nan")]}, "--strength"),
        ({"to": "smile", "model": tmp_path / "none"}, "no such folder"),
        ({"to": "smile", "model": tmp_path}, "expected an autoencoder"),
    ):
        with pytest.raises(UserError, match=message):
            edit_images([path], **{"model": folder, "device": "cpu", **arguments})
    young = Run.create(tmp_path / "young", run.config, "f" * 64)
    with pytest.raises(UserError, match="no autoencoder yet"):
        edit_images([path], "smile", young.path, device="cpu")
    make_diffae().save(tmp_path / "imported")
    with pytest.raises(UserError, match="knows no labels"):
        edit_images([path], "smile", tmp_path / "imported", device="cpu")


def test_the_strip_and_each_edit_beside_it(tmp_path: Path, run: Run) -> None:
    paths = [face(tmp_path / "a" / "face.png", 20, 20), face(tmp_path / "b" / "face.png", 16, 16, 3)]
    edits = edit_images(paths, "smile", run.path, device="cpu")
    found = write_strip(edits, tmp_path / "out" / "strip.png", save_all=True)
    strip = Image.open(tmp_path / "out" / "strip.png")
    assert strip.size == draw_strip(edits).size
    assert strip.width > 4 * 128 and strip.height > 2 * 128, "a row a picture, a column a state"
    assert [row["resized"] for row in found["pictures"]] == [True, False]
    saved = {after["image"] for row in found["pictures"] for after in row["after"]}
    assert len(saved) == 4 and set(map(Path, saved)) < set((tmp_path / "out").iterdir())
    for row, edit in zip(found["pictures"], edits, strict=True):
        for after in row["after"]:
            pixels = np.asarray(Image.open(after["image"]))
            assert np.array_equal(pixels, edit.edited[after["strength"]][0].numpy())


def test_pictures_of_one_name_keep_their_edits_apart(tmp_path: Path, run: Run) -> None:
    paths = [face(tmp_path / name, 16, 16) for name in ("a/face.png", "b/face.png", "1-face.png")]
    edits = edit_images(paths, "smile", run.path, strengths=[1.0], device="cpu")
    found = write_strip(edits, tmp_path / "out" / "strip.png", save_all=True)
    saved = {after["image"] for row in found["pictures"] for after in row["after"]}
    assert len(saved) == 3 == len(list((tmp_path / "out").glob("strip-*.png")))


def test_no_file_is_overwritten_unasked_and_a_picture_never(tmp_path: Path, run: Run) -> None:
    path = face(tmp_path / "face.png", 16, 16)
    edits, before = edit_images([path], "smile", run.path, device="cpu"), path.read_bytes()
    write_strip(edits, tmp_path / "strip.png")
    with pytest.raises(UserError, match="exists already"):
        write_strip(edits, tmp_path / "strip.png")
    write_strip(edits, tmp_path / "strip.png", overwrite=True)
    with pytest.raises(UserError, match="is a picture that is edited"):
        write_strip(edits, path, overwrite=True)
    assert path.read_bytes() == before


def test_the_command(tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    path = face(tmp_path / "face.png", 30, 20)
    shared = ["edit", str(path), "--to", "smile", "--model", str(run.path), "--device", "cpu"]
    shared += ["--out", str(tmp_path / "strip.png")]
    options = ["--from", "calm", "--strength", "0.5", "--strength", "1", "--save-all"]
    assert called(*shared, *options, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    (row,) = found["pictures"]
    assert (
        found["strip"] == str(tmp_path / "strip.png") and row["source_size"] == [20, 30] and row["size"] == 16
    )
    assert [after["strength"] for after in row["after"]] == [0.5, 1.0] and row["from"] == "calm"
    assert called(*shared) == 2 and "exists already" in capsys.readouterr().err
    wrong = [word if word != "smile" else "angry" for word in shared]
    assert called(*wrong) == 2 and "--to angry: no such class" in capsys.readouterr().err
    assert called(*shared, "--overwrite") == 0
    said = capsys.readouterr().out
    assert "20 x 30, cropped to the centred square and resized to 16 x 16" in said
    assert called(*shared[:2], "--to", "smile", "--model", str(tmp_path / "none")) == 2


def called(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return int(end.value.code or 0)


def test_from_python(tmp_path: Path, folder: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (24, 24), (200, 10, 10, 128)).save(buffer, "WEBP")
    (tmp_path / "face.webp").write_bytes(buffer.getvalue())
    (edit,) = diffinf.edit_images(
        [str(tmp_path / "face.webp")], "smile", str(folder), strengths=[1], device="cpu"
    )
    assert edit.path.name == "face.webp" and edit.resized
