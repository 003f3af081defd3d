"""Exact per-sample gradient norms against autograd, and the model left as it was found."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable, Sequence

import pytest
import torch
from exactness import TOLERANCE, Pool, assert_exact, by_autograd, data, shaken
from torch import Tensor, nn
from torch.nn import functional as F

from diffinf.errors import UserError
from diffinf.influence import forms
from diffinf.influence.ghost import FallbackWarning, GradientNorms, squared_gradient_norms
from diffinf.influence.pieces import Call, ConvolutionCall

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


@pytest.mark.parametrize("form", ["chosen", *forms.NORMS])
@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolutions_in_every_form(
    name: str, form: str, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_form(form, monkeypatch)
    torch.manual_seed(0)
    layer = CONVOLUTIONS[name]()
    model = shaken(
        nn.Sequential(nn.Conv2d(3, 6, 1), nn.Tanh(), layer, nn.ReLU(True), Pool(layer.out_channels))
    )
    assert_exact(model.to(memory_format=layout), *data(4, 3, 9, 8))


def use_form(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `form` the cheapest wherever it applies."""
    original = forms._forms

    def changed(calls: Sequence[Call]) -> dict[str, tuple[float, int]]:
        found = original(calls)
        if form in forms.NORMS and isinstance(calls[0], ConvolutionCall):
            found[form] = (-1.0, found[form][1] if form in found else 1)
        return found

    monkeypatch.setattr(forms, "_forms", changed)


def test_batches_are_cut_to_the_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(forms._WORKSPACE, "cpu", 1)
    model = shaken(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), Pool(6)))
    assert_exact(model, *data(5, 3, 8, 8))
    assert_exact(model.to(memory_format=torch.channels_last), *data(5, 3, 8, 8))


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


def test_a_batch_norm_over_tokens() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Flatten(0, 1), nn.BatchNorm1d(4), nn.Unflatten(0, (-1, 3)))
    model = shaken(nn.Sequential(model, nn.Flatten(), nn.Linear(12, 5)))
    assert_exact(model, *data(5, 3, 6))


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


@pytest.mark.parametrize("batch", [1, 3])
def test_tokens_from_a_batch_norm_are_exact_for_a_batch_of_one(batch: int) -> None:
    """PyTorch's own backward of a single such sample was wrong; so the truth is written out here."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 5)
            self.mix = nn.Parameter(torch.randn(1, 9, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.norm(x).flatten(2).transpose(1, 2) * self.mix).sum(1))

    model = shaken(Tokens())
    images, labels = data(batch, 4, 3, 3)
    found = GradientNorms(model).breakdown(images, labels)
    error = model(images).softmax(1) - F.one_hot(labels, 5)
    bias = (error @ model.head.weight) * model.mix.sum()
    torch.testing.assert_close(found["norm.bias"], bias.square().sum(1).detach(), rtol=TOLERANCE, atol=0)


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
