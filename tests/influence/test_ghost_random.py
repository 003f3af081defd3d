"""Networks drawn at random: depth, groups, strides, norms, shared modules, tied weights, bare parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from exactness import Pool, assert_exact, data, shaken
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn


class OverChannels(nn.Module):
    """A norm of the last axis, put to work on the channels."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


NORMS = {
    "batch": nn.BatchNorm2d,
    "group": lambda width: nn.GroupNorm(2, width),
    "layer": lambda width: OverChannels(nn.LayerNorm(width)),
    "root mean square": lambda width: OverChannels(nn.RMSNorm(width)),
    "none": lambda width: nn.Identity(),
}


@dataclass(frozen=True)
class Layout:
    """What one block is made of."""

    norm: str
    groups: int
    kernel: int
    stride: int
    dilation: int
    padding_mode: str
    scaled: bool
    tied: bool


class Block(nn.Module):
    """Convolution, norm, layer scale, with a skip where the shapes allow."""

    def __init__(self, width: int, layout: Layout) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            width,
            width,
            layout.kernel,
            layout.stride,
            layout.kernel // 2 * layout.dilation,
            layout.dilation,
            {0: 1, 1: 2, 2: width}[layout.groups],
            bias=layout.norm == "none",
            padding_mode=layout.padding_mode,
        )
        self.norm = NORMS[layout.norm](width)
        self.gamma = nn.Parameter(torch.randn(width, 1, 1)) if layout.scaled else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.norm(self.conv(x)))
        if self.gamma is not None:
            y = y * self.gamma
        return x + y if y.shape == x.shape else y


class Drawn(nn.Module):
    """A chain of blocks; one may be used more than once, or use another's weights."""

    def __init__(self, width: int, layouts: list[Layout], order: list[int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.offset = nn.Parameter(torch.randn(1, width, 1, 1))
        self.blocks = nn.ModuleList([Block(width, layout) for layout in layouts])
        for block, layout in zip(self.blocks, layouts, strict=True):
            first = self.blocks[0]
            if layout.tied and block.conv.weight.shape == first.conv.weight.shape:  # type: ignore[union-attr]
                block.conv.weight = first.conv.weight  # type: ignore[union-attr, assignment]
        self.order, self.pool = order, Pool(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + self.offset
        for i in self.order:
            x = self.blocks[i](x)
        return self.pool(x)


layouts = st.builds(
    Layout,
    norm=st.sampled_from(list(NORMS)),
    groups=st.integers(0, 2),
    kernel=st.sampled_from([1, 3]),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding_mode=st.sampled_from(["zeros", "replicate", "circular"]),
    scaled=st.booleans(),
    tied=st.booleans(),
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_drawn_networks_are_exact_without_the_fallback(draw: st.DataObject) -> None:
    width = draw.draw(st.sampled_from([2, 4, 8]))
    blocks = draw.draw(st.lists(layouts, min_size=1, max_size=3))
    order = draw.draw(st.lists(st.integers(0, len(blocks) - 1), min_size=1, max_size=4))
    last = draw.draw(st.booleans())
    torch.manual_seed(0)
    model = shaken(Drawn(width, blocks, order), seed=draw.draw(st.integers(0, 9)))
    if last:
        model = model.to(memory_format=torch.channels_last)
    assert_exact(model, *data(draw.draw(st.integers(1, 4)), 3, 9, 8))
