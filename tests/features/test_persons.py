"""An embedder that learns persons, of whom some are held out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from diffinf.features import persons as module
from diffinf.features.calibration import calibrate
from diffinf.features.persons import PersonEmbedder, hold_out_persons, train_identity
from diffinf.training.loop import batch_indices

CPU = torch.device("cpu")
SIDE = 8


def to_input(images: Tensor, device: torch.device) -> Tensor:
    return images.to(device).float() / 127.5 - 1


@settings(max_examples=80, deadline=None)
@given(
    persons=st.lists(st.integers(0, 15), min_size=1, max_size=60),
    share=st.floats(0, 0.9),
    seed=st.integers(0, 3),
)
def test_persons_are_held_out_whole_and_the_others_numbered(
    persons: list[int], share: float, seed: int
) -> None:
    everybody = np.array(persons)
    held_out, numbered = hold_out_persons(everybody, share, seed)
    chosen, others = set(everybody[held_out]), set(everybody[~held_out])
    assert not chosen & others
    count = len(set(persons))
    assert len(chosen) == min(count, max(2, round(share * count)))
    assert len(numbered) == (~held_out).sum()
    assert set(numbered) == set(range(len(others)))
    # The new numbers stand for the same persons.
    assert len(set(zip(numbered, everybody[~held_out], strict=True))) == len(others)
    again = hold_out_persons(everybody, share, seed)
    assert np.array_equal(again[0], held_out) and np.array_equal(again[1], numbered)


def test_another_seed_holds_out_others() -> None:
    persons = np.arange(100)
    masks = [hold_out_persons(persons, 0.3, seed)[0] for seed in (0, 1)]
    assert masks[0].sum() == masks[1].sum() == 30
    assert not np.array_equal(*masks)


def faces(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures of six persons, each a symmetric pattern in much noise that all share."""
    patterns = torch.randn(6, 1, SIDE, SIDE // 2, generator=torch.Generator().manual_seed(0))
    patterns = torch.cat([patterns, patterns.flip(3)], dim=3)
    generator = torch.Generator().manual_seed(seed)
    persons = torch.arange(count) % 6
    noise = torch.randn(count, 1, SIDE, SIDE, generator=generator)
    shading = 40 * torch.randn(count, 1, 1, 1, generator=generator)
    images = 127 + 20 * patterns[persons] + 10 * noise + shading.clamp(-70, 70)
    return images.clamp(0, 255).to(torch.uint8), persons


def make_embedder(*extra: nn.Module) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), *extra, nn.Linear(SIDE * SIDE, 8))


def trained(embedder: nn.Module, *, steps: int = 150, checkpoint: Path | None = None) -> nn.Module:
    images, persons = faces(60, 1)
    return train_identity(
        embedder,
        images,
        persons,
        to_input=to_input,
        steps=steps,
        batch_size=16,
        learning_rate=1e-2,
        seed=0,
        device=CPU,
        checkpoint=checkpoint,
    )


def accepted(embedder: nn.Module) -> float:
    images, persons = faces(60, 2)
    vectors, found = PersonEmbedder(embedder, to_input, CPU).embed(images)
    assert found.all()
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(60))
    return calibrate(vectors, persons.numpy(), 0.95).accepted


def test_training_tells_persons_apart() -> None:
    before = accepted(make_embedder())
    embedder = trained(make_embedder())
    assert accepted(embedder) > 0.9 > before + 0.2
    assert not embedder.training and not any(p.requires_grad for p in embedder.parameters())


def test_the_loss_is_that_of_cosface(monkeypatch: pytest.MonkeyPatch) -> None:
    images, persons = faces(12, 1)
    images = images[..., : SIDE // 2]
    images = torch.cat([images, images.flip(3)], dim=3)  # mirror images are the same
    losses: list[float] = []

    def recording(step: Any, **options: Any) -> list[dict[str, float]]:
        losses.append(step(0)["loss"])
        return []

    monkeypatch.setattr(module, "fit", recording)
    embedder = make_embedder()
    vectors = F.normalize(embedder(to_input(images, CPU)), dim=1)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        prototypes = F.normalize(nn.Linear(8, 6, bias=False).weight, dim=1)
    cosine = vectors @ prototypes.T
    cosine[torch.arange(12), persons] -= 0.3
    train_identity(
        embedder,
        images,
        persons,
        to_input=to_input,
        steps=1,
        batch_size=12,
        learning_rate=1e-2,
        seed=4,
        device=CPU,
        margin=0.3,
        scale=10.0,
    )
    assert losses[0] == pytest.approx(F.cross_entropy(10 * cosine, persons).item(), rel=1e-4)


def test_pictures_are_embedded_one_by_one_in_order() -> None:
    images, _ = faces(300, 3)  # more than one batch of 256
    embedder = make_embedder().eval()
    judge = PersonEmbedder(embedder, to_input, CPU)
    together, found = judge.embed(images)
    assert judge.judges_identity and found.shape == (300,) and found.all()
    assert together.shape == (300, 8)
    for row in (0, 255, 256, 299):
        alone, _ = judge.embed(images[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


def test_a_killed_training_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(make_embedder(), steps=220)
    checkpoint = tmp_path / "identity.checkpoint"

    def killed(n: int, batch_size: int, seed: int, step: int) -> Tensor:
        if step == 210:
            raise KeyboardInterrupt
        return batch_indices(n, batch_size, seed, step)

    with monkeypatch.context() as patch:
        patch.setattr(module, "batch_indices", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(make_embedder(), steps=220, checkpoint=checkpoint)
    assert checkpoint.is_file()
    resumed = trained(make_embedder(), steps=220, checkpoint=checkpoint)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "extra",
    [
        [],
        [nn.Dropout(0.1)],
    ],
    ids=["plain", "dropout"],
)
def test_training_does_not_depend_on_the_global_generator(extra: list[nn.Module]) -> None:
    weights = []
    for state in (1, 2):
        torch.manual_seed(state)
        weights.append(trained(make_embedder(*extra), steps=3)[-1].weight)
    assert torch.equal(*weights)
