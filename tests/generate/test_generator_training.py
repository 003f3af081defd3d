"""Training of the generator: what it learns, how it resumes, what its folder refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from diffinf.errors import UserError
from diffinf.generate import random_contexts
from diffinf.generate.model import ContextGenerator, create_generator
from diffinf.generate.sample import Sampling, image_seed, sample_images
from diffinf.generate.train import CHECKPOINT, Material, draw_batch, train_generator
from diffinf.training.monitor import TrainingWarning
from generate.tiny_generator import make_generator, pictures, settings

CPU = torch.device("cpu")
NAMES = ("p0", "p1", "p2")


def train(directory: Path, n: int = 40, **values: Any) -> ContextGenerator:
    images, who = pictures(n)
    given = values.pop("given", None)
    return train_generator(
        images,
        who,
        settings(**values),
        given=given,
        context_names=() if given is not None else NAMES,
        seed=0,
        device=CPU,
        directory=directory,
    )


@pytest.mark.parametrize("injection", ["norm", "attention"])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_folder_gives_the_model_back(tmp_path: Path, injection: str, prediction: str) -> None:
    model = train(tmp_path, injection=injection, prediction=prediction, steps=3)
    again = ContextGenerator.from_pretrained(tmp_path)
    assert again.context_names == NAMES and again.condition == "identity"
    contexts = again.denoiser.contexts()
    torch.testing.assert_close(contexts.norm(dim=1), torch.ones(3))
    seeds = [image_seed(0, name, 0) for name in NAMES]
    pair = [sample_images(m, contexts, seeds, Sampling(negative="none", steps=2)) for m in (model, again)]
    assert pair[0].equal(pair[1])
    assert not (tmp_path / CHECKPOINT).exists()
    assert len(list((tmp_path / "sheets").iterdir())) == 1
    assert json.loads((tmp_path / "metrics.json").read_text())["n_contexts"] == 3


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(tmp_path / "whole", n=400, validation_share=0.1, steps=10)
    from diffinf.generate import train as module

    fit = module.fit

    def cut(step: Any, **options: Any) -> Any:
        def until(index: int) -> Any:
            if index == 7:
                raise KeyboardInterrupt
            return step(index)

        return fit(until, **{**options, "save_every": 3})

    monkeypatch.setattr(module, "fit", cut)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", n=400, validation_share=0.1, steps=10)
    assert (tmp_path / "cut" / CHECKPOINT).exists() and not (tmp_path / "cut" / "generator.json").exists()
    monkeypatch.setattr(module, "fit", fit)
    resumed = train(tmp_path / "cut", n=400, validation_share=0.1, steps=10)
    for name, value in whole.denoiser.state_dict().items():
        assert value.equal(resumed.denoiser.state_dict()[name]), name
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "cut"))
    assert first == second and len(first["validation"]) == 2


@pytest.mark.slow
def test_it_learns_whom_to_draw(tmp_path: Path) -> None:
    """Brightness tells the people of these pictures apart."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)
        model = train(
            tmp_path,
            n=400,
            validation_share=0.1,
            steps=250,
            batch_size=32,
            learning_rate=2e-3,
            ema_decay=0.98,
        )
    contexts = model.denoiser.contexts().repeat_interleave(6, 0)
    seeds = [image_seed(0, "all", number) for number in range(18)]
    means = sample_images(model, contexts, seeds, Sampling(negative="none", steps=10))
    levels = means.float().mean((1, 2, 3)).view(3, 6).mean(1)
    assert levels[0] < 95 < levels[1] < 150 < levels[2]
    validation = json.loads((tmp_path / "metrics.json").read_text())["validation"]
    assert validation[-1]["loss"] < validation[0]["loss"]


def test_given_contexts_are_used_and_normalised(tmp_path: Path) -> None:
    given = random_contexts(3, 9)
    one = train(tmp_path / "a", given=given, condition="embedding", steps=3)
    other = train(
        tmp_path / "b", given=given * torch.tensor([[2.0], [1.0], [0.5]]), condition="embedding", steps=3
    )
    assert one.context_size == 9 and one.context_names == ()
    for name, value in one.denoiser.state_dict().items():
        torch.testing.assert_close(value, other.denoiser.state_dict()[name], atol=1e-4, rtol=1e-3)


def test_what_a_step_withholds() -> None:
    images, who = pictures(4000)
    model = make_generator(learned=3)
    material = Material(torch.zeros(2, len(images), 6, 4, 4), who, None)
    rows = torch.arange(4000)
    config = settings(component_dropout=0.5, context_dropout=0.1)
    draw = draw_batch(material, rows, config, model, torch.Generator().manual_seed(0))
    assert abs(draw.keep_components.float().mean() - 0.5) < 0.02
    assert abs(draw.keep.float().mean() - 0.9) < 0.02
    half = draw_batch(material, rows, config, model, torch.Generator().manual_seed(0), slice(10, 20))
    assert half.noise.equal(draw.noise[10:20]) and half.keep.equal(draw.keep[10:20])
    contexts = random_contexts(4000, 6)
    embedded = model.denoiser.embed(contexts, draw.keep_components, draw.keep)
    assert embedded[~draw.keep].equal(model.denoiser.empty.expand(int((~draw.keep).sum()), -1))
    everything = torch.ones_like(draw.keep_components)
    torch.testing.assert_close(model.denoiser.embed(contexts, everything), model.denoiser.embed(contexts))
    nothing = model.denoiser.embed(contexts[:1], torch.zeros(1, 6, dtype=torch.bool))
    assert nothing.isfinite().all()


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    make_generator(learned=2).save_pretrained(tmp_path)
    assert ContextGenerator.from_pretrained(tmp_path).context_names == ("p0", "p1")
    description = json.loads((tmp_path / "generator.json").read_text())
    (tmp_path / "generator.json").write_text(json.dumps({**description, "context_names": ["p0"]}))
    with pytest.raises(UserError, match=r"learned contexts \(1 and 2\)"):
        ContextGenerator.from_pretrained(tmp_path)
    (tmp_path / "generator.json").write_text(json.dumps({**description, "condition": "age"}))
    with pytest.raises(UserError, match="not a generator's description"):
        ContextGenerator.from_pretrained(tmp_path)
    weights = tmp_path / "denoiser" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match="sha256"):
        ContextGenerator.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="expected a generator written by train-generator"):
        ContextGenerator.from_pretrained(tmp_path / "nothing")


def test_shapes_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"generator.patch_size: 5 does not divide"):
        train(tmp_path, patch_size=5)
    with pytest.raises(UserError, match=r"generator.unet_channels: 4 levels"):
        train(tmp_path, unet_channels=[32, 32, 32, 32])
    with pytest.raises(UserError, match="multiples of 32"):
        train(tmp_path, unet_channels=[40])
    with pytest.raises(UserError, match=r"0..1 for each of 40 images"):
        train(tmp_path, given=random_contexts(2, 6))
    with pytest.raises(UserError, match=r"generator.precision"):
        train(tmp_path, precision="float16")
    with pytest.raises(ValueError, match="injection"):
        create_generator(
            make_generator().first_stage,
            image_size=16,
            channels=(32,),
            layers=1,
            context_size=4,
            injection="film",  # type: ignore[arg-type]
        )


def test_processes_share_the_batches(tmp_path: Path) -> None:
    """Two processes under torchrun end where one does, up to rounding."""
    script = tmp_path / "work.py"
    script.write_text(
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from generate.test_generator_training import train\n"
        "torch.distributed.init_process_group('gloo')\n"
        "train(Path(sys.argv[1]), steps=3)\n"
        "torch.distributed.barrier(); torch.distributed.destroy_process_group()\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])}
    environment["OMP_NUM_THREADS"] = "1"
    subprocess.run([*command, str(script), str(tmp_path / "two")], check=True, env=environment)
    one = train(tmp_path / "one", steps=3)
    two = ContextGenerator.from_pretrained(tmp_path / "two")
    for name, value in one.denoiser.state_dict().items():
        torch.testing.assert_close(value, two.denoiser.state_dict()[name], atol=2e-4, rtol=1e-3)
