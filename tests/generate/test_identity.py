"""Guidance by an embedder: it moves pictures towards whom they were asked for, and nothing else of them changes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffinf.errors import UserError
from diffinf.generate import random_contexts
from diffinf.generate.identity import IdentityGuidance
from diffinf.generate.sample import Sampling, image_seed, sample_images
from generate.tiny_generator import SIZE, make_generator

SEEDS = [image_seed(0, f"p{index}", index) for index in range(4)]
SAMPLING = Sampling(negative="none", steps=6)


def make_embedder(size: int = 6) -> nn.Module:
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 32), nn.Tanh(), nn.Linear(32, size))
    return layers.eval().requires_grad_(False)


def read(network: nn.Module, images: Tensor, contexts: Tensor) -> Tensor:
    """How likely each picture is its own context's, among all, (N,)."""
    vectors = F.normalize(network(images / 127.5 - 1), dim=1)
    return (16 * vectors @ contexts.T).softmax(1).diagonal()


@pytest.mark.parametrize("prediction", ["v", "epsilon"])
def test_pictures_are_read_as_whom_they_were_asked_for(prediction: str) -> None:
    model, network, contexts = make_generator(prediction=prediction), make_embedder(), random_contexts(4, 6)
    rows = torch.arange(4)
    plain = sample_images(model, contexts, SEEDS, SAMPLING)
    none, weak, strong = (
        sample_images(
            model, contexts, SEEDS, SAMPLING, None, IdentityGuidance(network, contexts, strength), rows
        )
        for strength in (0.0, 0.1, 1.0)
    )
    assert torch.equal(plain, none)
    fits = [read(network, images, contexts).mean() for images in (plain, weak, strong)]
    assert fits[0] < fits[1] < fits[2]


def test_the_prediction_leads_to_the_moved_image() -> None:
    """The move is as long as it says, and what the sampler reads off the new prediction is the moved image."""
    contexts, rows = random_contexts(4, 6), torch.arange(4)
    noisy = torch.randn(4, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    for prediction in ("v", "epsilon"):
        model = make_generator(prediction=prediction)
        guidance = IdentityGuidance(make_embedder(), contexts, strength=0.3, steps=1)
        output = 0.5 * noisy.roll(1, 0)
        signal = model.alphas_cumprod[300].sqrt()
        deviation = (1 - signal**2).sqrt()

        def clean(output: Tensor) -> Tensor:
            if model.scheduler.config.prediction_type == "epsilon":  # noqa: B023
                return (noisy - deviation * output) / signal  # noqa: B023
            return signal * noisy - deviation * output  # noqa: B023

        moved = guidance.corrected(model, noisy, output, 300, contexts, rows)
        length = (clean(moved) - clean(output)).flatten(1).square().mean(1).sqrt()
        torch.testing.assert_close(length, (0.3 * deviation).expand(4), rtol=1e-3, atol=1e-5)
        assert torch.equal(guidance.corrected(model, noisy, output, 601, contexts, rows), output)


def test_the_batch_changes_no_picture() -> None:
    model, network, contexts = make_generator(), make_embedder(), random_contexts(3, 6)
    guidance, rows = IdentityGuidance(network, contexts), torch.tensor([2, 0, 1, 2])
    wanted = contexts[rows]
    whole = sample_images(model, wanted, SEEDS, SAMPLING, None, guidance, rows)
    some = sample_images(model, wanted[1:3], SEEDS[1:3], SAMPLING, None, guidance, rows[1:3])
    assert (whole[1:3].int() - some.int()).abs().max() <= 1
    with pytest.raises(ValueError, match="whom each image shows"):
        sample_images(model, wanted, SEEDS, SAMPLING, None, guidance)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"strength": -1.0}, "at least 0, found -1.0"),
        ({"strength": float("nan")}, "at least 0, found nan"),
        ({"highest": 2.0}, "from 0 to 1"),
        ({"steps": 0}, "a step"),
    ],
)
def test_values_out_of_range(values: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        IdentityGuidance(make_embedder(), random_contexts(2, 6), **values)  # type: ignore[arg-type]
