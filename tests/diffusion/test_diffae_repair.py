"""What a repair does with an imported DiffAE: fitted heads, edits through it, and a whole run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from diffinf.cli import main
from diffinf.config import AutoencoderConfig, RepairConfig
from diffinf.diffusion.autoencoder import DiffusionAutoencoder
from diffinf.diffusion.diffae.autoencoder import DatasetHeads, DiffAE
from diffinf.diffusion.diffae.fit import fit_attribute, fit_to_dataset
from diffinf.diffusion.familiarity import usual_error
from diffinf.diffusion.interface import load_autoencoder
from diffinf.errors import UserError
from diffinf.repair.edit import _finish, decode_edit, guided, take_apart
from diffinf.repair.editors import Inverted, Plan, Wish
from diffinf.repair.objective import CodePrior, optimise_codes
from diffinf.repair.surrogate import Surrogate
from diffinf.stages import autoencoding
from diffinf.training.monitor import Tell
from diffusion.tiny_autoencoder import make_autoencoder
from diffusion.tiny_diffae import CONFIG, make_diffae, photos

N = 12
LABELS = torch.arange(N) % 2
IMAGES = photos(N, 5)
IMAGES[LABELS == 1] = IMAGES[LABELS == 1] // 2 + 127
SHARES = torch.eye(2)[LABELS]
CPU = torch.device("cpu")


def settings(**changes: object) -> RepairConfig:
    return RepairConfig(**{"diffusion_steps": 2, "depth": 0.3, "guidance": 1.5, **changes})


def fit(source: Path, directory: Path, images: Tensor = IMAGES, tell: Tell | None = None) -> DiffAE:
    return fit_to_dataset(
        source,
        images,
        SHARES[: len(images)],
        AutoencoderConfig(guide_steps=6, batch_size=6),
        class_names=("dim", "bright"),
        seed=0,
        device=CPU,
        directory=directory,
        tell=tell,
    )


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported")
    make_diffae(calm=0.1).save(folder)
    return folder


@pytest.fixture(scope="module")
def fitted(imported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitted") / "autoencoder"
    fit(imported, folder)
    return folder


@pytest.fixture(scope="module")
def model(fitted: Path) -> DiffAE:
    return DiffAE.load(fitted)


@pytest.fixture(scope="module")
def shown() -> Tensor:
    return 1 - SHARES[:2]


@pytest.fixture(scope="module")
def apart(model: DiffAE, shown: Tensor) -> Inverted:
    return take_apart(model, IMAGES[:2], shown, settings())


@pytest.mark.parametrize("soft", [0.0, 0.2])
def test_the_attribute_head_is_a_logistic_regression(soft: float) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(60, 4, generator=generator)
    labels = (codes @ torch.tensor([1.0, -2.0, 0.5, 0.0]) + torch.randn(60, generator=generator) > 0).long()
    shares = (1 - soft) * torch.eye(2)[labels] + soft * torch.eye(2)[1 - labels]
    head = nn.Linear(4, 2)
    loss = fit_attribute(head, codes, shares)
    # Two classes with weights ±w/2 each: the ridge on both is half of that on w.
    judge = LogisticRegression(C=1 / (2 * 60 * 0.5e-3), tol=1e-10, max_iter=1000)
    twice = torch.cat([codes, codes]).numpy()
    weight = np.concatenate([np.full(60, 1 - soft), np.full(60, soft)])
    judge.fit(twice, torch.cat([labels, 1 - labels]).numpy(), sample_weight=weight)
    found = head(codes).softmax(1)[:, 1].detach().numpy()
    np.testing.assert_allclose(found, judge.predict_proba(codes.numpy())[:, 1], atol=2e-3)
    assert 0 < loss < 0.69
    assert not head.weight.requires_grad


def test_fitting_writes_a_folder_that_is_whole_by_itself(fitted: Path, model: DiffAE) -> None:
    assert sorted(path.name for path in fitted.iterdir()) == [
        "diffae.json",
        "diffae.safetensors",
        "heads.json",
        "heads.safetensors",
        "metrics.json",
    ]
    assert model.heads is not None and model.heads.class_names == ("dim", "bright")
    codes = model.code(model.to_latents(IMAGES))
    torch.testing.assert_close(codes.mean(0), torch.zeros(24), rtol=0, atol=1e-3)
    torch.testing.assert_close(codes.std(0), torch.ones(24), rtol=0, atol=1e-3)
    assert (model.read_code(codes)[0].argmax(1) == LABELS).all()
    metrics = json.loads((fitted / "metrics.json").read_text())
    assert metrics["n"] == N and metrics["attribute"]["loss"] < 0.3 and metrics["guide"]["step"] == 6
    assert all(not p.requires_grad for p in model.parameters())


def test_fitting_leaves_the_imported_weights_alone(fitted: Path, imported: Path, tmp_path: Path) -> None:
    for name in ("diffae.json", "diffae.safetensors"):
        assert (fitted / name).read_bytes() == (imported / name).read_bytes()
    fit(imported, tmp_path / "again")
    assert (tmp_path / "again" / "heads.safetensors").read_bytes() == (
        fitted / "heads.safetensors"
    ).read_bytes()


def told(source: DiffAE, directory: Path) -> list[tuple[str, str]]:
    """Fit to the pictures of this file; return what was told."""
    events: list[tuple[str, str]] = []
    source.save(directory / "source")
    fit(directory / "source", directory / "fitted", tell=lambda name, text: events.append((name, text)))
    return events


def test_statistics_of_the_checkpoint_are_kept_and_those_of_other_data_told(tmp_path: Path) -> None:
    model = make_diffae()
    mean, std = torch.randn(24, generator=torch.Generator().manual_seed(0)), torch.full((24,), 2.0)
    model.set_statistics(mean, std)
    with pytest.warns(UserWarning, match="the autoencoder was trained on other data: the mean of the codes"):
        ((name, text),) = told(model, tmp_path)
    assert name == "warning" and text.startswith("the autoencoder was trained on other data: ")
    loaded = DiffAE.load(tmp_path / "fitted")
    assert torch.equal(loaded.code_mean, mean) and torch.equal(loaded.code_std, std)


@pytest.mark.filterwarnings("error::UserWarning")
def test_nothing_is_told_where_codes_are_alike_or_the_checkpoint_says_nothing_of_them(tmp_path: Path) -> None:
    model = make_diffae()
    assert told(model, tmp_path / "silent") == []
    codes = model.network.encoder(model.to_latents(photos(200, 6)))
    codes[1::2] = model.network.encoder(model.to_latents(photos(200, 6)[1::2] // 2 + 127))  # as IMAGES are
    model.set_statistics(codes.mean(0), codes.std(0))
    assert told(model, tmp_path / "alike") == []


def test_the_usual_error_on_the_dataset_comes_back(fitted: Path, model: DiffAE) -> None:
    assert model.usual_error == pytest.approx(usual_error(model, IMAGES), abs=1e-4)
    assert model.latent_std == ()


def test_other_images_are_refused(imported: Path, tmp_path: Path, model: DiffAE) -> None:
    for images in (IMAGES[:, :1], IMAGES[:, :, :16, :16]):
        with pytest.raises(UserError, match=r"data.image_size=32 and data.channels=3"):
            fit(imported, tmp_path / "out", images)
        with pytest.raises(UserError, match=r"data.image_size=32 and data.channels=3"):
            model.to_latents(images)
    assert not (tmp_path / "out").exists()


def test_without_a_dataset_there_is_nothing_to_read() -> None:
    model = make_diffae()
    for read in (model.read_code, model.guide_logits):
        with pytest.raises(UserError, match="not fitted to a dataset"):
            read(torch.zeros(1, 24))


def damaged_heads(folder: Path) -> None:
    (folder / "heads.json").write_text('{"format_version": 1}')


def other_heads(folder: Path) -> None:
    (folder / "heads.json").write_text('{"format_version": 1, "class_names": ["a", "b", "c"]}')


def half_an_error(folder: Path) -> None:
    fields = json.loads((folder / "heads.json").read_text())
    (folder / "heads.json").write_text(json.dumps({**fields, "usual_error": [0.1]}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damaged_heads, "heads.json: damaged"),
        (other_heads, "do not fit"),
        (half_an_error, "heads.json: damaged .*usual_error"),
    ],
)
def test_damaged_heads_are_refused(
    fitted: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = shutil.copytree(fitted, tmp_path / "copy")
    damage(folder)
    with pytest.raises(UserError, match=message):
        DiffAE.load(folder)


def test_a_folder_tells_which_autoencoder_it_holds(fitted: Path, tmp_path: Path) -> None:
    assert isinstance(load_autoencoder(fitted), DiffAE)
    make_autoencoder().save_pretrained(tmp_path)
    assert isinstance(load_autoencoder(tmp_path), DiffusionAutoencoder)


def test_taking_apart_gives_codes_and_a_round_trip(model: DiffAE, apart: Inverted) -> None:
    torch.testing.assert_close(apart.code, model.code(model.to_latents(IMAGES[:2])))
    assert apart.noisy.shape == (2, 3, 32, 32)
    assert (apart.roundtrip.int() - IMAGES[:2].int()).abs().float().mean() < 3


def test_an_edit_goes_from_the_code_as_it_is_past_the_moved_one(
    model: DiffAE, apart: Inverted, shown: Tensor
) -> None:
    moved = apart.code + torch.randn(2, 24, generator=torch.Generator().manual_seed(0))
    config = settings(guide_scale=0.0)
    start, end = (
        model.context(code, shown) for code in (apart.code, apart.code + 0.5 * (moved - apart.code))
    )

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        away = model.network(noisy, t, start)
        return away + 0.5 * (1 + 1.5) * (model.network(noisy, t, end) - away)

    expected = model.to_images(model.decode_latents(apart.noisy, predict, steps=2, depth=0.3))
    edited = decode_edit(model, apart, Wish(moved, LABELS[:2], shown), 0.5, config)
    assert (edited.images.int() - expected.int()).abs().max() <= 1
    assert not torch.equal(edited.images, apart.roundtrip)
    still = decode_edit(model, apart, Wish(moved, LABELS[:2], shown), 1e-6, config)
    assert (still.images.int() - apart.roundtrip.int()).abs().max() <= 1


def test_a_drawing_that_is_the_image_is_finished_to_its_round_trip(model: DiffAE, shown: Tensor) -> None:
    config = settings(finish_depth=0.3, finish_steps=2)
    parts = take_apart(model, IMAGES[:2], shown, config)
    context = model.context(parts.code, shown)
    finished = _finish(model, parts, Plan(parts.noisy, context, context, 0.0), parts.latents, config)
    assert (model.to_images(finished).int() - parts.roundtrip.int()).abs().max() <= 1


def test_a_guided_edit_is_drawn_and_finished(model: DiffAE, apart: Inverted, shown: Tensor) -> None:
    wish = Wish(apart.code, 1 - LABELS[:2], shown)
    asked: list[int] = []
    predict = model.predict

    def counting(noisy: Tensor, t: Tensor, context: Tensor) -> Tensor:
        asked.append(len(noisy))
        return predict(noisy, t, context)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "predict", counting)
        edited = decode_edit(model, apart, wish, 1.0, settings(finish_steps=3))
    assert asked == [2, 2, 4, 4, 4], "one context draws, both finish"
    assert not torch.equal(edited.drawn, apart.roundtrip) and not torch.equal(edited.images, edited.drawn)


@pytest.mark.parametrize(("steps", "depth"), [(2, 0.3), (5, 0.3), (3, 0.7), (1, 0.2)])
def test_the_signal_is_that_of_where_a_decode_starts(model: DiffAE, steps: int, depth: float) -> None:
    # Of two images whose noise the network knows, all that is not noise is signal.
    clean, noise = torch.randn(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    level: list[int] = []

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        level.append(int(t[0]))
        return noise

    signal = model.signal(steps, depth)
    noisy = signal**0.5 * clean + (1 - signal) ** 0.5 * noise
    decoded = model.decode_latents(noisy, predict, steps=steps, depth=depth)
    torch.testing.assert_close(decoded, clean, rtol=1e-3, atol=1e-3)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    assert signal == pytest.approx(float((1 - betas).cumprod(0)[level[0]]), rel=1e-5)


def test_the_guide_moves_pixels_towards_the_label(model: DiffAE) -> None:
    clean = model.to_latents(IMAGES[:4])
    config = settings(guide_noise=0.0)
    for labels in (LABELS[:4], 1 - LABELS[:4]):
        step = guided(model, clean, labels, 0.02, config) - clean
        torch.testing.assert_close(step.square().mean((1, 2, 3)).sqrt(), torch.full((4,), 0.02))
        before, after = (
            model.guide_logits(x).log_softmax(1)[range(4), labels] for x in (clean, clean + step)
        )
        assert (after > before).all()
        moved = (step.abs() > 0).any(1).float().mean((1, 2))
        torch.testing.assert_close(moved, torch.full((4,), config.guide_share), rtol=0, atol=0.01)


def test_codes_move_towards_their_label(model: DiffAE) -> None:
    codes = model.code(model.to_latents(IMAGES))
    prior = CodePrior.fit(codes, LABELS, torch.ones(N), 2)
    surrogate = Surrogate(24, 2).eval().requires_grad_(False)
    wrong = 1 - LABELS
    result = optimise_codes(
        model, surrogate, prior, codes, wrong, settings(code_steps=40), identity_known=True
    )
    moved = result.code
    before, after = (model.read_code(code)[0].softmax(1)[range(N), wrong] for code in (codes, moved))
    assert (after > before).all()
    cosine = (nn.functional.normalize(codes, dim=1) * nn.functional.normalize(moved, dim=1)).sum(1)
    torch.testing.assert_close(result.after["identity"], 1 - cosine)


def test_heads_have_the_datasets_classes() -> None:
    heads = DatasetHeads(CONFIG, ("a", "b", "c"))
    assert heads.attribute(torch.zeros(2, 24)).shape == (2, 3)
    assert heads.guide(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_a_run_goes_all_the_way_with_an_imported_autoencoder(
    imported: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = ["--preset", "tiny", "--out", str(run), "--set", f"autoencoder.weights={imported}"]
    for value in (
        "data.channels=3",
        "influence.flag=count",
        "influence.count=3",
        "repair.depth=0.3",
        "repair.strengths=[0.5]",
        "compare.arms=[baseline, diffinf]",
    ):
        options += ["--set", value]
    with pytest.raises(SystemExit) as caught:
        main(["run", str(folders), *options, "--json"])
    assert caught.value.code == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["flagged"] == 3
    edits = pq.read_table(run / "edits.parquet").to_pylist()
    assert len(edits) == 3
    assert all(row["roundtrip_error"] < 0.1 and 0 <= row["judge_after"] <= 1 for row in edits)
    assert DiffAE.load(run / "autoencoder").heads is not None
    assert (run / "report.html").stat().st_size > 10_000
    assert len(list((run / "refined").rglob("*.png"))) == 24


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    nowhere: Any = None
    with pytest.raises(UserError, match=r"autoencoder.json .*diffae.json"):
        autoencoding._take_weights(tmp_path, nowhere)


def test_an_inversion_that_ends_elsewhere_than_the_decode_begins_is_refused(
    model: DiffAE, shown: Tensor
) -> None:
    with pytest.raises(UserError, match="inversion_steps: 5 steps"):
        take_apart(model, IMAGES[:2], shown, settings(diffusion_steps=2, inversion_steps=5))
