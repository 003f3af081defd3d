"""Gradient norms against torch.func on timm's models, and captum's TracIn; the joint against cleanlab."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffinf.influence.ghost import FallbackWarning, GradientNorms
from diffinf.influence.noise import class_noise_rates, confident_joint
from diffinf.influence.self_influence import self_influence


def by_torch_func(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Squared gradient norms (N,) of each parameter in float64."""
    model = copy.deepcopy(model).double()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        # A copy: some models keep between calls what they looked up in a parameter.
        output = torch.func.functional_call(copy.deepcopy(model), parameters, (image,))
        return F.cross_entropy(output, label, reduction="none")[0]

    # A sample is a batch of two: see `looped_norms`.
    rows = [
        torch.func.grad(loss)(parameters, images[[i, i]].double(), labels[[i, i]]) for i in range(len(images))
    ]
    return {name: torch.stack([row[name].square().sum() for row in rows]) for name in parameters}


MODELS = {
    "resnet10t": {},
    "resnet18": {},
    "mobilenetv3_small_050": {},
    "efficientnet_b0": {},
    "convnext_atto": {},
    "convnextv2_atto": {},
    "regnetx_002": {},
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "depth": 3},
    "mixer_s16_224": {"img_size": 32},
    "edgenext_xx_small": {},
}
# Their parameters without a rule, which take the fallback.
WITH_FALLBACK = {
    "swin_tiny_patch4_window7_224": (
        {"img_size": 32, "window_size": 4, "depths": (1, 1, 1, 1)},
        "relative_position_bias_table",
    ),
    "levit_128s": ({"img_size": 64}, "attention_biases"),
}


def build(name: str, options: dict[str, Any]) -> nn.Module:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=7, **options).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.02)
    return model


def assert_exact(name: str, options: dict[str, Any]) -> GradientNorms:
    model = build(name, options)
    side = options.get("img_size", 32)
    images, labels = torch.randn(3, 3, side, side), torch.tensor([0, 3, 6])
    norms = GradientNorms(model)
    found = norms.breakdown(images, labels)
    truth = by_torch_func(model, images, labels)
    total = torch.stack(list(truth.values())).sum(0)
    torch.testing.assert_close(norms(images, labels).double(), total, rtol=1e-4, atol=0)
    for key, expected in truth.items():
        assert ((found[key] - expected).abs() <= 1e-4 * expected + 1e-6 * total).all(), key
    return norms


@pytest.mark.parametrize("name", MODELS)
def test_timm_models_are_exact_without_the_fallback(name: str) -> None:
    assert not assert_exact(name, MODELS[name]).fallback


@pytest.mark.filterwarnings("ignore::diffinf.influence.FallbackWarning", "ignore:There is a performance drop")
@pytest.mark.parametrize("name", WITH_FALLBACK)
def test_timm_models_fall_back_for_few_parameters(name: str) -> None:
    options, ending = WITH_FALLBACK[name]
    norms = assert_exact(name, options)
    assert norms.fallback and all(key.endswith(ending) for key in norms.fallback)


def test_what_a_model_looked_up_before_hides_no_parameter() -> None:
    """LeViT keeps its biases between calls in eval mode; they come back as they were."""
    model = build("levit_128s", {"img_size": 64})
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([0, 3])
    with torch.no_grad():
        model(images)
    kept = [dict(m.attention_bias_cache) for m in model.modules() if hasattr(m, "attention_bias_cache")]
    with pytest.warns(FallbackWarning, match="attention_biases"):
        found = GradientNorms(model, scope=["stages.0.blocks.0.attn.attention_biases"])(images, labels)
    assert (found > 0).all()
    now = [m.attention_bias_cache for m in model.modules() if hasattr(m, "attention_bias_cache")]
    assert any(kept) and all(
        a.keys() == b.keys() and all(a[k] is b[k] for k in a) for a, b in zip(kept, now, strict=True)
    )


class Covered(nn.Module):
    """What captum covers: convolutions and linear layers."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, bias=bias), nn.Tanh(), nn.Conv2d(4, 6, 3, bias=bias), nn.Tanh()
        )
        self.hidden, self.head = nn.Linear(6, 8, bias=bias), nn.Linear(8, 3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(self.features(x).mean((2, 3)))))


def tracin(kind: str, models: list[nn.Module], images: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """Captum's self-influence, every checkpoint with weight 1."""
    influence = pytest.importorskip("captum.influence")
    model = copy.deepcopy(models[0])

    def load(model: nn.Module, checkpoint: nn.Module) -> float:
        model.load_state_dict(checkpoint.state_dict())
        return 1.0

    dataset = torch.utils.data.TensorDataset(images, labels)
    made = getattr(influence, kind)(
        model=model,
        train_dataset=dataset,
        checkpoints=models,
        checkpoints_load_func=load,
        batch_size=4,
        **options,
    )
    return made.self_influence(torch.utils.data.DataLoader(dataset, batch_size=4))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sample_wise", [True, False])
def test_tracin_of_captum_agrees(bias: bool, sample_wise: bool) -> None:
    torch.manual_seed(0)
    models = [Covered(bias).eval() for _ in range(2)]
    images, labels = torch.randn(6, 1, 10, 10), torch.randint(3, (6,))
    found = self_influence([(m, 1.0) for m in models], images, labels, to_input=lambda x, d: x.to(d))
    loss = nn.CrossEntropyLoss(reduction="sum" if sample_wise else "none")
    options = {"sample_wise_grads_per_batch": sample_wise, "loss_fn": loss}
    expected = tracin("TracInCP", models, images, labels, **options)
    np.testing.assert_allclose(found, expected.double().numpy(), rtol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_fast_tracin_of_captum_leaves_the_bias_out(bias: bool) -> None:
    torch.manual_seed(0)
    models = [Covered(bias).eval() for _ in range(2)]
    images, labels = torch.randn(6, 1, 10, 10), torch.randint(3, (6,))
    options = {"loss_fn": nn.CrossEntropyLoss(reduction="sum"), "final_fc_layer": "head"}
    expected = tracin("TracInCPFast", models, images, labels, **options)

    def scores(scope: list[str]) -> np.ndarray:
        checkpoints = [(m, 1.0) for m in models]
        return self_influence(checkpoints, images, labels, to_input=lambda x, d: x.to(d), scope=scope)

    np.testing.assert_allclose(scores(["head.weight"]), expected.double().numpy(), rtol=1e-4)
    if bias:
        assert (scores(["head"]) > 1.01 * scores(["head.weight"])).all()


@pytest.mark.parametrize("seed", range(5))
def test_confident_joint_is_cleanlabs(seed: int) -> None:
    count = pytest.importorskip("cleanlab.count")
    generator = np.random.default_rng(seed)
    n, classes = 500, 3 + seed % 3
    truth = generator.integers(classes, size=n)
    logits = generator.normal(size=(n, classes)) + 2 * np.eye(classes)[truth]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.where(generator.random(n) < 0.3, generator.integers(classes, size=n), truth)
    expected = count.compute_confident_joint(labels, p)
    found = confident_joint(labels, p)
    # cleanlab rounds to whole samples.
    assert np.abs(found * n - expected).max() <= 1
    rates = 1 - np.diagonal(expected) / expected.sum(1)
    np.testing.assert_allclose(class_noise_rates(found), rates, atol=2 * classes / n)
