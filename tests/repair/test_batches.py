"""The passes over flagged samples: which attempt is kept, what is tried again, resumption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffinf.classify.crossfit import write_material
from diffinf.classify.model import ClassifierSpec, create_classifier, save_classifier
from diffinf.config import RepairConfig
from diffinf.diffusion.autoencoder import DiffusionAutoencoder
from diffinf.errors import UserError
from diffinf.files import write_json
from diffinf.repair import batches
from diffinf.repair.attempts import REASONS
from diffinf.repair.batches import run_batches
from diffinf.repair.edit import decode_edit, keep_unchanged, take_apart
from diffinf.repair.editors import Wish
from diffinf.repair.gate import Verdict, load_gate
from diffusion.tiny_autoencoder import pictures

CPU = torch.device("cpu")
CONFIG = RepairConfig(diffusion_steps=2, batch_size=2, strengths=[0.5, 1.0, 1.5], depth=0.5, guide_scale=0)
IMAGES = pictures(5, 21)
LABELS = torch.tensor([0, 1, 0, 1, 0])
SHOWN = torch.eye(2)[1 - LABELS]
# What the gate says to each attempt at each sample.
SCRIPT = [[""], ["judge", ""], ["judge", "influence", "judge"], ["identity"], ["influence", "identity"]]


class ScriptedGate:
    """Finds what the script says; samples tell who they are by their fold."""

    def __init__(self) -> None:
        self.attempts = [0] * 5

    def check(
        self,
        originals: Tensor,
        edited: Tensor,
        labels: Tensor,
        judge_fold: Tensor,
        score_fold: Tensor,
        roundtrip_error: Tensor,
    ) -> Verdict:
        who = judge_fold.tolist()
        assert torch.equal(originals, IMAGES[who]) and torch.equal(labels, LABELS[who])
        assert torch.equal(score_fold, judge_fold + 10)
        reasons = []
        for sample in who:
            reasons.append(SCRIPT[sample][self.attempts[sample]])
            self.attempts[sample] += 1
        found = torch.tensor([sample + self.attempts[sample] / 10 for sample in who])
        return Verdict(reasons, found, found + 100, found + 200)


@pytest.fixture
def moved(autoencoder: DiffusionAutoencoder) -> Tensor:
    parts = take_apart(autoencoder, IMAGES, SHOWN, CONFIG)
    return parts.code + torch.randn(parts.code.shape, generator=torch.Generator().manual_seed(0))


def run(scratch: Path, function: str) -> dict[str, Tensor]:
    return run_batches(
        function,
        scratch,
        5,
        config=CONFIG,
        device=CPU,
        workers=1,
        description="batches",
        settings={"autoencoder": "tiny", "repair": "", "scorers": ""},
    )


@pytest.fixture
def scratch(
    tmp_path: Path, autoencoder: DiffusionAutoencoder, moved: Tensor, monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.setattr(batches, "_autoencoder", lambda directory, device: autoencoder)
    fold = torch.arange(5)
    material: dict[str, Any] = {"images": IMAGES, "labels": LABELS, "shown": SHOWN, "code": moved}
    write_material(tmp_path / "material", **material, judge_fold=fold, score_fold=fold + 10)
    return tmp_path


def test_batches_are_taken_apart_as_one(scratch: Path, autoencoder: DiffusionAutoencoder) -> None:
    found = run(scratch, "take_apart_job")
    whole = take_apart(autoencoder, IMAGES, SHOWN, CONFIG)
    torch.testing.assert_close(found["code"], whole.code, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["latents"], whole.latents)
    torch.testing.assert_close(found["noisy"], whole.noisy, rtol=1e-3, atol=1e-4)
    assert (found["roundtrip"].int() - whole.roundtrip.int()).abs().max() <= 1
    error = (found["roundtrip"].double() - IMAGES.double()).abs().mean((1, 2, 3)) / 127.5
    torch.testing.assert_close(found["error"].double(), error)


def test_the_gentlest_edit_that_passes_is_kept_else_the_last_attempt(
    scratch: Path, autoencoder: DiffusionAutoencoder, moved: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = ScriptedGate()
    monkeypatch.setattr(batches, "_gate", lambda *_: gate)
    run(scratch, "take_apart_job")
    found = run(scratch, "edit_job")
    assert [REASONS[code] for code in found["reason"].tolist()] == ["", "", "judge", "identity", "identity"]
    assert found["strength"].tolist() == [0.5, 1.0, 1.5, 0.5, 1.0]
    # An edit that lost the person is not tried stronger.
    assert gate.attempts == [1, 2, 3, 1, 2]
    kept = torch.tensor([0.1, 1.2, 2.3, 3.1, 4.2])
    torch.testing.assert_close(found["judge"], kept)
    torch.testing.assert_close(found["identity"], kept + 100)
    torch.testing.assert_close(found["influence"], kept + 200)
    parts = take_apart(autoencoder, IMAGES, SHOWN, CONFIG)
    codes = [autoencoder.code(autoencoder.to_latents(images)) for images in (IMAGES, found["edited"])]
    torch.testing.assert_close(
        found["code_similarity"], torch.cosine_similarity(*codes), rtol=1e-3, atol=1e-4
    )
    for sample, strength in enumerate(found["strength"].tolist()):
        decoded = decode_edit(autoencoder, parts, Wish(moved, LABELS, SHOWN), strength, CONFIG)
        expected = keep_unchanged(IMAGES, parts.roundtrip, decoded, CONFIG)[sample]
        assert (found["edited"][sample].int() - expected.int()).abs().max() <= 2, sample
        assert not torch.equal(found["edited"][sample], IMAGES[sample])


def test_batches_that_are_there_are_not_done_again(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(scratch, "take_apart_job")
    done = sorted(scratch.glob("take_apart_job-*"))
    assert [path.stem for path in done] == ["take_apart_job-0-2", "take_apart_job-2-4", "take_apart_job-4-5"]
    done[1].unlink()
    asked = []

    def counting(model: DiffusionAutoencoder, images: Tensor, *rest: Any) -> Any:
        asked.append(images.clone())
        return take_apart(model, images, *rest)

    monkeypatch.setattr(batches, "take_apart", counting)
    again = run(scratch, "take_apart_job")
    assert len(asked) == 1 and torch.equal(asked[0], IMAGES[2:4])
    assert all(torch.equal(again[name], whole[name]) for name in whole)


# As text, fold-10 comes before fold-2.
@pytest.mark.parametrize("folds", [3, 11])
def test_the_gate_has_its_models_in_the_order_of_the_folds(tmp_path: Path, folds: int) -> None:
    spec = ClassifierSpec("small_cnn", 2, 1, 32)
    model = create_classifier(spec, 0)
    for fold in range(folds):
        with torch.no_grad():
            model.head.bias.fill_(fold)
        save_classifier(tmp_path / "judge" / f"fold-{fold}", model, spec)
    gate = {
        "scope": "all",
        "influence_limits": [1.0, 2.0],
        "identity_threshold": None,
        "identity": None,
    }
    write_json(tmp_path / "gate.json", gate)
    loaded = load_gate(tmp_path, tmp_path / "judge", CONFIG, CPU)
    for models in (loaded.judges, loaded.scorers):
        assert [model.head.bias[0].item() for model in models] == list(range(folds))
    assert loaded.embedder is None and loaded.influence_limits.tolist() == [1.0, 2.0]


def test_a_class_without_a_limit_has_none_in_the_gate(tmp_path: Path) -> None:
    spec = ClassifierSpec("small_cnn", 2, 1, 32)
    save_classifier(tmp_path / "judge" / "fold-0", create_classifier(spec, 0), spec)
    gate = {"scope": "last", "influence_limits": [None, 2.0], "identity_threshold": None, "identity": None}
    write_json(tmp_path / "gate.json", gate)  # JSON has no infinity
    loaded = load_gate(tmp_path, tmp_path / "judge", CONFIG, CPU)
    assert loaded.influence_limits.tolist() == [torch.inf, 2.0] and loaded.scope == "last"
    assert loaded.config is CONFIG and loaded.device == CPU
    assert not any(model.training for model in loaded.judges)


def test_a_repair_without_its_gate_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gate\.json"):
        load_gate(tmp_path, tmp_path / "judge", CONFIG, CPU)


@pytest.mark.parametrize("threshold", [0.7, None])
def test_the_gate_takes_the_judge_of_identity_that_the_settings_name(
    tmp_path: Path, threshold: float | None
) -> None:
    spec = ClassifierSpec("small_cnn", 2, 1, 32)
    for folder in ("judge/fold-0", "identity"):
        save_classifier(tmp_path / folder, create_classifier(spec, 0), spec)
    gate = {
        "scope": "all",
        "influence_limits": [1.0, 2.0],
        "identity_threshold": threshold,
        "identity": {"judge": "persons", "threshold": threshold},
    }
    write_json(tmp_path / "gate.json", gate)
    loaded = load_gate(tmp_path, tmp_path / "judge", CONFIG, CPU)
    assert (loaded.embedder is not None) == (
        threshold is not None
    )  # a judge without a threshold cannot judge
    if loaded.embedder is not None:
        assert loaded.embedder.name == "persons" and loaded.identity_threshold == threshold


def test_images_are_embedded_in_batches_that_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Means:
        name, judges_identity = "means", True

        def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
            asked.append(len(images))
            means = images.float().mean((1, 2, 3))
            return means[:, None], means > means.min()

    monkeypatch.setattr(batches, "identity_embedder", lambda judge, *_: Means() if judge == "dlib" else None)
    write_material(tmp_path / "material", images=IMAGES)

    def embed() -> dict[str, Tensor]:
        return run_batches(
            "embed_job",
            tmp_path,
            5,
            config=CONFIG,
            device=CPU,
            workers=1,
            description="faces",
            settings={"judge": "dlib"},
        )

    found = embed()
    torch.testing.assert_close(found["vectors"][:, 0], IMAGES.float().mean((1, 2, 3)))
    assert found["found"].shape == (5,) and asked == [2, 2, 1]
    (tmp_path / "embed_job-2-4.safetensors").unlink()
    again = embed()
    assert asked == [2, 2, 1, 2] and torch.equal(again["vectors"], found["vectors"])
