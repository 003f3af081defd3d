"""How a step of training is done: with the loss of the settings, or with a method that bears wrong labels.

All methods have the first network's initialisation, the batches, the schedule and the number of steps in common, and
the first network is the result. What a method needs beside it is saved and restored with the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffinf.classify.losses import (
    aldr_kl,
    early_learning_penalty,
    generalised_cross_entropy,
    moving_targets,
    smoothed,
    squared_earth_mover,
    symmetric_cross_entropy,
)
from diffinf.classify.model import ClassifierSpec, create_classifier
from diffinf.config import ClassifierConfig
from diffinf.training.loop import Stateful, seeded, step_generator, step_seed, warmup_cosine

_GRADIENT_NORM = 5.0  # clips only what would break a training; ordinary steps stay below it
_ELR_MOMENTUM = 0.7
_RAMP = 0.1  # share of the steps over which co-teaching comes to forget its whole share


@dataclass(frozen=True)
class MethodSpec:
    """Which method trains: a name of `config.ROBUST_ARMS`, and the value of its knob (`config.KNOBS`)."""

    name: str
    knob: float


@dataclass(frozen=True)
class Batch:
    """What one step sees.

    Attributes:
        step: its number, from 0.
        x: (B, C, H, W) in [-1, 1], augmented, on the device.
        labels: int64 (B,) on the device, or shares of the classes (B, K).
        rows: int64 (B,), which of the N samples these are.
        weights: (B,) on the device, of mean 1 over all samples, or None.
    """

    step: int
    x: Tensor
    labels: Tensor
    rows: Tensor
    weights: Tensor | None

    def weighted(self, losses: Tensor) -> Tensor:
        """Return losses (B,) times the samples' weights."""
        return losses if self.weights is None else losses * self.weights


class Network:
    """A classifier with its optimiser and schedule."""

    def __init__(
        self, spec: ClassifierSpec, config: ClassifierConfig, seed: int, device: torch.device
    ) -> None:
        """Initialise a network by `seed`; what is random in its layers is a function of seed and step."""
        self.config, self.seed, self.device = config, seed, device
        self.model = create_classifier(spec, seed).to(device)
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        # Norms and biases: decay does them no good.
        plain = [p for p in self.model.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            fused=True,
        )

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        return self.config.learning_rate * warmup_cosine(step, self.config.steps)

    def logits(self, batch: Batch) -> Tensor:
        """Return the logits (B, K) in training mode."""
        self.model.train()
        with seeded(step_generator(self.seed, "dropout", batch.step).initial_seed(), self.device):
            return cast(Tensor, self.model(batch.x))

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of a loss, in the place of earlier ones."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]

    def descend(self, loss: Tensor, step: int) -> float:
        """Do one optimisation step on a loss and return its value."""
        self.backward(loss)
        self.apply(step)
        return float(loss.detach())

    def apply(self, step: int) -> None:
        """Do one optimisation step along the gradients that are there."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        nn.utils.clip_grad_norm_(self.model.parameters(), _GRADIENT_NORM)
        self.optimizer.step()


class Method:
    """Training by a loss alone; the others build on it."""

    def __init__(self, network: Network) -> None:
        """Train `network`."""
        self.network = network

    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the samples' losses (B,), here that of the settings."""
        smoothing = self.network.config.label_smoothing
        if self.network.config.loss == "earth_mover":
            return squared_earth_mover(logits, smoothed(batch.labels, logits.shape[1], smoothing))
        return F.cross_entropy(logits, batch.labels, reduction="none", label_smoothing=smoothing)

    def update(self, batch: Batch) -> float:
        """Do one optimisation step and return the loss."""
        losses = batch.weighted(self.losses(self.network.logits(batch), batch))
        return self.network.descend(losses.mean(), batch.step)

    def state(self) -> dict[str, Stateful]:
        """Return what must be saved and restored beside the network and its optimiser, by name."""
        return {}


class RobustLoss(Method):
    """Training by another loss of logits (B, K) and labels (B,)."""

    def __init__(
        self, network: Network, loss: Callable[[Tensor, Tensor, float], Tensor], knob: float
    ) -> None:
        """Train `network` by `loss(logits, labels, knob)`."""
        super().__init__(network)
        self.loss, self.knob = loss, knob

    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the samples' losses (B,)."""
        return self.loss(logits, batch.labels, self.knob)


class EarlyLearning(Method):
    """ELR (arXiv 2007.00151): cross-entropy, held to what the network said of each sample early on."""

    def __init__(self, network: Network, samples: int, classes: int, weight: float) -> None:
        """Train `network` on N `samples` with `weight` times the penalty."""
        super().__init__(network)
        self.weight = weight
        self.memory = nn.Module()
        self.memory.register_buffer("targets", torch.zeros(samples, classes, device=network.device))

    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the samples' losses (B,), and remember what the network said."""
        memory, rows = cast(Tensor, self.memory.targets), batch.rows.to(logits.device)
        targets = moving_targets(memory[rows], logits, _ELR_MOMENTUM)
        memory[rows] = targets
        return super().losses(logits, batch) + self.weight * early_learning_penalty(logits, targets)

    def state(self) -> dict[str, Stateful]:
        """Return the memory of the samples' readings."""
        return {"memory": self.memory}


class CoTeaching(Method):
    """Co-teaching (arXiv 1804.06872): two networks, each trained on the samples that the other finds easiest.

    The share of each batch that is forgotten rises over the first tenth of the steps to `forget`.
    """

    def __init__(self, network: Network, peer: Network, forget: float) -> None:
        """Train `network` and its `peer`; `forget`, in [0, 1), is the estimated share of wrong labels."""
        super().__init__(network)
        self.peer, self.forget = peer, forget

    def kept(self, step: int, size: int) -> int:
        """Return how many of a batch of `size` samples are trained on at a step, at least 1."""
        ramp = min(1.0, step / max(1.0, _RAMP * self.network.config.steps))
        return max(1, round((1 - self.forget * ramp) * size))

    def update(self, batch: Batch) -> float:
        """Do one step of both networks and return the first one's loss."""
        networks = (self.network, self.peer)
        first, second = (self.losses(network.logits(batch), batch) for network in networks)
        kept = self.kept(batch.step, len(batch.x))
        easy_to_first, easy_to_second = (
            losses.detach().argsort(stable=True)[:kept] for losses in (first, second)
        )
        loss = self.network.descend(batch.weighted(first)[easy_to_second].mean(), batch.step)
        other = self.peer.descend(batch.weighted(second)[easy_to_first].mean(), batch.step)
        return loss + 0 * other  # not finite where either is not

    def state(self) -> dict[str, Stateful]:
        """Return the second network and its optimiser."""
        return {"peer": self.peer.model, "peer_optimizer": self.peer.optimizer}


class SharpnessAware(Method):
    """Sharpness-aware minimisation (SAM, arXiv 2010.01412): the gradient from where the loss is highest nearby."""

    def __init__(self, network: Network, rho: float) -> None:
        """Train `network`; `rho` is the radius of what is near."""
        super().__init__(network)
        self.rho = rho

    def update(self, batch: Batch) -> float:
        """Do one step of two passes and return the loss of the first."""
        network = self.network
        loss = batch.weighted(self.losses(network.logits(batch), batch)).mean()
        network.backward(loss)
        with self._climbed(), frozen_statistics(network.model):
            higher = batch.weighted(self.losses(network.logits(batch), batch)).mean()
            network.backward(higher)
        network.apply(batch.step)
        return float(loss.detach()) + 0 * float(higher.detach())  # not finite where either is not

    @contextmanager
    def _climbed(self) -> Iterator[None]:
        """Move the weights by `rho` along their gradient inside the block, and put them back after it."""
        held = [p for p in self.network.model.parameters() if p.grad is not None]
        gradients = [cast(Tensor, p.grad) for p in held]
        before = [p.detach().clone() for p in held]
        scale = self.rho / (nn.utils.get_total_norm(gradients) + 1e-12)
        with torch.no_grad():
            for parameter, gradient in zip(held, gradients, strict=True):
                parameter.add_(gradient * scale)
        yield
        with torch.no_grad():
            for parameter, value in zip(held, before, strict=True):
                parameter.copy_(value)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Normalise by the batch inside the block without moving the running statistics of batch norms."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    tracked = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, value in zip(norms, tracked, strict=True):
            norm.track_running_stats = value


_LOSSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "gce": generalised_cross_entropy,
    "sce": symmetric_cross_entropy,
    "aldr-kl": aldr_kl,
}
COST = {"co-teaching": 2, "sam": 2}  # of a step, where it is more than one of cross-entropy
LABELS_ONLY = frozenset(_LOSSES)  # methods that take no shares of the classes in the place of labels


def create_method(
    method: MethodSpec | None,
    spec: ClassifierSpec,
    config: ClassifierConfig,
    seed: int,
    device: torch.device,
    samples: int,
) -> Method:
    """Return the training of a new network: by `method`, or by the loss of the settings where that is None.

    Args:
        method: which one, and its knob.
        spec: the network.
        config: its training.
        seed: of all that is random; the first network begins alike under every method.
        device: where to train.
        samples: N.

    Raises:
        ValueError: there is no such method.
    """
    network = Network(spec, config, seed, device)
    if method is None:
        return Method(network)
    if method.name in _LOSSES:
        return RobustLoss(network, _LOSSES[method.name], method.knob)
    if method.name == "elr":
        return EarlyLearning(network, samples, spec.num_classes, method.knob)
    if method.name == "co-teaching":
        peer = Network(spec, config, step_seed(seed, "second network", 0), device)
        return CoTeaching(network, peer, method.knob)
    if method.name == "sam":
        return SharpnessAware(network, method.knob)
    raise ValueError(f"there is no training method {method.name!r}")
