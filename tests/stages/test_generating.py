"""`diffinf train-generator` and `diffinf generate`, on a miniature."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffinf.cli import main
from diffinf.config import make_config
from diffinf.data.rendered.write import render_dataset
from diffinf.errors import UserError
from diffinf.generate import folder
from diffinf.generate.sample import Sampling
from diffinf.stages import contexts, generating

TINY = ["--preset", "tiny", "--device", "cpu", "--set", "data.image_size=16", "--set", "generator.steps=3"]


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("faces")
    return render_dataset(out, n=60, size=24, task="expression", identities=6, noise="none", rate=0.0, seed=0)


@pytest.fixture(scope="module")
def model(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "identity"
    main_(["train-generator", str(faces), str(out), *TINY])
    return out


def main_(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["--quiet", *arguments])
    assert error.value.code in (0, None)


def call(model: Path, out: Path, **values: Any) -> Path:
    sampling = {"steps": 2, "negative": "far"} | {k: v for k, v in values.items() if k not in OPTIONS}
    options = {"contexts": "train", "per_context": 2} | {k: v for k, v in values.items() if k in OPTIONS}
    return generating.generate(model, out, sampling=Sampling(**sampling), device="cpu", **options)


OPTIONS = ("contexts", "per_context", "identity_guidance", "fresh")


def pixels(out: Path) -> dict[str, Any]:
    return {p.relative_to(out).as_posix(): np.asarray(Image.open(p)) for p in sorted(out.rglob("*.png"))}


def test_a_folder_by_identity_and_a_table(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main_(["generate", str(model), str(out), "--per-context", "2", "--steps", "2", "--device", "cpu"])
    table = pq.read_table(out / "samples.parquet").to_pylist()
    names = json.loads((model / "generator.json").read_text())["context_names"]
    assert {row["context_id"] for row in table} == set(names) and len(table) == 2 * len(names)
    assert {row["file"] for row in table} == set(pixels(out))
    for row in table:
        assert (
            row["negative_id"] in names
            and row["negative_id"] != row["context_id"]
            and -1 <= row["cosine"] <= 1
        )
    assert len({row["seed"] for row in table}) == len(table)


def test_a_cut_run_goes_on_and_batches_change_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(model, tmp_path / "whole", sampler="ddpm")
    write = folder._write
    written: list[Path] = []

    def cut(path: Path, image: Any) -> None:
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(path)
        write(path, image)

    monkeypatch.setattr(folder, "_write", cut)
    with pytest.raises(KeyboardInterrupt):
        call(model, tmp_path / "cut", sampler="ddpm", batch_size=3)
    assert not (tmp_path / "cut" / "samples.parquet").exists()
    monkeypatch.setattr(folder, "_write", lambda path, image: (written.append(path), write(path, image)))
    call(model, tmp_path / "cut", sampler="ddpm", batch_size=4)
    assert len(written) == len(set(written))
    whole, resumed = pixels(tmp_path / "whole"), pixels(tmp_path / "cut")
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert np.abs(value.astype(int) - resumed[name].astype(int)).max() <= 1
    tables = [pq.read_table(tmp_path / name / "samples.parquet") for name in ("whole", "cut")]
    assert tables[0].equals(tables[1])
    with pytest.raises(UserError, match="other contexts or settings"):
        call(model, tmp_path / "cut", sampler="ddpm", scale=1.0)
    call(model, tmp_path / "cut", sampler="ddpm", scale=1.0, fresh=True)
    assert any(not np.array_equal(value, whole[name]) for name, value in pixels(tmp_path / "cut").items())


@pytest.mark.slow
def test_processes_share_identities(model: Path, tmp_path: Path) -> None:
    call(model, tmp_path / "one")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "diffinf",
    ]
    arguments = [
        "generate",
        str(model),
        str(tmp_path / "two"),
        "--per-context",
        "2",
        "--steps",
        "2",
        "--device",
        "cpu",
    ]
    subprocess.run([*command, *arguments], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    one, two = pixels(tmp_path / "one"), pixels(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(np.abs(one[name].astype(int) - two[name].astype(int)).max() <= 1 for name in one)


def test_contexts_of_every_kind(model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3, 8)).astype(np.float32)
    np.savez(tmp_path / "contexts.npz", contexts=vectors, id=np.array(["a/b", "..", "c"]))
    call(model, tmp_path / "file", contexts=str(tmp_path / "contexts.npz"), per_context=1)
    assert sorted(pixels(tmp_path / "file")) == [
        "images/%2E%2E/00000.png", "images/a%2Fb/00000.png", "images/c/00000.png",
    ]  # fmt: skip
    call(model, tmp_path / "random", contexts="random:3", per_context=1)
    assert len(pixels(tmp_path / "random")) == 3
    call(model, tmp_path / "turned", contexts="perturb:40:random:3", per_context=1)
    call(model, tmp_path / "between", contexts="perturb:0-60:random:3", per_context=1)
    before, after, between = (pixels(tmp_path / name) for name in ("random", "turned", "between"))
    assert before.keys() == after.keys() == between.keys()
    assert any(not np.array_equal(value, between[name]) for name, value in before.items())
    (tmp_path / "folder").mkdir()
    for text, said in (
        ("random:x", "expected train, a file"),
        ("perturb:200", "0 to 180"),
        ("perturb:60-20", "the smaller first"),
        ("perturb:20-", "expected train, a file"),
        (str(tmp_path / "folder"), "a folder; write reference:"),
        ("trian", "no such file; expected train, a file"),
        (str(tmp_path / "no.npy"), "no such file"),
        ("reference:" + str(tmp_path), "no embedder is with this generator"),
    ):
        with pytest.raises(UserError, match=said):
            call(model, tmp_path / "bad", contexts=text)
    with pytest.raises(UserError, match="--identity-guidance: no embedder"):
        call(model, tmp_path / "bad", identity_guidance=0.3)
    np.save(tmp_path / "wide.npy", rng.normal(size=(3, 9)))
    with pytest.raises(UserError, match="9 components, the model was trained on 8"):
        call(model, tmp_path / "bad", contexts=str(tmp_path / "wide.npy"))
    np.save(tmp_path / "broken.npy", np.full((3, 8), np.nan))
    with pytest.raises(UserError, match=r"broken\.npy: contexts: row 0 is not finite"):
        call(model, tmp_path / "bad", contexts=str(tmp_path / "broken.npy"))


def test_embeddings_of_its_own_and_of_a_reference_set(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    main_(["train-generator", str(faces), str(out), "--condition", "embedding", *TINY])
    said = capsys.readouterr().out
    assert "contexts: none of its own" in said and "reference:DATASET" in said and "contexts: 0" not in said
    call(out, tmp_path / "out", contexts=f"reference:{faces}", per_context=1)
    plain = pixels(tmp_path / "out")
    assert len(plain) == 6
    with pytest.raises(UserError, match="has learned none"):
        call(out, tmp_path / "none")

    call(out, tmp_path / "pulled", contexts=f"reference:{faces}", per_context=1, identity_guidance=1.0)
    pulled = pixels(tmp_path / "pulled")
    assert pulled.keys() == plain.keys()
    assert any((pulled[name] != plain[name]).any() for name in plain)
    with pytest.raises(UserError, match="other contexts or settings"):
        call(out, tmp_path / "pulled", contexts=f"reference:{faces}", per_context=1, identity_guidance=0.5)
    with pytest.raises(UserError, match="nobody to be told from"):
        call(out, tmp_path / "alone", contexts="random:1", negative="null", identity_guidance=0.5)


def test_given_embeddings_are_matched_by_id(faces: Path, tmp_path: Path) -> None:
    ids = pq.read_table(faces, columns=["id"])["id"].to_pylist()
    vectors = np.random.default_rng(0).normal(size=(len(ids), 5)).tolist()
    path = tmp_path / "vectors.parquet"
    pq.write_table(pa.table({"id": ids, "embedding": vectors}), path)
    options = [str(tmp_path / "model"), "--condition", "embedding", "--embeddings", str(path), *TINY]
    main_(["train-generator", str(faces), *options, "--set", "generator.context_of=image"])
    assert json.loads((tmp_path / "model" / "denoiser" / "config.json").read_text())["context_size"] == 5
    pq.write_table(pa.table({"id": ids[:9], "embedding": vectors[:9]}), path)
    with pytest.raises(SystemExit) as error:
        main(["train-generator", str(faces), str(tmp_path / "other"), *options[1:]])
    assert error.value.code == 2


def test_a_finished_training_is_read_and_another_is_refused(
    faces: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generating, "train_generator", lambda *_, **__: pytest.fail("trained again"))
    main_(["train-generator", str(faces), str(model), *TINY])
    with pytest.raises(SystemExit) as error:
        main(["train-generator", str(faces), str(model), "--condition", "label", *TINY])
    assert error.value.code == 2 and "--fresh" in capsys.readouterr().err


def test_the_estimate_trains_nothing(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    main_(["train-generator", str(faces), str(tmp_path / "model"), *TINY, "--estimate", "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert row["work"] == "3 steps of the generator" and not (tmp_path / "model").exists()


def test_who_is_shown_and_how_the_embedder_is_trained_make_another_generator(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the settings is given to the same folder: only the first may have it."""
    monkeypatch.setattr(generating, "train_generator", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr(generating, "_train_embedder", lambda *_: None)
    seen: list[str] = []

    def claim(_out: Path, key: str, _fresh: bool) -> None:
        seen.append(key)
        raise KeyboardInterrupt

    monkeypatch.setattr(generating, "_claim", claim)

    def key(condition: str, identity: str, **classifier: Any) -> str:
        config = make_config(
            str(faces),
            preset_name="tiny",
            values={
                "device": "cpu",
                "data": {"identity": identity, "image_size": 16},
                "generator": {"condition": condition},
                "classifier": classifier,
            },
        )
        with pytest.raises(KeyboardInterrupt):
            generating.train_generator_on(config, tmp_path / "model")
        return seen.pop()

    assert key("identity", "identity") != key("identity", "label")
    assert key("label", "identity") == key("label", "label")
    assert key("embedding", "identity") != key("embedding", "identity", batch_size=3)
    assert key("identity", "identity") == key("identity", "identity", batch_size=3)


def test_the_dataset_is_no_place_to_write_to(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = tmp_path / "faces"
    for name in ("a", "b"):
        (folders / name).mkdir(parents=True)
        for number in range(12):
            picture = np.full((24, 24, 3), 20 * number, np.uint8)
            Image.fromarray(picture).save(folders / name / f"{number}.png")
    (folders / "embedder").mkdir()
    for out in (folders, folders / "model"):
        with pytest.raises(SystemExit) as error:
            main(["train-generator", str(folders), str(out), "--condition", "label", "--fresh", *TINY])
        assert error.value.code == 2 and "inside the dataset" in capsys.readouterr().err
    assert (folders / "embedder").exists()


def test_what_cannot_be_used_is_refused_before_anything_is_deleted(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call(model, out, contexts="random:3", per_context=1)
    before = pixels(out)
    np.savez(tmp_path / "twice.npz", contexts=np.eye(8)[:3], id=np.array(["a", "a", "b"]))
    with pytest.raises(UserError, match="all different, found 2 names of 3 contexts, 'a' 2 times"):
        call(model, out, contexts=str(tmp_path / "twice.npz"), fresh=True)
    with pytest.raises(UserError, match="at least two different contexts"):
        call(model, out, contexts="random:1", fresh=True)
    assert pixels(out).keys() == before.keys() and (out / "samples.parquet").exists()


def test_counts_are_whole_numbers(model: Path, tmp_path: Path) -> None:
    for number in ("nan", "inf", "2.7"):
        with pytest.raises(UserError, match="expected train, a file"):
            call(model, tmp_path / "out", contexts=f"random:{number}")


def test_an_id_that_stands_twice_among_embeddings_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", embeddings=np.eye(3), id=np.array(["a", "b", "a"]))
    with pytest.raises(UserError, match="1 of its ids stand there more than once, 'a' the first"):
        contexts.read_embeddings(tmp_path / "two.npz", ["a", "b"])


def test_an_embedding_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    for value in (0.0, np.nan):
        vectors = np.eye(3)
        vectors[1] = value
        np.savez(tmp_path / "bad.npz", embeddings=vectors, id=np.array(["a", "b", "c"]))
        with pytest.raises(UserError, match=r"bad\.npz: 1 of the 2 embeddings .* that of 'b' the first"):
            contexts.read_embeddings(tmp_path / "bad.npz", ["a", "b"])
        contexts.read_embeddings(tmp_path / "bad.npz", ["a", "c"])  # nobody asks for that one


def test_embeddings_are_for_their_condition_alone(faces: Path, tmp_path: Path) -> None:
    config = make_config(str(faces), preset_name="tiny", values={"data": {"image_size": 16}})
    with pytest.raises(UserError, match="--embeddings are for --condition embedding"):
        generating.train_generator_on(config, tmp_path / "model", embeddings=tmp_path / "vectors.npz")
    assert not (tmp_path / "model").exists()


def test_one_person_is_said(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(generating, "note", told.append)
    table = pq.read_table(faces)
    one = pa.array(["p"] * len(table))
    (tmp_path / "faces").mkdir()
    table = table.set_column(table.column_names.index("identity"), "identity", one)
    pq.write_table(table, tmp_path / "faces" / "faces.parquet")
    main_(["train-generator", str(tmp_path / "faces"), str(tmp_path / "model"), *TINY])
    assert "all training pictures show 'p'" in told[0]
