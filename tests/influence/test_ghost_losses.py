"""Losses by name against autograd, what they mean, and labels that they refuse."""

from __future__ import annotations

import pytest
import torch
from exactness import Pool, assert_exact, by_autograd, data, shaken
from torch import Tensor, nn
from torch.nn import functional as F

from diffinf.errors import UserError
from diffinf.influence.ghost import squared_gradient_norms
from diffinf.influence.losses import LOSSES, binary_cross_entropy, ordinal, squared_error


def labels_for(loss: str, batch: int, outputs: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if loss in ("cross_entropy", "earth_mover", "ordinal"):
        return torch.randint(outputs + (loss == "ordinal"), (batch,), generator=generator)
    if loss == "squared_error":
        return torch.randn(batch, outputs, generator=generator)
    labels = torch.randint(2, (batch, outputs), generator=generator).float()
    labels[0, 1] = labels[2, 3] = torch.nan
    return labels


def network() -> nn.Module:
    torch.manual_seed(0)
    return shaken(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Pool(4)))


@pytest.mark.parametrize("name", LOSSES)
def test_a_named_loss_is_exact(name: str) -> None:
    model, (images, _) = network(), data(6, 3, 6, 6)
    labels = labels_for(name, 6, 5)
    assert_exact(model, images, labels, loss=LOSSES[name])
    by_name = squared_gradient_norms(model, images, labels, loss=name)
    assert torch.equal(by_name, squared_gradient_norms(model, images, labels, loss=LOSSES[name]))


def test_any_callable_is_a_loss() -> None:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        return F.multi_margin_loss(z, y, reduction="none") * 3

    images, labels = data(4, 3, 6, 6)
    assert_exact(network(), images, labels, loss=loss)


def test_a_loss_by_name_also_reaches_the_fallback() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.head = nn.Parameter(torch.ones(1)), nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.flatten(1) * self.scale.exp())

    labels = labels_for("binary_cross_entropy", 4, 5)
    assert_exact(shaken(Scaled()), data(4, 3, 2, 2)[0], labels, loss=binary_cross_entropy, fallback=True)


def test_unknown_attributes_add_nothing() -> None:
    logits, labels = torch.randn(3, 4), torch.ones(3, 4)
    labels[1, 2:] = torch.nan
    expected = F.binary_cross_entropy_with_logits(logits[1, :2], labels[1, :2], reduction="sum")
    torch.testing.assert_close(binary_cross_entropy(logits, labels)[1], expected)
    model, images = network(), data(3, 3, 6, 6)[0]
    nothing = torch.full((3, 5), torch.nan)
    assert squared_gradient_norms(model, images, nothing, loss="binary_cross_entropy").tolist() == [0] * 3


def test_ordinal_is_the_likelihood_of_the_thresholds() -> None:
    logits = torch.tensor([[2.0, 0.5, -1.0]]).double()
    above = logits.sigmoid()[0]
    for label in range(4):
        expected = -(above[:label].log().sum() + (1 - above[label:]).log().sum())
        torch.testing.assert_close(ordinal(logits, torch.tensor([label]))[0], expected)


def test_squared_error_takes_one_output_or_many() -> None:
    output, targets = torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 4.0])
    assert squared_error(output, targets).tolist() == squared_error(output[:, 0], targets).tolist() == [1, 4]
    assert squared_error(torch.ones(2, 3), torch.zeros(2, 3)).tolist() == [3, 3]


def test_class_shares_are_labels_too() -> None:
    model, (images, labels) = network(), data(4, 3, 6, 6)
    shares = F.one_hot(labels, 5).float()
    truth = torch.stack(list(by_autograd(model, images, labels).values())).sum(0)
    torch.testing.assert_close(squared_gradient_norms(model, images, shares), truth, rtol=1e-4, atol=0)


REFUSED = {
    "cross_entropy": [(torch.tensor([0, 5]), "label 5 of sample 1"), (torch.zeros(2), "whole numbers")],
    "ordinal": [
        (torch.tensor([6, 0]), "label 6 of sample 0"),
        (torch.tensor([0, -1]), "label -1 of sample 1"),
    ],
    "binary_cross_entropy": [
        (torch.tensor([0, 1]), r"labels \(N, 5\)"),
        (torch.zeros(2, 4), "do not fit"),
        (torch.tensor([[0.0] * 5, [0, 0, 2, 0, 0]]), "of sample 1 of the batch is outside 0..1"),
    ],
    "squared_error": [
        (torch.zeros(2, 4), "do not fit"),
        (torch.tensor([[0.0] * 5, [0, 0, torch.nan, 0, 0]]), "sample 1"),
    ],
}


@pytest.mark.parametrize(
    ("loss", "labels", "message"), [(loss, *case) for loss, cases in REFUSED.items() for case in cases]
)
def test_labels_that_do_not_fit_are_named(loss: str, labels: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        squared_gradient_norms(network(), data(2, 3, 6, 6)[0], labels, loss=loss)


def test_an_unknown_loss_is_named() -> None:
    with pytest.raises(UserError, match="no 'hinge'; expected cross_entropy"):
        squared_gradient_norms(network(), *data(2, 3, 6, 6), loss="hinge")
    with pytest.raises(UserError, match="ordinal takes logits"):
        squared_gradient_norms(nn.Flatten(0), torch.randn(4), torch.zeros(4).long(), loss="ordinal")
