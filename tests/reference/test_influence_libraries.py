"""Per-sample gradient norms against torch.func on timm's models; the confident joint against cleanlab."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffinf.influence.ghost import GradientNorms
from diffinf.influence.noise import class_noise_rates, confident_joint


def by_vmap(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        output = torch.func.functional_call(model, parameters, (image[None],))
        return F.cross_entropy(output, label[None])

    def norms(image: Tensor, label: Tensor) -> dict[str, Tensor]:
        return {k: g.square().sum() for k, g in torch.func.grad(loss)(parameters, image, label).items()}

    return torch.func.vmap(norms)(images, labels)


MODELS = {
    "resnet10t": {},
    "resnet18": {},
    "mobilenetv3_small_050": {},
    "convnext_atto": {},
    "convnextv2_atto": {},
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "depth": 3},
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", MODELS)
def test_timm_models_are_exact_and_fast(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=7, **MODELS[name]).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.02)
    images, labels = torch.randn(3, 3, 32, 32), torch.tensor([0, 3, 6])
    truth = by_vmap(model, images, labels)
    norms = GradientNorms(model)
    found = norms.breakdown(images, labels)
    assert not norms.fallback
    total = torch.stack(list(truth.values())).sum(0)
    torch.testing.assert_close(norms(images, labels), total, rtol=1e-4, atol=0)
    for key, expected in truth.items():
        assert ((found[key] - expected).abs() <= 1e-4 * expected + 1e-6 * total).all(), key


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
