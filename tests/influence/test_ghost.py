"""Exact per-sample gradient norms against autograd, and the model left as it was found."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from diffinf.errors import UserError
from diffinf.influence import pieces
from diffinf.influence.ghost import FallbackWarning, GradientNorms, squared_gradient_norms

TOLERANCE = 1e-4


def by_autograd(
    model: nn.Module, images: Tensor, labels: Tensor, loss: Callable[..., Tensor] | None = None
) -> dict[str, Tensor]:
    """Each parameter's squared norms (N,), one sample at a time."""
    loss = loss or (lambda z, y: F.cross_entropy(z, y, reduction="none"))
    parameters = dict(model.named_parameters())
    rows = []
    for i in range(len(images)):
        value = loss(model(images[i : i + 1]), labels[i : i + 1]).sum()
        found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
        rows.append([torch.zeros(()) if g is None else g.square().sum() for g in found])
    return {name: torch.stack([row[i] for row in rows]) for i, name in enumerate(parameters)}


def assert_exact(
    model: nn.Module, images: Tensor, labels: Tensor, *, fallback: bool = False
) -> GradientNorms:
    """Every parameter's share and the total agree; the fast way is taken exactly when expected."""
    model.eval()
    truth = by_autograd(model, images, labels)
    norms = GradientNorms(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        found = norms.breakdown(images, labels)
    total = torch.stack(list(truth.values())).sum(0)
    assert list(found) == list(truth)
    for name, expected in truth.items():
        error = (found[name] - expected).abs()
        assert (error <= TOLERANCE * expected + 1e-6 * total).all(), name
    assert bool(norms.fallback) == fallback, norms.fallback
    return norms


def data(batch: int, *shape: int, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, *shape, generator=generator)
    return images, torch.randint(classes, (batch,), generator=generator)


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and statistic away from its initial 0 or 1, where mistakes hide."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
        for name, buffer in model.named_buffers():
            if "running_mean" in name:
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
            elif "running_var" in name:
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model.eval()


class Pool(nn.Module):
    """Mean over positions, then a linear layer."""

    def __init__(self, width: int, classes: int = 5) -> None:
        super().__init__()
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(2).mean(2))


CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(6, 8, 3, padding=1),
    "no bias": lambda: nn.Conv2d(6, 8, 3, bias=False),
    "stride and dilation": lambda: nn.Conv2d(6, 8, (3, 2), stride=(2, 1), dilation=(1, 2), padding=(1, 0)),
    "groups": lambda: nn.Conv2d(6, 9, 3, groups=3),
    "depthwise": lambda: nn.Conv2d(6, 12, 3, groups=6, padding=1),
    "reflect": lambda: nn.Conv2d(6, 8, 3, padding=2, padding_mode="reflect"),
    "circular": lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular"),
    "same": lambda: nn.Conv2d(6, 8, (4, 3), padding="same"),
    "pointwise stride": lambda: nn.Conv2d(6, 8, 1, stride=2),
    "one position": lambda: nn.Conv2d(6, 8, (9, 8)),
}


@pytest.mark.parametrize("form", ["chosen", "gram", "pixel", "direct"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_in_every_form(name: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if form == "direct":
        monkeypatch.setattr(pieces, "_WRITE_PER_SAMPLE", -(10**6))
    elif form != "chosen":
        monkeypatch.setattr(pieces, "_WRITE_PER_SAMPLE", 10**9)
    if form in ("gram", "direct"):
        monkeypatch.setattr(pieces, "_pixel_cost", lambda call: (10**15, 1))
    elif form == "pixel":
        monkeypatch.setattr(pieces, "_pixel_cost", lambda call: (-(10**15), 1))
    torch.manual_seed(0)
    layer = CONVOLUTIONS[name]()
    model = shaken(
        nn.Sequential(nn.Conv2d(3, 6, 1), nn.Tanh(), layer, nn.ReLU(True), Pool(layer.out_channels))
    )
    assert_exact(model, *data(4, 3, 9, 8))


def test_batches_are_cut_to_the_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pieces._WORKSPACE, "cpu", 1)
    model = shaken(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), Pool(6)))
    assert_exact(model, *data(5, 3, 8, 8))


NORMS = {
    "batch": lambda: nn.BatchNorm2d(6),
    "batch without affine": lambda: nn.BatchNorm2d(6, affine=False),
    "group": lambda: nn.GroupNorm(3, 6),
    "layer": lambda: nn.LayerNorm([6, 8, 8]),
    "root mean square": lambda: nn.RMSNorm([8]),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str) -> None:
    model = shaken(
        nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), NORMS[name](), nn.ReLU(inplace=True), Pool(6))
    )
    assert_exact(model, *data(4, 3, 8, 8))


def test_channels_last() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), Pool(4))
    assert_exact(shaken(model).to(memory_format=torch.channels_last), *data(4, 3, 8, 8))


def test_batch_norm_with_a_mean_far_from_zero_stays_exact() -> None:
    model = shaken(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), Pool(6)))
    with torch.no_grad():
        model[0].bias.add_(300.0)  # type: ignore[union-attr]
        model[1].running_mean.add_(300.0)  # type: ignore[union-attr, operator]
    assert_exact(model, *data(4, 3, 8, 8))


class Words(nn.Module):
    """Tokens: embedding, class token, position embedding, layer norm, layer scale, linear, conv1d."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8, padding_idx=0)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 7, 8))
        self.norm = nn.LayerNorm(8)
        self.gamma = nn.Parameter(torch.randn(8))
        self.mix = nn.Linear(8, 8)
        self.row = nn.Conv1d(8, 8, 3, padding=1, stride=2, groups=2)
        self.out = nn.Linear(8, 11 if tied else 5)
        self.matrix = nn.Parameter(torch.randn(8, 8))
        if tied:
            self.out.weight = self.table.weight

    def forward(self, words: Tensor) -> Tensor:
        x = self.table(words)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        x = x + self.gamma * self.mix(self.norm(x))
        x = self.row(x.transpose(1, 2)).transpose(1, 2) @ self.matrix
        return self.out(torch.tanh(x.mean(1)))


def test_tokens_and_bare_parameters_have_rules() -> None:
    words = torch.randint(11, (5, 6), generator=torch.Generator().manual_seed(0))
    words[0, :3], words[1] = 0, 4
    assert_exact(shaken(Words()), words, data(5, 1)[1])


def test_weights_tied_across_kinds_fall_back() -> None:
    words = torch.randint(11, (5, 6), generator=torch.Generator().manual_seed(0))
    norms = assert_exact(shaken(Words(tied=True)), words, data(5, 1)[1], fallback=True)
    assert set(norms.fallback) == {"table.weight"}


class Shared(nn.Module):
    """A convolution at two scales, a norm used twice, a linear layer used on tokens and on their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.mix = nn.Linear(3, 3)
        self.head = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        x = self.norm(self.conv(F.max_pool2d(x, 2))).relu()
        x = self.mix(x.flatten(2).transpose(1, 2)).tanh()
        return self.head(self.mix(x.mean(1)))


def test_modules_used_twice_are_joined() -> None:
    assert_exact(shaken(Shared()), *data(4, 3, 8, 8))


class Functional(nn.Module):
    """Uses that a layer does not make: a standardised weight, a transposed weight, a parameter as the
    input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.inner = nn.Linear(4, 4)
        self.temperature = nn.Parameter(torch.randn(1))
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        standard = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        x = F.conv2d(x, standard).flatten(2).mean(2)
        x = torch.tanh(F.linear(x, self.inner.weight.t(), self.inner.bias) * self.temperature.exp())
        return self.head(x)


def test_functional_uses_fall_back_and_only_they_do() -> None:
    norms = assert_exact(shaken(Functional()), *data(4, 3, 6, 6), fallback=True)
    assert set(norms.fallback) == {"weight", "temperature"}


def test_attention_falls_back_for_what_it_hides() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
            self.head = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))

    norms = assert_exact(shaken(Attention()), *data(4, 3, 6), fallback=True)
    assert all(name.startswith("attention.") for name in norms.fallback)


def test_sequence_first_is_found_out() -> None:
    """Axis 0 divides by the batch but does not hold it: only the check against autograd can tell."""

    class SequenceFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(6, 6)
            self.head = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.mix(x.transpose(0, 1))).transpose(0, 1).mean(1))

    norms = assert_exact(shaken(SequenceFirst()), *data(4, 8, 6), fallback=True)
    assert set(norms.fallback) == {"mix.weight", "mix.bias"}


def test_a_first_batch_of_one_does_not_hide_it() -> None:
    model = shaken(nn.Sequential(nn.Flatten(0, 1), nn.Linear(6, 4), nn.Unflatten(0, (-1, 2)), Pool(2)))
    norms = GradientNorms(model)
    for batch in (1, 4):
        images, labels = data(batch, 2, 6)
        truth = torch.stack(list(by_autograd(model, images, labels).values())).sum(0)
        torch.testing.assert_close(norms(images, labels), truth, rtol=TOLERANCE, atol=0)


def test_what_vmap_cannot_do_is_looped() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))
            self.head = nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            if float(x.sum()) > 1e9:
                return self.head(x)
            return self.head(x * torch.sin(self.scale))

    assert_exact(shaken(Branching()), *data(4, 3), fallback=True)


def test_an_overwritten_input_is_noticed() -> None:
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3, bias=False)
            self.head = nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            y = self.first(x.detach().clone() if any(p.requires_grad for p in self.parameters()) else x)
            x.mul_(0.0)
            return self.head(y)

    norms = assert_exact(shaken(Overwriting()), *data(4, 3), fallback=True)
    assert set(norms.fallback) == {"first.weight"}


def test_fallback_is_announced_once() -> None:
    model = shaken(Functional())
    norms = GradientNorms(model)
    with pytest.warns(FallbackWarning, match="weight"):
        norms(*data(4, 3, 6, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        norms(*data(4, 3, 6, 6, seed=1))


@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode])
def test_model_is_left_as_found(caller: Callable[[], torch.no_grad]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(), Pool(4))
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[0].bias.grad = torch.ones(4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    images, labels = data(4, 3, 6, 6)
    kept = images.clone()
    with caller():
        found = squared_gradient_norms(model, images, labels)
    assert not found.requires_grad
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 5
    assert torch.equal(model[0].bias.grad, torch.ones(4))
    assert all(p.grad is None for p in model.parameters() if p is not model[0].bias)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(images, kept) and not images.requires_grad
    assert all(not m._forward_hooks and not m._backward_hooks for m in model.modules())
    model.eval()
    for p in model.parameters():
        p.requires_grad_(True)
    truth = torch.stack(list(by_autograd(model, images, labels).values())).sum(0)
    torch.testing.assert_close(found.clone(), truth, rtol=TOLERANCE, atol=0)


def test_head_has_its_closed_form() -> None:
    model = shaken(nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 5)))
    images, labels = data(6, 3, 2, 2)
    hidden = model[:3](images)
    error = model(images).softmax(1) - F.one_hot(labels, 5)
    expected = error.square().sum(1) * (hidden.square().sum(1) + 1)
    torch.testing.assert_close(squared_gradient_norms(model, images, labels, scope="head"), expected)
    named = squared_gradient_norms(model, images, labels, scope=["3.weight", "3.bias"])
    torch.testing.assert_close(named, expected)
    torch.testing.assert_close(squared_gradient_norms(model, images, labels, scope=["3"]), expected)


def test_any_per_sample_loss() -> None:
    model = shaken(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Pool(4)))
    images, _ = data(4, 3, 6, 6)
    targets = torch.rand(4, 5, generator=torch.Generator().manual_seed(0))

    def loss(z: Tensor, t: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(z, t, reduction="none").sum(1)

    truth = torch.stack(list(by_autograd(model, images, targets, loss).values())).sum(0)
    found = squared_gradient_norms(model, images, targets, loss=loss)
    torch.testing.assert_close(found, truth, rtol=TOLERANCE, atol=0)


def test_double_precision_stays_double() -> None:
    model = shaken(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Pool(4)).double())
    images, labels = data(4, 3, 6, 6)
    truth = torch.stack(list(by_autograd(model, images.double(), labels).values())).sum(0)
    found = squared_gradient_norms(model, images.double(), labels)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=0)


def test_an_infinite_gradient_is_infinite_and_alone() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.head = nn.Linear(3, 3, bias=False), nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.mix(x).abs().sqrt())

    images, labels = data(4, 3)
    images[2] = 0
    found = squared_gradient_norms(Root(), images, labels)
    assert found.isinf().tolist() == [False, False, True, False]


def test_bad_input_is_named() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 5))
    images, labels = data(4, 3)
    with pytest.raises(UserError, match="label 9 of sample 1"):
        squared_gradient_norms(model, images, torch.tensor([0, 9, 1, 2]))
    with pytest.raises(UserError, match="NaN for sample 2"):
        squared_gradient_norms(model, images.index_fill(0, torch.tensor([2]), torch.nan), labels)
    with pytest.raises(UserError, match="one value a sample"):
        squared_gradient_norms(model, images, labels, loss=F.cross_entropy)
    with pytest.raises(UserError, match="conv9"):
        squared_gradient_norms(model, images, labels, scope=["conv9"])
    with pytest.raises(UserError, match="4 images but 3 labels"):
        squared_gradient_norms(model, images, labels[:3])
    with pytest.raises(UserError, match="no linear layer"):
        squared_gradient_norms(nn.Conv2d(3, 5, 1), images, labels, scope="head")


class Random(nn.Module):
    """A drawn chain of blocks of one width; a block may be used more than once."""

    def __init__(self, width: int, blocks: list[tuple[str, int, int, int]], order: list[int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList()
        for norm, groups, stride, dilation in blocks:
            groups = {0: 1, 1: 2, 2: width}[groups]
            conv = nn.Conv2d(width, width, 3, stride, dilation, dilation, groups, bias=norm == "none")
            norms = {"batch": nn.BatchNorm2d(width), "group": nn.GroupNorm(2, width), "none": nn.Identity()}
            self.blocks.append(nn.Sequential(conv, norms[norm], nn.Tanh()))
        self.order, self.pool = order, Pool(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i in self.order:
            y = self.blocks[i](x)
            x = x + y if y.shape == x.shape else y
        return self.pool(x)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_random_networks(draw: st.DataObject) -> None:
    width = draw.draw(st.sampled_from([2, 4, 8]))
    block = st.tuples(
        st.sampled_from(["batch", "group", "none"]), st.integers(0, 2), st.integers(1, 2), st.integers(1, 2)
    )
    blocks = draw.draw(st.lists(block, min_size=1, max_size=3))
    order = draw.draw(st.lists(st.integers(0, len(blocks) - 1), min_size=1, max_size=4))
    torch.manual_seed(0)
    model = shaken(Random(width, blocks, order), seed=draw.draw(st.integers(0, 9)))
    batch = draw.draw(st.integers(1, 4))
    assert_exact(model, *data(batch, 3, 8, 8))


def test_a_batch_leaves_nothing_in_memory() -> None:
    """Hooks and graph must not keep each other alive: a million samples would end in a full memory."""
    seen: list[weakref.ref[Tensor]] = []

    class Watched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(weakref.ref(x))
            return x

    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), Watched(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    )
    squared_gradient_norms(model, torch.randn(5, 3, 8, 8), torch.arange(5) % 3)
    gc.collect()
    assert seen and all(reference() is None for reference in seen)
