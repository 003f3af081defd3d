"""Import of DiffAE checkpoints: what comes out is what went in, and what is no DiffAE is refused by name."""

from __future__ import annotations

import json
import os
import pickle
import random
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffinf.cli import main
from diffinf.diffusion.diffae.autoencoder import DatasetHeads, DiffAE
from diffinf.diffusion.diffae.config import infer_config
from diffinf.diffusion.diffae.convert import import_diffae, read_tensors
from diffinf.errors import UserError
from diffusion.tiny_diffae import CONFIG, checkpoint, make_diffae, photos, repacked, state_dict

SIZE = CONFIG.semantic_channels


@pytest.fixture(scope="module")
def model() -> DiffAE:
    return make_diffae()


@pytest.fixture(scope="module")
def tensors(model: DiffAE) -> dict[str, Tensor]:
    return state_dict(model)


def same_weights(folder: Path, model: DiffAE, tolerance: float = 0.0) -> DiffAE:
    loaded = DiffAE.load(folder)
    found, expected = loaded.network.state_dict(), model.network.state_dict()
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], values, rtol=tolerance, atol=tolerance)
    return loaded


def test_the_averaged_weights_are_taken_and_compute_the_same(
    tmp_path: Path, model: DiffAE, tensors: dict[str, Tensor]
) -> None:
    report = import_diffae(checkpoint(tmp_path / "last.ckpt", tensors), tmp_path / "out")
    assert report.config == CONFIG
    assert report.tensors == len(model.network.state_dict())
    assert report.parameters == sum(p.numel() for p in model.network.parameters())
    assert any("ema_model" in note for note in report.notes)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["diffae.json", "diffae.safetensors"]
    loaded = same_weights(tmp_path / "out", model)
    latents, shares = model.to_latents(photos(2, 0)), torch.zeros(2, 2)
    torch.testing.assert_close(loaded.code(latents), model.code(latents))
    context, t = loaded.context(loaded.code(latents), shares), torch.tensor([3, 900])
    torch.testing.assert_close(loaded.predict(latents, t, context), model.network(latents, t, context))
    written = json.loads((tmp_path / "out" / "diffae.json").read_text())
    assert written["source"]["file"] == "last.ckpt" and len(written["source"]["sha256"]) == 64
    # The original is not needed any more, and importing again replaces what is there.
    import_diffae(checkpoint(tmp_path / "last.ckpt", tensors), tmp_path / "out")


@pytest.mark.parametrize("kind", ["module", "inner", "plain", "bare", "safetensors", "no-lightning"])
def test_other_spellings_of_the_same_weights(tmp_path: Path, model: DiffAE, kind: str) -> None:
    weights = model.network.state_dict()
    path = tmp_path / "last.ckpt"
    if kind == "module":
        checkpoint(path, state_dict(model, before="module."))
    elif kind == "inner":
        checkpoint(path, {f"ema_model.module.{name}": values for name, values in weights.items()})
    elif kind == "plain":
        checkpoint(path, {f"model.{name}": values for name, values in weights.items()})
    elif kind == "no-lightning":
        torch.save(weights, path)
    elif kind == "bare":
        checkpoint(path, weights)
    else:
        path = tmp_path / "tiny.safetensors"
        save_file(weights, path)
    report = import_diffae(path, tmp_path / "out")
    same_weights(tmp_path / "out", model)
    assert any("no averaged weights" in note for note in report.notes) == (kind == "plain")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
def test_half_precision_becomes_float32_and_is_said(
    tmp_path: Path, model: DiffAE, dtype: torch.dtype, tolerance: float
) -> None:
    halves = {name: values.to(dtype) for name, values in model.network.state_dict().items()}
    report = import_diffae(checkpoint(tmp_path / "half.ckpt", halves), tmp_path / "out")
    same_weights(tmp_path / "out", model, tolerance)
    assert f"converted {str(dtype).removeprefix('torch.')} to float32" in report.notes


def statistics() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "conds_mean": torch.randn(1, SIZE, generator=generator),
        "conds_std": 0.5 + torch.rand(1, SIZE, generator=generator),
    }


@pytest.mark.parametrize("beside", ["checkpoint", "file", "latent-dpm"])
def test_codes_are_normalised_by_the_latent_statistics(
    tmp_path: Path, model: DiffAE, tensors: dict[str, Tensor], beside: str
) -> None:
    found = statistics()
    file = None
    if beside == "checkpoint":
        checkpoint(tmp_path / "last.ckpt", {**tensors, **statistics()})
    else:
        checkpoint(tmp_path / "last.ckpt", tensors)
        file = tmp_path / "latent.pkl"
        rest = {"conds": torch.zeros(5, SIZE)} if beside == "file" else {"model.latent_net.x": torch.ones(1)}
        torch.save({**rest, **{k: v[0] for k, v in found.items()}}, file)
    import_diffae(tmp_path / "last.ckpt", tmp_path / "out", latent_statistics=file)
    loaded = DiffAE.load(tmp_path / "out")
    images = model.to_latents(photos(2, 0))
    raw = model.network.encoder(images)
    torch.testing.assert_close(loaded.code(images), (raw - found["conds_mean"]) / found["conds_std"])
    torch.testing.assert_close(loaded.context(loaded.code(images), torch.zeros(2, 2)), raw)


def test_a_file_without_statistics_is_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = checkpoint(tmp_path / "last.ckpt", tensors)
    for content, message in (({"mean": ONE}, "unknown tensors: mean"), ({"conds": ONE}, "neither")):
        torch.save(content, tmp_path / "latent.pkl")
        with pytest.raises(UserError, match=rf"latent.pkl: .*{message}"):
            import_diffae(path, tmp_path / "out", latent_statistics=tmp_path / "latent.pkl")


def test_x_t_tells_the_size_and_is_left_out(
    tmp_path: Path, model: DiffAE, tensors: dict[str, Tensor]
) -> None:
    path = checkpoint(tmp_path / "last.ckpt", {**tensors, "x_T": torch.zeros(2, 3, 64, 64)})
    report = import_diffae(path, tmp_path / "out")
    assert report.config.image_size == 64 and report.config.attention_resolutions == (32,)
    assert any("x_T" in note for note in report.notes)
    assert not any("x_T" in name for name in load_file(tmp_path / "out" / "diffae.safetensors"))
    with pytest.raises(UserError, match="x_T"):
        checkpoint(path, {**tensors, "x_T": torch.zeros(2, 3, 64, 32)})
        import_diffae(path, tmp_path / "out")


def test_classes_that_lightning_only_names_are_never_called(
    tmp_path: Path, model: DiffAE, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    named = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = named  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
            patch.setitem(sys.modules, name, module)
        path = checkpoint(tmp_path / "last.ckpt", tensors, callbacks={named: {"best_model_path": "x"}})
    import_diffae(path, tmp_path / "out")
    same_weights(tmp_path / "out", model)


class Trap:
    """What a pickle would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_would_run_code_is_refused(
    tmp_path: Path, tensors: dict[str, Tensor], legacy: bool
) -> None:
    content = {"state_dict": tensors, "callbacks": Trap(tmp_path / "sprung")}
    torch.save(content, tmp_path / "trap.ckpt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"trap.ckpt: refused.*code"):
        import_diffae(tmp_path / "trap.ckpt", tmp_path / "out")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(UserError, match=r"plain.ckpt"):
        import_diffae(tmp_path / "plain.ckpt", tmp_path / "out")
    assert not (tmp_path / "sprung").exists() and not (tmp_path / "out").exists()


CALLBACK = b"cpytorch_lightning.callbacks.early_stopping\nEarlyStopping\n"


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b'cos\nsystem\n(S"touch sprung"\ntR.', "refused.*could run code"),  # protocol 0, which torch cannot list
        (b"\x80\x02cposix\nmkdir\nX\x06\x00\x00\x00sprung\x85R.", "would run code: it names posix.mkdir"),
        (b"\x80\x02" + CALLBACK + b"K\x01\x85R.", "found _Named"),
        (b"\x80\x02" + CALLBACK + b"K\x01\x85\x81.", "found _Named"),
        (b"\x80\x02" + CALLBACK + b")\x81}X\x01\x00\x00\x00xK\x01sb.", "found _Named"),
        (b"\x80\x02" + CALLBACK + b"}X\x01\x00\x00\x00xK\x01sb.", "refused"),
        (b"\x80\x02R.", "damaged"),
        (b"", "damaged"),
        (b"\x80\x02cbuiltins\nbytearray\n\x8a\x08" + b"\xff" * 7 + b"\x3f\x85R.", "damaged"),  # 4 exabytes
        (b"\x80\x02" + b"K\x01" + b"\x85" * 9999 + b".", "found tuple"),
        (b"\x80\x02}K\x01K\x02s.", "tensors by name, found a int"),
        (
            b"\x80\x02ccollections\nOrderedDict\n)R}X\x03\x00\x00\x00getK\x01sb.",  # its get is the number 1
            "OrderedDict without entries",
        ),
    ],
)  # fmt: skip
def test_pickles_by_hand_are_refused_and_run_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pickled: bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.ones(2)}, "base.pt")
    with pytest.raises(UserError, match=rf"odd.ckpt: .*{message}"):
        read_tensors(repacked(Path("base.pt"), Path("odd.ckpt"), pickled))
    Path("old.ckpt").write_bytes(pickled)
    with pytest.raises(UserError, match=r"old.ckpt"):
        read_tensors(Path("old.ckpt"))
    assert not Path("sprung").exists()


def mutated(content: bytes, reach: int, draw: random.Random) -> bytes:
    """The bytes with one to four of the first `reach` or the last 1500 replaced."""
    damaged = bytearray(content)
    for _ in range(draw.choice((1, 2, 4))):
        place = draw.choice((draw.randrange(min(reach, len(damaged))), -1 - draw.randrange(1500)))
        damaged[place] = draw.randrange(256)
    return bytes(damaged)


@pytest.mark.parametrize("kind", ["zip", "pickle", "legacy", "safetensors"])
def test_mutated_files_are_refused_or_mean_the_same(tmp_path: Path, model: DiffAE, kind: str) -> None:
    weights = model.network.state_dict()
    base, path = tmp_path / "base", tmp_path / ("fuzz.safetensors" if kind == "safetensors" else "fuzz.ckpt")
    if kind == "safetensors":
        save_file(weights, base)
    else:
        torch.save({"state_dict": weights}, base, _use_new_zipfile_serialization=kind != "legacy")
    content = base.read_bytes()
    if kind == "pickle":
        with zipfile.ZipFile(base) as archive:
            content = archive.read("base/data.pkl")
    draw, refused = random.Random(kind), 0
    for _ in range(40):
        damaged = mutated(content, 40_000 if kind == "zip" else 3000, draw)
        _ = repacked(base, path, damaged) if kind == "pickle" else path.write_bytes(damaged)
        try:
            found = read_tensors(path)
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
            continue
        if kind == "zip":  # the only one with checksums of what was written
            assert found.keys() == weights.keys()
            assert all(torch.equal(found[name], values) for name, values in weights.items())
    assert refused >= 5


def test_a_bit_of_the_weights_that_flipped_is_found(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = checkpoint(tmp_path / "flip.ckpt", tensors)
    content = bytearray(path.read_bytes())
    values = tensors["ema_model.out.2.weight"].numpy().tobytes()
    content[content.index(values) + len(values) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"flip.ckpt: damaged.*CRC-32.*data/"):
        import_diffae(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_compressed_archive_is_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = checkpoint(tmp_path / "last.ckpt", tensors)
    stored = repacked(path, tmp_path / "stored.ckpt")
    import_diffae(stored, tmp_path / "out")
    packed = repacked(path, tmp_path / "packed.ckpt", compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match=r"packed.ckpt: last/data.pkl in it is compressed"):
        import_diffae(packed, tmp_path / "other")


def test_heads_of_other_weights_are_removed(tmp_path: Path, model: DiffAE) -> None:
    path, out = checkpoint(tmp_path / "last.ckpt", model.network.state_dict()), tmp_path / "out"
    fitted = make_diffae()
    fitted.heads = DatasetHeads(CONFIG, ("a", "b"))
    fitted.save(out)
    fitted.save_heads(out)
    assert DiffAE.load(out).heads is not None
    with pytest.raises(UserError, match="image_size"):  # a failed import changes nothing
        broken = checkpoint(
            tmp_path / "x.ckpt", {**model.network.state_dict(), "x_T": torch.ones(1, 3, 31, 31)}
        )
        import_diffae(broken, out)
    assert DiffAE.load(out).heads is not None
    report = import_diffae(path, out)
    assert sorted(file.name for file in out.iterdir()) == ["diffae.json", "diffae.safetensors"]
    assert DiffAE.load(out).heads is None
    assert any("removed heads.safetensors" in note for note in report.notes)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_truncated_file_is_refused(tmp_path: Path, model: DiffAE, share: float, suffix: str) -> None:
    path = tmp_path / f"cut{suffix}"
    weights = model.network.state_dict()
    _ = checkpoint(path, weights) if suffix == ".ckpt" else save_file(weights, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=f"cut{suffix}"):
        import_diffae(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def changed(tensors: dict[str, Tensor], **changes: Tensor | None) -> dict[str, Tensor]:
    """The tensors with some replaced, added, or (None) left out; __ stands for a dot."""
    result: dict[str, Tensor | None] = {**tensors}
    result.update({name.replace("__", "."): values for name, values in changes.items()})
    return {name: values for name, values in result.items() if values is not None}


ONE = torch.ones(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ema_model__surprise": ONE, "model__surprise": ONE}, "unknown tensors: surprise"),
        ({"model__surprise": ONE}, "unknown tensors: model.surprise"),
        ({"classifier__weight": ONE}, "unknown tensors: classifier.weight"),
        ({"ema_model__latent_net__layers__0__weight": ONE}, "latent DPM.*ema_model.latent_net.layers.0.weight"),
        ({"model__encoder__out__3__bias": None, "ema_model__encoder__out__3__bias": None}, "missing tensors: enc"),
        ({"ema_model__out__2__bias": torch.zeros(4)}, r"out.2.bias: expected \(3,\), found \(4,\)"),
        ({"ema_model__out__2__bias": torch.tensor([1.0, torch.nan, 0.0])}, "out.2.bias: expected finite"),
        ({"ema_model__out__2__bias": torch.zeros(3, dtype=torch.int32)}, "out.2.bias: expected finite floats"),
        ({"ema_model__out__2__bias": torch.full((3,), 1e300, dtype=torch.float64)}, "out.2.bias: .*of float32"),
        ({"ema_model__out__2__bias": torch.ones(3).to_sparse()}, "out.2.bias: expected a dense.*sparse_coo"),
        ({"ema_model__out__2__bias": torch.ones(3, device="meta")}, "out.2.bias: expected a dense.*meta"),
        ({"ema_model__out__2__bias": torch.ones(3, dtype=torch.complex64)}, "out.2.bias: expected finite floats"),
        ({"conds_mean": torch.ones(1).expand(1 << 40)}, "conds_mean: expected all"),
        ({"conds_mean": torch.ones(SIZE).long(), "conds_std": torch.ones(SIZE)}, "conds_mean: expected finite"),
        ({"conds_mean": torch.zeros(SIZE)}, "expected both conds_mean and conds_std"),
        ({"conds_mean": torch.zeros(9), "conds_std": torch.ones(9)}, f"conds_mean: expected {SIZE} finite"),
        ({"conds_mean": torch.zeros(SIZE), "conds_std": torch.zeros(SIZE)}, "conds_std: expected values above 0"),
        ({"module.ema_model.out__2__bias": torch.zeros(3)}, "there twice"),
        ({"x_T": torch.zeros(2, 1, 32, 32)}, "x_T: expected"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, tensors: dict[str, Tensor], changes: dict[str, Tensor | None], message: str
) -> None:
    path = checkpoint(tmp_path / "odd.ckpt", changed(tensors, **changes))
    with pytest.raises(UserError, match=message) as caught:
        import_diffae(path, tmp_path / "out")
    assert str(path) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_ddpm_without_encoder_is_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    ddpm = {
        name: values
        for name, values in tensors.items()
        if "encoder." not in name and "cond_emb_layers" not in name
    }
    with pytest.raises(UserError, match="no semantic encoder"):
        import_diffae(checkpoint(tmp_path / "ddpm.ckpt", ddpm), tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}}, "without entries"),
        ({"state_dict": {"a": 3}}, "a: expected a tensor, found int"),
        ([torch.ones(2)], "expected a state_dict"),
        ({"conds_mean": torch.ones(2)}, "no tensors of a network"),
        ({"encoder.weight": torch.ones(2)}, "not the tensors of a DiffAE"),
    ],
)
def test_files_of_something_else_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=message):
        import_diffae(tmp_path / "other.ckpt", tmp_path / "out")


def test_the_configuration_can_be_named(tmp_path: Path, model: DiffAE) -> None:
    path = checkpoint(tmp_path / "last.ckpt", model.network.state_dict())
    file = tmp_path / "heads.json"
    file.write_text(json.dumps({**CONFIG.to_fields(), "num_heads": 4}))
    assert import_diffae(path, tmp_path / "out", config=str(file)).config.num_heads == 4
    assert DiffAE.load(tmp_path / "out").config.num_heads == 4
    for content, message in (
        ('{"heads": 4}', "heads: no such field"),
        ('{"num_heads": 4}', "missing: image_size"),
        (json.dumps({**CONFIG.to_fields(), "channel_mult": []}), "channel_mult: expected a list"),
        (json.dumps({**CONFIG.to_fields(), "num_heads": 0}), "num_heads: expected a whole number"),
        (json.dumps({**CONFIG.to_fields(), "image_size": 30}), "image_size: expected a multiple of 4"),
        (json.dumps({**CONFIG.to_fields(), "model_channels": 48}), "a multiple of 32.*48 x 1 = 48"),
        (json.dumps({**CONFIG.to_fields(), "model_channels": 33}), "model_channels: expected an even"),
        (json.dumps({**CONFIG.to_fields(), "channel_mult": [1, 60_000]}), "up to 65536"),
        (
            json.dumps({**CONFIG.to_fields(), "channel_mult": [1] * 17}),
            "channel_mult: expected a list of 1 to 16",
        ),
        (json.dumps({**CONFIG.to_fields(), "num_heads": 7}), "num_heads: expected a divisor of the width 64"),
        (json.dumps({**CONFIG.to_fields(), "timesteps": 10**12}), "timesteps: .*from 1 to 100000"),
        (json.dumps({**CONFIG.to_fields(), "num_res_blocks": 10**9}), "num_res_blocks: .*from 1 to 64"),
        ("[" * 100_000, "not a readable JSON file"),
        ("[1]", "expected fields by name"),
        ("{", "not a readable JSON file"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=message):
            import_diffae(path, tmp_path / "other", config=str(file))
    with pytest.raises(UserError, match="expected one of ffhq128, ffhq256"):
        import_diffae(path, tmp_path / "other", config="ffhq64")
    with pytest.raises(UserError, match="tensors"):
        import_diffae(path, tmp_path / "other", config="ffhq128")


def bare_shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    prefix = "ema_model."
    return {
        name.removeprefix(prefix): tuple(v.shape) for name, v in tensors.items() if name.startswith(prefix)
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time_embed.time_embed.0.weight": (48, 0)}, "base width above 0"),
        ({"time_embed.time_embed.0.weight": (0, 32)}, "embed_channels: expected"),
        ({"time_embed.time_embed.0.weight": (48, 1)}, "even base width"),
        ({"encoder.out.3.weight": (0, 64, 1, 1)}, "semantic_channels: expected"),
        ({"encoder.input_blocks.1.0.in_layers.2.weight": (48, 32, 3, 3)}, "no multiples of the base width"),
        ({"time_embed.time_embed.0.weight": (48, 8), "input_blocks.1.0.in_layers.2.weight": (8, 32, 3, 3)}, "8 x 1"),
    ],
)  # fmt: skip
def test_shapes_of_no_network_are_refused_before_one_is_built(
    tensors: dict[str, Tensor], changes: dict[str, tuple[int, ...]], message: str
) -> None:
    shapes = bare_shapes(tensors)
    assert infer_config(shapes) == CONFIG
    with pytest.raises(UserError, match=message):
        infer_config({**shapes, **changes})


def test_an_endless_number_of_blocks_is_refused(tensors: dict[str, Tensor]) -> None:
    # One level, so that the numbers of the blocks alone tell how many there are.
    shapes = {name: shape for name, shape in bare_shapes(tensors).items() if ".in_layers." not in name}
    shapes |= {f"{half}input_blocks.1.0.in_layers.2.weight": (32, 32, 3, 3) for half in ("", "encoder.")}
    with pytest.raises(UserError, match="num_res_blocks: expected a whole number from 1 to 64"):
        infer_config({**shapes, "output_blocks.999999999.0.out_layers.3.weight": (32, 32, 3, 3)}, 32)


def test_what_lies_there_is_not_overwritten(tmp_path: Path, model: DiffAE) -> None:
    path = checkpoint(tmp_path / "last.ckpt", model.network.state_dict())
    with pytest.raises(UserError, match="expected a new folder"):
        import_diffae(path, tmp_path)
    with pytest.raises(UserError, match="expected a new folder"):
        import_diffae(path, path)
    with pytest.raises(UserError, match="no such file"):
        import_diffae(tmp_path / "missing.ckpt", tmp_path / "out")


def test_damaged_folders_are_refused(tmp_path: Path, model: DiffAE) -> None:
    model.save(tmp_path)
    written = json.loads((tmp_path / "diffae.json").read_text())
    for values, message in (
        ({**written, "format_version": 99}, "format version 99"),
        ({**written, "config": 3}, "config: expected fields"),
        ({**written, "config": {**written["config"], "num_res_blocks": 2}}, "do not fit"),
    ):
        (tmp_path / "diffae.json").write_text(json.dumps(values))
        with pytest.raises(UserError, match=message):
            DiffAE.load(tmp_path)
    (tmp_path / "diffae.json").write_text(json.dumps(written))
    (tmp_path / "diffae.safetensors").unlink()
    with pytest.raises(UserError, match=r"diffae.safetensors: no such file"):
        DiffAE.load(tmp_path)


def test_the_command(tmp_path: Path, tensors: dict[str, Tensor], capsys: pytest.CaptureFixture[str]) -> None:
    path, out = checkpoint(tmp_path / "last.ckpt", tensors), tmp_path / "out"
    with pytest.raises(SystemExit) as caught:
        main(["import-diffae", str(path), str(out), "--json"])
    assert caught.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["autoencoder"] == str(out) and printed["config"] == CONFIG.to_fields()
    with pytest.raises(SystemExit):
        main(["import-diffae", str(path), str(out)])
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    with pytest.raises(SystemExit) as caught:
        main(["import-diffae", str(path), str(out), "--config", "ffhq256"])
    said = capsys.readouterr()
    assert caught.value.code == 2 and said.out == "" and said.err.startswith("error: ")
