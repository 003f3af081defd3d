"""Sampling: one picture whatever the batch, branches only where they count, and the guidance itself."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from diffinf.errors import UserError
from diffinf.generate import negative_guidance, parse_schedule, random_contexts
from diffinf.generate.model import ContextGenerator
from diffinf.generate.sample import Sampling, denoise, draw_noise, image_seed, make_scheduler, sample_images
from generate.tiny_generator import make_generator

SEEDS = [image_seed(0, f"p{index % 3}", index) for index in range(7)]


def sampled(model: ContextGenerator, **values: Any) -> Tensor:
    contexts = random_contexts(7, model.context_size)
    sampling = Sampling(**{"steps": 4, "negative": "far", **values})
    return sample_images(model, contexts, SEEDS, sampling, contexts.roll(1, 0))


class Calls:
    """Counts the images that go through a network."""

    def __init__(self, model: ContextGenerator) -> None:
        self.batches: list[int] = []
        self.embedded: list[Tensor] = []
        model.denoiser.register_forward_hook(self._hear)

    def _hear(self, _module: Any, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        self.batches.append(len(inputs[0]))
        self.embedded.append(inputs[2])


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
@pytest.mark.parametrize("injection", ["norm", "attention"])
def test_the_batch_changes_no_picture(sampler: str, injection: str) -> None:
    model = make_generator(injection)
    whole, parts = (sampled(model, sampler=sampler, batch_size=size) for size in (7, 2))
    assert whole.dtype == torch.uint8 and whole.shape == (7, 3, 16, 16)
    assert (whole.int() - parts.int()).abs().max() <= 1
    contexts, order = random_contexts(7, 6), [5, 0, 3]
    some = sample_images(
        model,
        contexts[order],
        [SEEDS[row] for row in order],
        Sampling(steps=4, sampler=sampler),  # type: ignore[arg-type]
        contexts.roll(1, 0)[order],
    )
    assert (some.int() - whole[order].int()).abs().max() <= 1
    other = sampled(model, sampler=sampler, scale=3.0)
    assert (other.int() - whole.int()).abs().max() > 1


def test_the_batch_by_itself_is_small_on_a_cpu_alone() -> None:
    model = make_generator()
    calls, contexts = Calls(model), random_contexts(20, 6)
    seeds = [image_seed(0, "p", number) for number in range(20)]
    sample_images(model, contexts, seeds, Sampling(negative="null", steps=1))
    assert calls.batches == [32, 8]  # both branches of 16 and of 4 images
    assert Sampling().images_at_once(torch.device("cuda")) == 64
    assert Sampling(batch_size=5).images_at_once(torch.device("cpu")) == 5


def test_ddpm_draws_noise_at_every_step() -> None:
    model = make_generator()
    generators, noise = draw_noise(model, SEEDS)
    positive = model.denoiser.embed(random_contexts(7, 6))
    runs = [
        denoise(model, noise, positive, None, Sampling(sampler="ddpm", steps=4), list(g))
        for g in (generators, [torch.Generator().manual_seed(9) for _ in SEEDS])
    ]
    assert not torch.allclose(*runs, atol=1e-2)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_one_step_is_the_formula(prediction: str) -> None:
    model = make_generator(prediction=prediction)
    contexts = random_contexts(7, 6)
    _, noise = draw_noise(model, SEEDS)
    t = torch.full((7,), 999)
    with torch.no_grad():
        outputs = [model.denoiser(noise, t, model.denoiser.embed(c)) for c in (contexts, contexts.roll(1, 0))]
    scheduler = make_scheduler(model, "ddim", 1)
    guided = negative_guidance(*outputs, 0.5)
    expected = model.to_images(scheduler.step(guided, scheduler.timesteps[0], noise).prev_sample)
    found = sampled(model, steps=1, scale=0.5)
    assert (found.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"scale": 0.0}, [7] * 4),
        ({"negative": "none"}, [7] * 4),
        ({"scale": 0.5}, [14] * 4),
        ({"negative": "null"}, [14] * 4),
        # steps at t = 999, 749, 499, 249
        ({"schedule": parse_schedule("interval:0.3-0.8")}, [7, 14, 14, 7]),
    ],
)
def test_two_branches_only_where_they_count(values: dict[str, Any], expected: list[int]) -> None:
    model = make_generator()
    calls = Calls(model)
    sampled(model, **values)
    assert calls.batches == expected


def test_null_is_the_learned_empty_context() -> None:
    model = make_generator()
    calls = Calls(model)
    sampled(model, negative="null")
    assert calls.embedded[0][7:].equal(model.denoiser.empty.expand(7, -1))
    before = sampled(model, negative="null", scale=2.0)
    with torch.no_grad():
        model.denoiser.empty.neg_()
    assert not before.equal(sampled(model, negative="null", scale=2.0))
    zeros = model.denoiser.embed(torch.zeros(1, 6))[0]
    assert not torch.allclose(zeros, model.denoiser.empty)


@pytest.mark.parametrize("steps", [1, 4, 7, 600])
def test_ddim_lands_where_the_next_step_starts(steps: int) -> None:
    """Against the formula (arXiv 2010.02502) between the timesteps that the network is told; 7 do not divide 1000."""
    model = make_generator()
    scheduler = make_scheduler(model, "ddim", steps)
    alphas = torch.cat([scheduler.alphas_cumprod.double(), torch.ones(1)])  # the last is the clean image
    visited = [*scheduler.timesteps.tolist(), -1]
    noisy = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = noisy.double()
    for t, following in pairwise(visited):
        v = torch.sin(expected + t)
        noisy = scheduler.step(v.float(), t, noisy).prev_sample
        a, b = alphas[t], alphas[following]
        clean, noise = a.sqrt() * expected - (1 - a).sqrt() * v, a.sqrt() * v + (1 - a).sqrt() * expected
        expected = b.sqrt() * clean + (1 - b).sqrt() * noise
    assert visited[0] == 999 and len(visited) == steps + 1
    torch.testing.assert_close(noisy.double(), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
def test_there_are_as_many_steps_as_asked_for(sampler: Any) -> None:
    timesteps = make_scheduler(make_generator(), sampler, 61).timesteps.tolist()
    assert len(timesteps) == 61 and min(timesteps) >= 0


def test_seeds_depend_on_seed_identity_and_number() -> None:
    found = {image_seed(s, name, number) for s in (0, 1) for name in ("a", "b") for number in (0, 1)}
    assert len(found) == 8


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"negative": "nearest"}, "negative: expected"),
        ({"sampler": "euler"}, "sampler: expected"),
        ({"scale": -1.0}, "scale: expected"),
        ({"scale": float("nan")}, "scale: expected"),
        ({"steps": 0}, "steps: expected at least 1, found 0"),
        ({"batch_size": 0}, "batch size: expected at least 1, found 0"),
    ],
)
def test_settings_out_of_range(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Sampling(**values)


def test_contexts_that_do_not_fit() -> None:
    model = make_generator()
    with pytest.raises(UserError, match=r"expected shape \(N, 6\)"):
        sample_images(model, torch.ones(2, 5), [0, 1], Sampling(negative="none"))
    with pytest.raises(UserError, match="far needs as many"):
        sample_images(model, torch.ones(2, 6), [0, 1], Sampling(negative="far"))
    with pytest.raises(UserError, match="1000 noise levels"):
        sampled(model, steps=1001)
