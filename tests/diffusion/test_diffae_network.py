"""The network of DiffAE: the released tensors' shapes, its pieces by hand, and the original's numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from diffinf.diffusion.diffae.config import PRESETS, DiffAEConfig, infer_config
from diffinf.diffusion.diffae.network import (
    AttentionBlock,
    DiffAENetwork,
    ResidualBlock,
    SemanticEncoder,
    TimeEmbedding,
)
from diffinf.diffusion.diffae.sampling import ddim_decode, ddim_invert
from diffinf.errors import UserError
from diffusion.tiny_diffae import CONFIG, make_diffae

Shapes = dict[str, tuple[int, ...]]


def shapes_of(config: DiffAEConfig) -> Shapes:
    with torch.device("meta"):
        network = DiffAENetwork(config)
    return {name: tuple(values.shape) for name, values in network.state_dict().items()}


def released(name: str) -> Shapes:
    lines = Path(__file__).with_name(f"{name}_shapes.txt").read_text().splitlines()
    return {line.split()[0]: tuple(map(int, line.split()[1:])) for line in lines}


@pytest.mark.parametrize(("name", "count"), [("ffhq128", 608), ("ffhq256", 706)])
def test_the_released_networks_are_built_exactly(name: str, count: int) -> None:
    expected = released(name)
    assert len(expected) == count
    config = infer_config(expected)
    assert config == PRESETS[name]
    assert shapes_of(config) == expected


LEVELS = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple)


@settings(max_examples=10, deadline=None)
@given(mult=LEVELS, encoder_mult=LEVELS, blocks=st.integers(1, 2), data=st.data())
def test_the_configuration_is_found_from_the_shapes(
    mult: tuple[int, ...], encoder_mult: tuple[int, ...], blocks: int, data: st.DataObject
) -> None:
    attentive = data.draw(st.sets(st.integers(0, len(mult) - 1)))
    config = DiffAEConfig(
        image_size=64,
        model_channels=32,
        channel_mult=mult,
        encoder_channel_mult=encoder_mult,
        embed_channels=data.draw(st.integers(1, 99)),
        semantic_channels=data.draw(st.integers(1, 99)),
        num_res_blocks=blocks,
        attention_resolutions=tuple(64 >> level for level in sorted(attentive)),
        image_channels=data.draw(st.sampled_from([1, 3])),
    )
    assert infer_config(shapes_of(config), image_size=64) == config


def test_without_attention_the_size_must_be_told() -> None:
    shapes = shapes_of(DiffAEConfig(64, 32, (1, 2), (1, 2), 8, 8, 1, attention_resolutions=()))
    with pytest.raises(UserError, match="--config"):
        infer_config(shapes)


def flat_block(channels: int = 64, **changes: object) -> ResidualBlock:
    """A block whose first convolution gives its bias and whose second passes its input on."""
    block = ResidualBlock(channels, channels, conditions=(2, 3), **changes).double().requires_grad_(False)  # type: ignore[arg-type]
    block.in_layers[2].weight.zero_()
    block.out_layers[3].weight.copy_(torch.zeros(channels, channels, 3, 3))
    block.out_layers[3].weight[range(channels), range(channels), 1, 1] = 1
    block.out_layers[3].bias.zero_()
    return block


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def test_a_block_is_scaled_and_shifted_by_time_and_then_scaled_by_the_code() -> None:
    generator = torch.Generator().manual_seed(0)
    block = flat_block()
    time, code = (torch.randn(2, size, generator=generator, dtype=torch.float64) for size in (2, 3))
    x = torch.randn(2, 64, 4, 4, generator=generator, dtype=torch.float64)
    # Between the convolutions each channel is its bias; a group is two channels.
    pairs = block.in_layers[2].bias.numpy().reshape(32, 2)
    deviation = (pairs[:, :1] - pairs[:, 1:]) / 2
    normal = (np.concatenate([deviation, -deviation], 1) / np.sqrt(deviation**2 + 1e-5)).reshape(64)
    by_time = silu(time.numpy()) @ block.emb_layers[1].weight.numpy().T + block.emb_layers[1].bias.numpy()
    by_code = (
        silu(code.numpy()) @ block.cond_emb_layers[1].weight.numpy().T + block.cond_emb_layers[1].bias.numpy()
    )
    scaled = (normal * (1 + by_time[:, :64]) + by_time[:, 64:]) * (1 + by_code)
    expected = x.numpy() + silu(scaled)[:, :, None, None]
    np.testing.assert_allclose(block(x, time, code).numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("resample", ["down", "up"])
def test_a_block_changes_the_side_of_both_its_paths(resample: str) -> None:
    block = flat_block(resample=resample)
    x = torch.arange(64 * 16, dtype=torch.float64).view(1, 64, 4, 4)
    zeros = torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64)
    result = block(x, *zeros).numpy()
    shortcut = x.numpy().reshape(1, 64, 2, 2, 2, 2).mean((3, 5))
    if resample == "up":
        shortcut = x.numpy().repeat(2, 2).repeat(2, 3)
    added = result - shortcut
    assert added.shape == shortcut.shape
    np.testing.assert_allclose(added, np.broadcast_to(added[:, :, :1, :1], added.shape), atol=1e-9)
    # The first convolution comes after the change of side: the released order.
    seen: list[Tensor] = []
    block.in_layers[2].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    block(x, *zeros)
    assert seen[0].shape == shortcut.shape


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_by_hand(heads: int) -> None:
    generator = torch.Generator().manual_seed(1)
    block = AttentionBlock(32, heads).double().requires_grad_(False)
    x = torch.randn(2, 32, 3, 3, generator=generator, dtype=torch.float64)
    normal = torch.nn.functional.group_norm(x, 32).flatten(2).numpy()
    qkv = block.qkv.weight[:, :, 0].numpy() @ normal + block.qkv.bias.numpy()[:, None]
    size = 32 // heads
    mixed = np.empty((2, 32, 9))
    for sample in range(2):
        for head in range(heads):
            query, key, value = qkv[sample, 3 * size * head : 3 * size * (head + 1)].reshape(3, size, 9)
            weights = np.exp(query.T @ key / np.sqrt(size))
            mixed[sample, size * head : size * (head + 1)] = (
                value @ (weights / weights.sum(1, keepdims=True)).T
            )
    out = block.proj_out.weight[:, :, 0].numpy() @ mixed + block.proj_out.bias.numpy()[:, None]
    np.testing.assert_allclose(block(x).numpy(), x.numpy() + out.reshape(2, 32, 3, 3), rtol=1e-9, atol=1e-12)


def test_timesteps_are_cosines_and_sines_of_falling_frequencies() -> None:
    embedding = TimeEmbedding(CONFIG)
    seen: list[Tensor] = []
    embedding.time_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    embedding(torch.tensor([0, 7]))
    angles = 7 * 10_000 ** (-np.arange(16) / 16)
    np.testing.assert_allclose(seen[0][0], [1] * 16 + [0] * 16)
    np.testing.assert_allclose(seen[0][1], [*np.cos(angles), *np.sin(angles)], rtol=1e-4, atol=1e-5)


def test_the_encoder_pools_whatever_the_side() -> None:
    encoder = SemanticEncoder(CONFIG)
    for side in (16, 32):
        assert encoder(torch.zeros(2, 3, side, side)).shape == (2, 24)


def test_the_noise_hangs_on_time_and_code_and_on_no_other_sample() -> None:
    network = make_diffae().network
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(3, 3, 32, 32, generator=generator)
    time, code = torch.tensor([0, 500, 999]), torch.randn(3, 24, generator=generator)
    noise = network(noisy, time, code)
    assert noise.shape == noisy.shape
    torch.testing.assert_close(network(noisy[1:2], time[1:2], code[1:2]), noise[1:2], rtol=1e-4, atol=1e-5)
    assert (network(noisy, time.flip(0), code)[0] - noise[0]).abs().max() > 1e-3
    assert (network(noisy, time, -code) - noise).abs().max() > 1e-3


REFERENCE = os.environ.get("DIFFINF_DIFFAE_REFERENCE")
needs_reference = pytest.mark.skipif(
    REFERENCE is None,
    reason="DIFFINF_DIFFAE_REFERENCE does not name a folder with the original's tiny.*.safetensors",
)


@pytest.fixture(scope="module")
def original() -> tuple[DiffAENetwork, dict[str, Tensor], list[int]]:
    folder = Path(str(REFERENCE))
    weights = load_file(folder / "tiny.safetensors")
    network = DiffAENetwork(infer_config({name: tuple(values.shape) for name, values in weights.items()}))
    network.load_state_dict(weights)
    timesteps = json.loads((folder / "tiny.json").read_text())["timesteps"]
    return network.eval().requires_grad_(False), load_file(folder / "tiny.io.safetensors"), timesteps


ALPHAS = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0).float()


def off(found: Tensor, expected: Tensor) -> Tensor:
    """Errors in units of the largest magnitude."""
    return (found - expected).abs() / expected.abs().max()


@needs_reference
def test_code_and_noise_are_the_originals(
    original: tuple[DiffAENetwork, dict[str, Tensor], list[int]],
) -> None:
    network, tensors, _ = original
    assert off(network.encoder(tensors["image"]), tensors["semantic_code"]).max() < 1e-5
    noise = network(tensors["x_t"], tensors["t"], tensors["semantic_code"])
    assert off(noise, tensors["eps"]).max() < 1e-5


@needs_reference
def test_decoding_is_the_originals(original: tuple[DiffAENetwork, dict[str, Tensor], list[int]]) -> None:
    network, tensors, timesteps = original
    decoded = ddim_decode(
        tensors["x_T"], lambda x, t: network(x, t, tensors["semantic_code"]), ALPHAS, timesteps
    )
    assert off(decoded, tensors["decoded"]).max() < 1e-5


@needs_reference
def test_inversion_is_the_originals(original: tuple[DiffAENetwork, dict[str, Tensor], list[int]]) -> None:
    network, tensors, timesteps = original
    code = network.encoder(tensors["image"])
    error = off(
        ddim_invert(tensors["image"], lambda x, t: network(x, t, code), ALPHAS, timesteps), tensors["x_T"]
    )
    # Drawn weights multiply rounding: the original's own float32 result is 1.25e-4 off this computation done in
    # float64, at 4 of 6,144 values above 1e-4. So a handful of values may be.
    assert (error > 1e-4).sum() <= 12
    assert error.square().mean().sqrt() < 2e-5 and error.max() < 3e-4
