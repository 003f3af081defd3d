"""The objective of an edited code: closed forms, gradients, and that it is lowered."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from diffinf.config import RepairConfig
from diffinf.diffusion.autoencoder import DiffusionAutoencoder
from diffinf.repair.objective import CodePrior, MovedCodes, objective_terms, optimise_codes
from diffinf.repair.surrogate import Surrogate

D = 8


class LinearSurrogate(nn.Module):
    """A surrogate whose logit is known."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.weight, self.bias = torch.linspace(-1, 1, D), bias

    def forward(self, code: Tensor, labels: Tensor) -> Tensor:
        return code @ self.weight + labels + self.bias


@pytest.fixture
def codes() -> Tensor:
    mixed = torch.randn(D, D, generator=torch.Generator().manual_seed(1))
    return torch.randn(400, D, generator=torch.Generator().manual_seed(0)) @ mixed


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(400) % 2


@pytest.fixture
def prior(codes: Tensor, labels: Tensor) -> CodePrior:
    return CodePrior.fit(codes + labels[:, None], labels, torch.ones(400), 2)


def test_class_means_count_samples_as_they_are_trusted(codes: Tensor, labels: Tensor) -> None:
    trust = torch.rand(400, generator=torch.Generator().manual_seed(2)).double()
    means = CodePrior.fit(codes, labels, trust, 2).means
    for k in range(2):
        weight = trust[labels == k, None]
        expected = (weight * codes[labels == k]).sum(0) / weight.sum()
        torch.testing.assert_close(means[k].double(), expected, rtol=1e-4, atol=1e-5)


def test_distrusted_samples_do_not_shape_the_prior(codes: Tensor, labels: Tensor) -> None:
    trust = (torch.arange(400) < 300).float()
    odd = codes.clone()
    odd[300:] += 1000
    clean, spoilt = (CodePrior.fit(c, labels, trust, 2) for c in (codes, odd))
    torch.testing.assert_close(clean.means, spoilt.means)
    torch.testing.assert_close(clean.precision, spoilt.precision)


def test_with_many_samples_the_prior_finds_the_distribution() -> None:
    factor = torch.tril(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    factor += 2 * torch.eye(3)
    labels = torch.arange(20_000) % 2
    noise = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(1)) @ factor.T
    prior = CodePrior.fit(noise + 4.0 * labels[:, None], labels, torch.ones(20_000), 2)
    torch.testing.assert_close(prior.means, torch.tensor([[0.0] * 3, [4.0] * 3]), rtol=0, atol=0.15)
    torch.testing.assert_close(torch.linalg.inv(prior.precision), factor @ factor.T, rtol=0.05, atol=0.2)


def test_the_energy_is_the_negative_log_density_a_dimension_up_to_a_constant(
    prior: CodePrior, codes: Tensor, labels: Tensor
) -> None:
    density = MultivariateNormal(prior.means[labels].double(), precision_matrix=prior.precision.double())
    difference = prior.energy(codes, labels).double() * D + density.log_prob(codes.double())
    torch.testing.assert_close(difference, difference[0].expand(400), rtol=1e-3, atol=1e-3)
    assert torch.equal(prior.energy(prior.means, torch.tensor([0, 1])), torch.zeros(2))


def test_each_term_is_its_closed_form(
    autoencoder: DiffusionAutoencoder, prior: CodePrior, codes: Tensor, labels: Tensor
) -> None:
    start, code, y = codes[:5], codes[5:10], labels[:5]
    terms = objective_terms(autoencoder, LinearSurrogate(0.3), prior, code, start, y)
    assert {name: tuple(term.shape) for name, term in terms.items()} == dict.fromkeys(
        ("label", "influence", "identity", "proximity", "realism"), (5,)
    )
    raw, raw_start = (c * autoencoder.code_std + autoencoder.code_mean for c in (code, start))
    shares = autoencoder.encoder.attribute_head(raw[:, :3]).softmax(1)
    torch.testing.assert_close(terms["label"], -shares[torch.arange(5), y].log())
    high = torch.sigmoid(LinearSurrogate(0.3)(code, y).double())
    torch.testing.assert_close(terms["influence"].double(), -(1 - high).log(), rtol=1e-4, atol=1e-5)
    head = autoencoder.encoder.identity_head
    cosine = F.cosine_similarity(head(raw[:, 3:]), head(raw_start[:, 3:]))
    torch.testing.assert_close(terms["identity"], 1 - cosine)
    torch.testing.assert_close(terms["proximity"], ((code - start) ** 2).sum(1) / D)
    torch.testing.assert_close(terms["realism"], prior.energy(code, y))


def test_a_code_that_was_not_moved_costs_no_proximity_and_no_identity(
    autoencoder: DiffusionAutoencoder, prior: CodePrior, codes: Tensor, labels: Tensor
) -> None:
    terms = objective_terms(autoencoder, LinearSurrogate(0), prior, codes, codes, labels)
    assert torch.equal(terms["proximity"], torch.zeros(400))
    torch.testing.assert_close(terms["identity"], torch.zeros(400), rtol=0, atol=1e-6)


def test_the_gradient_does_not_vanish_where_the_surrogate_is_sure(
    autoencoder: DiffusionAutoencoder, prior: CodePrior, codes: Tensor, labels: Tensor
) -> None:
    surrogate = LinearSurrogate(bias=80.0)  # P(high influence) is 1 in float32
    code = (0.01 * codes[:4]).requires_grad_(True)
    influence = objective_terms(autoencoder, surrogate, prior, code, codes[:4], labels[:4])["influence"]
    (gradient,) = torch.autograd.grad(influence.sum(), code)
    torch.testing.assert_close(gradient, surrogate.weight.expand(4, -1))


def objective(terms: dict[str, Tensor], config: RepairConfig, identity: float) -> Tensor:
    return (
        terms["label"]
        + config.influence_weight * terms["influence"]
        + identity * terms["identity"]
        + config.proximity_weight * terms["proximity"]
        + config.realism_weight * terms["realism"]
    )


@pytest.mark.parametrize("identity_known", [True, False])
def test_optimising_lowers_the_objective_of_every_code(
    autoencoder: DiffusionAutoencoder, prior: CodePrior, codes: Tensor, labels: Tensor, identity_known: bool
) -> None:
    config = RepairConfig(code_steps=60, code_stop=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        surrogate = Surrogate(D, 2).eval().requires_grad_(False)
    start, y = codes[:20].clone(), 1 - labels[:20]
    kept = start.clone()
    result = optimise_codes(autoencoder, surrogate, prior, start, y, config, identity_known=identity_known)
    moved = result.code
    assert torch.equal(start, kept) and not moved.requires_grad
    weight = config.identity_weight if identity_known else 0.0
    before = objective(objective_terms(autoencoder, surrogate, prior, start, start, y), config, weight)
    after = objective(objective_terms(autoencoder, surrogate, prior, moved, start, y), config, weight)
    assert (after < before).all()
    torch.testing.assert_close(objective(result.before, config, weight), before)
    torch.testing.assert_close(objective(result.after, config, weight), after)
    summary = result.summary()
    assert list(summary) == ["label", "influence", "identity", "proximity", "realism"]
    for ends, total in (("before", before), ("after", after)):
        sums = sum(term["weight"] * term[ends] for term in summary.values())
        assert sums == pytest.approx(float(total.mean()), rel=1e-4)


def test_the_identity_term_counts_only_where_it_was_trained(
    autoencoder: DiffusionAutoencoder, prior: CodePrior, codes: Tensor, labels: Tensor
) -> None:
    found = {
        (known, weight): optimise_codes(
            autoencoder,
            LinearSurrogate(0),
            prior,
            codes[:6],
            1 - labels[:6],
            RepairConfig(code_steps=20, code_stop=1, identity_weight=weight),
            identity_known=known,
        )
        for known in (True, False)
        for weight in (0.0, 20.0)
    }
    assert torch.equal(found[False, 20.0].code, found[False, 0.0].code)
    held, free = (found[True, weight].after["identity"].mean() for weight in (20.0, 0.0))
    assert held < 0.5 * free


def test_a_head_that_is_given_takes_the_place_of_the_autoencoders(
    autoencoder: DiffusionAutoencoder, prior: CodePrior, codes: Tensor, labels: Tensor
) -> None:
    def head(code: Tensor) -> Tensor:
        return F.normalize(code[:, :2], dim=1)

    start, code, y = codes[:5], codes[5:10], labels[:5]
    own, given = (
        objective_terms(autoencoder, LinearSurrogate(0), prior, code, start, y, chosen)
        for chosen in (None, head)
    )
    torch.testing.assert_close(given["identity"], 1 - F.cosine_similarity(code[:, :2], start[:, :2]))
    assert all(torch.equal(own[name], given[name]) for name in own if name != "identity")
    free, held = (
        optimise_codes(
            autoencoder,
            LinearSurrogate(0),
            prior,
            start,
            1 - y,
            RepairConfig(code_steps=20, code_stop=1, identity_weight=20.0),
            identity_known=known,
            identity_head=head,
        )
        .after["identity"]
        .mean()
        for known in (False, True)
    )
    assert held < 0.5 * free


def test_codes_move_alone_and_stay_without_steps(
    autoencoder: DiffusionAutoencoder, prior: CodePrior, codes: Tensor, labels: Tensor
) -> None:
    def move(rows: slice, steps: int) -> Tensor:
        config = RepairConfig(code_steps=steps)
        surrogate = LinearSurrogate(0)
        return optimise_codes(
            autoencoder, surrogate, prior, codes[rows], 1 - labels[rows], config, identity_known=True
        ).code

    assert torch.equal(move(slice(0, 6), 0), codes[:6])
    torch.testing.assert_close(move(slice(0, 6), 10)[2:3], move(slice(2, 3), 10), rtol=1e-3, atol=1e-4)


class Steps:
    """Codes (B, D) as the steps of an optimisation leave them; each step is asked for alone."""

    def __init__(self, model: DiffusionAutoencoder, prior: CodePrior, start: Tensor, labels: Tensor) -> None:
        self.model, self.prior, self.start, self.labels = model, prior, start, labels

    def moved(self, surrogate: LinearSurrogate | None, *, steps: int, stop: float) -> MovedCodes:
        config = RepairConfig(code_steps=steps, code_stop=stop)
        arguments = (self.model, surrogate, self.prior, self.start, self.labels, config)
        return optimise_codes(*arguments, identity_known=True)


@pytest.fixture
def steps(autoencoder: DiffusionAutoencoder, prior: CodePrior, codes: Tensor, labels: Tensor) -> Steps:
    return Steps(autoencoder, prior, 0.3 * codes[:40], 1 - labels[:40])


@pytest.mark.parametrize("bias", [-1.0, 0.5])
def test_a_code_stops_where_it_first_reads_its_label_and_is_of_low_influence(
    steps: Steps, bias: float
) -> None:
    surrogate, most, stop = LinearSurrogate(bias), 25, 0.75
    path = [steps.moved(surrogate, steps=n, stop=1.0) for n in range(most + 1)]
    result = steps.moved(surrogate, steps=most, stop=stop)
    rests = []
    for sample, label in enumerate(steps.labels.tolist()):
        rest = most
        for n, step in enumerate(path):
            code = step.code[sample : sample + 1]
            share = float(steps.model.read_code(code)[0].softmax(1)[0, label])
            high = float(torch.sigmoid(surrogate(code, torch.tensor([label]))))
            if share >= stop and high < 0.5:
                rest = n
                break
        rests.append(rest)
        torch.testing.assert_close(result.code[sample], path[rest].code[sample])
    # Some arrive early, some late, some never.
    assert min(rests) < 5 and max(rests) == most and len(set(rests)) > 4


def test_both_conditions_hold_a_code_back(steps: Steps) -> None:
    high, low = LinearSurrogate(60.0), LinearSurrogate(-60.0)
    any_label, no_label = 1e-6, 0.999999  # read in every code, in none
    whole = {surrogate: steps.moved(surrogate, steps=10, stop=1.0).code for surrogate in (high, low)}
    assert all((code != steps.start).any(1).all() for code in whole.values())
    assert torch.equal(steps.moved(high, steps=10, stop=any_label).code, whole[high])
    assert torch.equal(steps.moved(low, steps=10, stop=no_label).code, whole[low])
    still = steps.moved(low, steps=10, stop=any_label)
    assert torch.equal(still.code, steps.start)
    assert all(torch.equal(still.before[name], still.after[name]) for name in still.before)


def test_without_a_surrogate_the_label_alone_says_when_to_stop(steps: Steps) -> None:
    assert torch.equal(steps.moved(None, steps=10, stop=1e-6).code, steps.start)
    result = steps.moved(None, steps=10, stop=1.0)
    assert list(result.summary()) == ["label", "identity", "proximity", "realism"]
    # As if the surrogate's term weighed nothing.
    config = RepairConfig(code_steps=10, code_stop=1, influence_weight=0)
    arguments = (steps.model, LinearSurrogate(0), steps.prior, steps.start, steps.labels, config)
    torch.testing.assert_close(result.code, optimise_codes(*arguments, identity_known=True).code)
