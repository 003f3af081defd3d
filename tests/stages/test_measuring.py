from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffinf.cli import main
from diffinf.errors import UserError
from diffinf.evaluate.fidelity import frechet_distance, kernel_distance, precision_recall_density_coverage
from diffinf.evaluate.separability import identity_separability
from diffinf.stages.measuring import measure_fidelity, measure_separability, saved_arrays
from faces import png

GENERATOR = np.random.default_rng(0)
REAL, GENERATED = GENERATOR.normal(size=(80, 5)), GENERATOR.normal(0.3, 1, size=(60, 5))
PEOPLE = np.array([f"p{i % 8}" for i in range(80)])


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / name for name in ("real.npy", "generated.npz", "real.parquet", "both.npz")}
    np.save(paths["real.npy"], REAL)
    np.savez(paths["generated.npz"], features=GENERATED, labels=np.arange(60) % 2)
    columns = {"id": [str(i) for i in range(80)], "embedding": REAL.tolist(), "identity": PEOPLE.tolist()}
    pq.write_table(pa.table({**columns, "label": [i % 2 for i in range(80)]}), paths["real.parquet"])
    np.savez(paths["both.npz"], embeddings=REAL, identities=PEOPLE)
    return paths


def test_every_kind_of_file_gives_the_same_figures(files: dict[str, Path]) -> None:
    expected = frechet_distance(REAL, GENERATED), precision_recall_density_coverage(REAL, GENERATED)
    for real in ("real.npy", "real.parquet"):
        found = measure_fidelity(files[real], files["generated.npz"])
        assert (found.frechet, found.prdc) == expected and found.copies is None and found.per_class == {}
        assert found.kernel == kernel_distance(REAL, GENERATED)
    assert measure_separability(files["both.npz"]) == identity_separability(REAL, PEOPLE)
    assert measure_separability(files["real.parquet"]) == identity_separability(REAL, PEOPLE)
    assert measure_separability(files["real.npy"], files["both.npz"]) == identity_separability(REAL, PEOPLE)


def test_classes_and_copies(files: dict[str, Path]) -> None:
    settings = {"train": files["real.npy"], "held_out": files["generated.npz"], "per_class": True}
    found = measure_fidelity(files["real.parquet"], files["generated.npz"], **settings)
    own = found.per_class["1"]
    assert own.prdc == precision_recall_density_coverage(REAL[1::2], GENERATED[1::2])
    assert own.frechet == frechet_distance(REAL[1::2], GENERATED[1::2])
    assert own.kernel == kernel_distance(REAL[1::2], GENERATED[1::2]) and found.one_sided == ()
    assert found.copies is not None and found.copies.held_out_share == found.copies.share
    with pytest.raises(UserError, match=r"both\.npz: nothing in it is called labels or label"):
        measure_fidelity(files["both.npz"], files["generated.npz"], per_class=True)


def test_few_samples_have_no_frechet_distance_unless_asked_for(files: dict[str, Path]) -> None:
    few = files["real.npy"].with_name("few.npy")
    np.save(few, GENERATED[:6][:, [0, 1, 2, 3, 4] * 2])
    wide = files["real.npy"].with_name("wide.npy")
    np.save(wide, REAL[:, [0, 1, 2, 3, 4] * 2])
    assert measure_fidelity(wide, few).frechet is None
    forced = measure_fidelity(wide, few, allow_singular=True).frechet
    assert forced is not None and forced.singular


def test_a_small_class_hides_no_other_and_a_class_of_one_side_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "real.npz", features=REAL, labels=["a"] * 40 + ["b"] * 37 + ["c"] * 3)
    np.savez(tmp_path / "made.npz", features=GENERATED, labels=["a"] * 40 + ["b"] * 1 + ["d"] * 19)
    found = measure_fidelity(tmp_path / "real.npz", tmp_path / "made.npz", per_class=True)
    assert found.one_sided == ("c", "d") and set(found.per_class) == {"a", "b"}
    few = found.per_class["b"]
    assert (few.frechet, few.kernel, few.prdc, few.n_real, few.n_generated) == (None, None, None, 37, 1)
    assert found.per_class["a"].prdc is not None


def test_copies_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(3)
    for side, names in (("train", "abcdef"), ("made", "xy")):
        (tmp_path / side / "face").mkdir(parents=True)
        for name in names:
            pixels = rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)
            (tmp_path / side / "face" / f"{name}.png").write_bytes(png(pixels))
    known = rng.normal(size=(6, 4))
    np.savez(tmp_path / "train.npz", features=known, ids=[f"face/{name}.png" for name in "abcdef"])
    made = np.concatenate([rng.normal(size=(9, 4)) * 3, known[2:3]])
    ids = ["face/x.png"] * 9 + ["face/y.png"]
    np.savez(tmp_path / "made.npz", features=made, ids=ids)
    arguments = ["--real", tmp_path / "train.npz", "--generated", tmp_path / "made.npz", "--train"]
    pictures = ["--generated-images", tmp_path / "made", "--train-images", tmp_path / "train"]
    target = tmp_path / "copies.png"

    def run(*more: object) -> int:
        with pytest.raises(SystemExit) as caught:
            main(["evaluate", "fidelity", *map(str, [*arguments, *more, "--copies-picture", target])])
        return int(caught.value.code or 0)

    assert run(tmp_path / "train.npz", *pictures, "--nearest-k", 2) == 0
    assert "face/y.png = face/c.png" in capsys.readouterr().out
    with Image.open(target) as picture:
        left, top = 190, 26  # the margin, below the headings
        shown = np.asarray(picture)[top : top + 64, left : left + 64]
    assert np.abs(shown.astype(int) - 255).mean() > 20
    assert run(tmp_path / "train.npz", "--nearest-k", 2) == 2
    assert "--generated-images" in capsys.readouterr().err
    np.savez(tmp_path / "made.npz", features=made, ids=[*ids[:-1], "face/z.png"])
    assert run(tmp_path / "train.npz", *pictures, "--nearest-k", 2) == 2
    assert "no image has the id 'face/z.png'" in capsys.readouterr().err
    np.savez(tmp_path / "made.npz", features=made)
    assert run(tmp_path / "train.npz", *pictures, "--nearest-k", 2) == 2
    assert "an array ids" in capsys.readouterr().err


def test_one_identity_or_no_image_is_an_error_in_words(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", embeddings=REAL, identities=["p"] * 80)
    with pytest.raises(UserError, match="80 images of 1 identities: separability needs at least two"):
        measure_separability(tmp_path / "one.npz")
    np.savez(tmp_path / "nan.npz", embeddings=np.where(REAL > 2, np.nan, REAL), identities=PEOPLE)
    with pytest.raises(UserError, match="rows hold NaN or infinity, the first is row"):
        measure_separability(tmp_path / "nan.npz")
    np.save(tmp_path / "none.npy", np.zeros((0, 5)))
    np.save(tmp_path / "real.npy", REAL)
    with pytest.raises(UserError, match=r"N and D at least 1, got float64 of shape \(0, 5\)"):
        measure_fidelity(tmp_path / "real.npy", tmp_path / "none.npy")
    np.save(tmp_path / "single.npy", REAL[:1])
    with pytest.raises(UserError, match="takes at least 2"):
        measure_fidelity(tmp_path / "real.npy", tmp_path / "real.npy", train=tmp_path / "single.npy")


class Pickled:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemError('unpickled')",)


def test_files_that_cannot_be_measured_are_named(files: dict[str, Path], tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([Pickled()]), allow_pickle=True)
    np.savez(tmp_path / "objects.npz", features=np.array([Pickled()]))
    np.savez(tmp_path / "others.npz", things=REAL)
    np.save(tmp_path / "nan.npy", np.where(REAL > 2, np.nan, REAL))
    (tmp_path / "short.npy").write_bytes(files["real.npy"].read_bytes()[:200])
    (tmp_path / "damaged.npz").write_bytes(files["both.npz"].read_bytes()[:-50])
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 no")
    pq.write_table(pa.table({"features": [[1.0, 2.0], [3.0]]}), tmp_path / "ragged.parquet")
    pq.write_table(pa.table({"features": [[1.0, 2.0], None]}), tmp_path / "null.parquet")
    (tmp_path / "table.csv").write_text("a,b\n")
    (tmp_path / "empty.npy").touch()
    for name in (
        "objects.npy", "objects.npz", "others.npz", "nan.npy", "short.npy", "damaged.npz", "damaged.parquet",
        "ragged.parquet", "null.parquet", "table.csv", "empty.npy", "none.npy",
    ):  # fmt: skip
        with pytest.raises(UserError, match=name):
            measure_fidelity(tmp_path / name, files["generated.npz"])
    with pytest.raises(UserError, match="--identities"):
        measure_separability(files["real.npy"])
    with pytest.raises(UserError, match="--train"):
        measure_fidelity(files["real.npy"], files["generated.npz"], held_out=files["real.npy"])
    with pytest.raises(UserError, match=r"real\.npy: an \.npy has no labels for --by-class"):
        measure_fidelity(files["real.npy"], files["generated.npz"], per_class=True)
    with pytest.raises(UserError, match=r"a folder; expected features in an \.npy"):
        measure_separability(tmp_path)
    assert set(saved_arrays(files["both.npz"])) == {"embeddings", "identities"}


def test_command_line(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*arguments: object) -> str:
        with pytest.raises(SystemExit) as caught:
            main(["evaluate", *(str(argument) for argument in arguments)])
        assert not caught.value.code
        return capsys.readouterr().out

    pair = ("--real", files["real.parquet"], "--generated", files["generated.npz"])
    shown = json.loads(printed("fidelity", *pair, "--json"))
    assert shown["frechet"]["distance"] == pytest.approx(frechet_distance(REAL, GENERATED).distance)
    text = printed("fidelity", *pair, "--by-class", "--train", files["generated.npz"])
    assert (
        "60 generated, 80 real" in text and "1: 30 generated" in text and "= row 0" in text
    )  # a copy of row 0
    shown = json.loads(printed("separability", files["both.npz"], "--json"))
    assert shown["separability"]["eer"] == identity_separability(REAL, PEOPLE).separability.eer
    text = printed("separability", files["both.npz"])
    assert "80 images of 8 identities" in text and "not of unit length" in text
