"""Whether everything is where it must be on a GPU: the computing paths on one that is pretended.

What is drawn is drawn on the CPU, whatever the device, so that the figures are those of the CPU too.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from classify.tiny_problem import SPEC, make_problem
from diffinf.classify.methods import MethodSpec
from diffinf.classify.model import ClassifierSpec, create_classifier, predict, to_input
from diffinf.classify.train import train_classifier
from diffinf.config import AutoencoderConfig, ClassifierConfig, EditorName, RepairConfig
from diffinf.diffusion.autoencoder import DiffusionAutoencoder
from diffinf.diffusion.diffae.fit import fit_to_dataset
from diffinf.diffusion.prior import LatentPrior
from diffinf.diffusion.train import train_autoencoder
from diffinf.errors import UserError
from diffinf.features.persons import PersonEmbedder, train_identity
from diffinf.generate import random_contexts
from diffinf.generate.model import ContextGenerator
from diffinf.generate.sample import Sampler, Sampling, sample_images
from diffinf.generate.train import train_generator
from diffinf.influence.self_influence import layer_shares, self_influence
from diffinf.repair.attempts import edit_batch
from diffinf.repair.edit import Inverted, decode_edit, keep_unchanged, take_apart
from diffinf.repair.editors import Wish
from diffinf.repair.gate import Gate
from diffinf.repair.objective import CodePrior, optimise_codes
from diffinf.repair.surrogate import Surrogate
from diffinf.stages.editing import edit_images
from diffinf.stages.workspace import resolve_device
from diffusion.tiny_autoencoder import make_autoencoder, pictures
from diffusion.tiny_diffae import make_diffae, photos
from faces import png
from generate import tiny_generator
from pretend_cuda import WrongDeviceError, pretend_cuda

# Of what seeds the global generators: with several GPUs, all of them would be touched.
pytestmark = pytest.mark.filterwarnings("error:.*available devices")

CPU = torch.device("cpu")
IMAGES = pictures(4, 3)
LABELS = torch.tensor([0, 1, 0, 1])
FOLD = torch.tensor([0, 0, 1, 1])
REPAIR = RepairConfig(
    diffusion_steps=2, finish_steps=1, depth=0.5, finish_depth=0.3, strengths=[0.5, 1.0], code_steps=2
)


def alike(found: Tensor, expected: Tensor) -> None:
    """Round as the CPU does, up to the order of sums; whole numbers may tip over."""
    if expected.is_floating_point():
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-4)
    else:
        assert (found.cpu().int() - expected.int()).abs().max() <= 1


def test_the_pretended_gpu_refuses_what_a_real_one_does() -> None:
    here = torch.arange(3.0)
    with pretend_cuda() as cuda:
        there = here.to(cuda)
        assert there.device == torch.device("cuda:0") and there.is_cuda and there.cpu().equal(here)
        for mistake in (
            lambda: there + here,
            lambda: torch.where(there > 1, here, there),
            lambda: there.index_add(0, torch.tensor([0]), there[:1]),
            lambda: torch.cat([there, here]),
            lambda: here[torch.tensor([1], device=cuda)],
            lambda: torch.randn(3, generator=torch.Generator(), device=cuda),
            lambda: nn.Linear(3, 1)(there),
        ):
            with pytest.raises(WrongDeviceError):
                mistake()
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()
        assert float(there.sum() * torch.tensor(2.0)) == 6 and there[torch.tensor([2])].item() == 2


def test_a_device_is_found_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretend_cuda() as cuda:
        assert resolve_device("cuda") == cuda and resolve_device("cuda:1") == torch.device("cuda:1")
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert resolve_device("cuda") == torch.device("cuda:1")  # a GPU for each of torchrun's processes
    # A process more than there are GPUs.
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda")
    )
    monkeypatch.setenv("LOCAL_RANK", "127")
    with pytest.raises(UserError, match="no more processes than there are GPUs"):
        resolve_device("auto")


@pytest.mark.parametrize("method", [None, "elr", "co-teaching", "sam"])
def test_a_classifier_trains(tmp_path: Path, method: str | None) -> None:
    problem = make_problem(16, 0)

    def logits(device: torch.device, directory: Path) -> Tensor:
        model = train_classifier(
            problem.images,
            problem.labels,
            spec=SPEC,
            config=ClassifierConfig(steps=2, batch_size=8, checkpoints=1),
            seed=0,
            device=device,
            method=None if method is None else MethodSpec(method, 0.3),
            directory=directory,
            progress=False,
        )
        return predict(model, problem.images, device=device)[1]

    with pretend_cuda() as cuda:
        found = logits(cuda, tmp_path / "cuda")
    if method is None:
        alike(found, logits(CPU, tmp_path / "cpu"))


@pytest.mark.parametrize("scope", ["all", "head"])
def test_self_influence(scope: str) -> None:
    problem, model = make_problem(6, 0), create_classifier(SPEC, 0)
    given: Any = {"to_input": to_input, "scope": scope, "batch_size": 4}
    expected = self_influence([(model, 1.0)], problem.images, problem.labels, **given)
    with pretend_cuda() as cuda:
        model.to(cuda)
        found = self_influence([(model, 1.0)], problem.images, problem.labels, device=cuda, **given)
        shares = layer_shares([(model, 1.0)], problem.images, problem.labels, device=cuda, **given)
    alike(torch.from_numpy(found), torch.from_numpy(expected))
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "auto", "gradient_checkpointing": True, "validation_share": 0.1, "sheets": 1},
        {"precision": "float16"},
        {
            "precision": "float32",
            "first_stage": "kl",
            "first_stage_channels": [16, 32],
            "first_stage_steps": 1,
        },
    ],
    ids=lambda changes: changes["precision"],
)
def test_an_autoencoder_trains_and_is_saved(tmp_path: Path, changes: dict[str, Any]) -> None:
    few = {"steps": 2, "guide_steps": 1, "prior_steps": 1, "batch_size": 4, "sheets": 0}
    small = {"latent_channels": 4, "attribute_size": 2, "appearance_size": 3, "unet_channels": [32]}
    n = 320 if "validation_share" in changes else 8  # of fewer images none are held out
    with pretend_cuda() as cuda:
        model = train_autoencoder(
            pictures(n, 0),
            torch.eye(2)[torch.arange(n) % 2],
            torch.arange(n) // 4,
            AutoencoderConfig(**{**few, **small, **changes}),
            class_names=("calm", "smile"),
            seed=0,
            device=cuda,
            directory=tmp_path,
        )
        assert model.device.type == "cuda"
    assert DiffusionAutoencoder.from_pretrained(tmp_path).device == CPU
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert bool(metrics["validation"]) == (tmp_path / "sheets").is_dir() == ("sheets" in changes)


def test_images_are_taken_apart_put_together_and_drawn() -> None:
    model = make_autoencoder()
    model.prior = LatentPrior(8, 2).eval().requires_grad_(False)

    def made() -> list[Tensor]:
        back, error = model.reconstruct(IMAGES, steps=2)
        between = model.interpolate(IMAGES[:1], IMAGES[1:2], [0.5], steps=2)
        return [*model.encode(IMAGES, steps=2), back, error, between, model.sample(2, steps=2, prior_steps=2)]

    expected = made()
    with pretend_cuda() as cuda:
        model.to(cuda)
        for one, other in zip(made(), expected, strict=True):
            assert one.device.type == "cuda"
            alike(one, other)
        assert model.differs_from(pictures(64, 7)) is None


@pytest.mark.parametrize("editor", get_args(EditorName))
def test_every_editor(editor: EditorName) -> None:
    model, config = make_autoencoder(), REPAIR.model_copy(update={"editor": editor})
    surrogate = Surrogate(8, 2).eval()

    def edited(device: torch.device) -> Tensor:
        images, labels = IMAGES.to(device), LABELS.to(device)
        shown = torch.eye(2)[1 - LABELS].to(device)
        parts = take_apart(model, images, shown, config)
        prior = CodePrior(torch.zeros(2, 8, device=device), torch.eye(8, device=device))
        moved = optimise_codes(model, surrogate, prior, parts.code, labels, config, identity_known=True)
        decoded = decode_edit(model, parts, Wish(moved.code, labels, shown), 0.8, config)
        return keep_unchanged(images, parts.roundtrip, decoded, config)

    expected = edited(CPU)
    with pretend_cuda() as cuda:
        model.to(cuda)
        surrogate.to(cuda)
        alike(edited(cuda), expected)


def test_attempts_and_the_gate() -> None:
    model = make_autoencoder()
    spec = ClassifierSpec("small_cnn", 2, 1, 16)
    judges = [create_classifier(spec, seed).eval() for seed in (0, 1)]
    persons = create_classifier(replace(spec, num_classes=8), 2).eval()

    def found(device: torch.device) -> dict[str, Tensor]:
        limits = torch.full((2,), torch.inf)
        embedder = PersonEmbedder(persons.to(device), to_input, device)
        gate = Gate(judges, judges, limits, "all", embedder, -1.0, REPAIR, device)
        images, shown = IMAGES.to(device), torch.eye(2)[1 - LABELS].to(device)
        parts: Inverted = take_apart(model, images, shown, REPAIR)
        wish = Wish(parts.code + 0.5, LABELS.to(device), shown)
        return edit_batch(model, gate, images, parts, wish, FOLD.to(device), FOLD.to(device), REPAIR)

    expected = found(CPU)
    with pretend_cuda() as cuda:
        model.to(cuda)
        judges = [judge.to(cuda) for judge in judges]
        values = found(cuda)
    assert all(value.device == CPU for value in values.values()) and values.keys() == expected.keys()
    alike(values["edited"], expected["edited"])


def test_a_picture_of_one_s_own(tmp_path: Path) -> None:
    make_autoencoder().save_pretrained(tmp_path / "model")
    (tmp_path / "face.png").write_bytes(png(IMAGES[0, 0].numpy()))
    given: Any = {"to": "smile", "model": tmp_path / "model", "strengths": [1.0]}
    (expected,) = edit_images([tmp_path / "face.png"], device="cpu", **given)
    with pretend_cuda():
        (edit,) = edit_images([tmp_path / "face.png"], device="cuda", **given)
    alike(edit.edited[1.0], expected.edited[1.0])
    alike(edit.roundtrip, expected.roundtrip)


def test_a_generator_trains(tmp_path: Path) -> None:
    images, who = tiny_generator.pictures(320)
    with pretend_cuda() as cuda:
        model = train_generator(
            images,
            who,
            tiny_generator.settings(steps=2, validation_share=0.1, injection="attention"),
            context_names=("p0", "p1", "p2"),
            seed=0,
            device=cuda,
            directory=tmp_path,
        )
        assert model.device.type == "cuda"
    assert ContextGenerator.from_pretrained(tmp_path).device == CPU and (tmp_path / "sheets").is_dir()


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm++"])
def test_samples_under_negative_contexts(sampler: Sampler) -> None:
    model, contexts = tiny_generator.make_generator(), random_contexts(3, 6)
    how = Sampling(negative="far", scale=0.5, sampler=sampler, steps=2)
    expected = sample_images(model, contexts, [1, 2, 3], how, contexts.flip(0))
    with pretend_cuda() as cuda:
        model.to(cuda)
        found = sample_images(model, contexts, [1, 2, 3], how, contexts.flip(0))
    assert found.device == CPU
    alike(found, expected)


def test_an_imported_autoencoder_is_fitted_and_edits(tmp_path: Path) -> None:
    source = make_diffae(calm=0.1)
    source.save(tmp_path / "source")
    images = photos(4, 0)
    with pretend_cuda() as cuda:
        model = fit_to_dataset(
            tmp_path / "source",
            images,
            torch.eye(2)[LABELS],
            AutoencoderConfig(guide_steps=1, batch_size=4),
            class_names=("calm", "smile"),
            seed=0,
            device=cuda,
            directory=tmp_path / "fitted",
        )
        labels, shown = LABELS.to(cuda), torch.eye(2)[1 - LABELS].to(cuda)
        parts = take_apart(model, images.to(cuda), shown, REPAIR)
        edited = decode_edit(model, parts, Wish(parts.code, labels, shown), 1.0, REPAIR)
        assert edited.images.is_cuda and edited.images.shape == images.shape


def test_persons_are_learned() -> None:
    with pretend_cuda() as cuda:
        network = train_identity(
            create_classifier(ClassifierSpec("small_cnn", 8, 1, 16), 0),
            IMAGES,
            torch.tensor([0, 0, 1, 1]),
            to_input=to_input,
            steps=1,
            batch_size=4,
            learning_rate=1e-3,
            seed=0,
            device=cuda,
        )
        vectors, found = PersonEmbedder(network, to_input, cuda).embed(IMAGES)
    assert vectors.device == CPU and found.all()
