"""Losses of ordered classes, or that bear wrong labels: logits (B, K), labels (B,) in, a loss a sample (B,) out."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_LOG_OF_ZERO = -4.0  # what the reverse cross-entropy takes log 0 for
_SCE_ALPHA = 0.1
_LEAST_PROBABILITY = 1e-4
_ALDR_ALPHA = 2.0
_ALDR_MARGIN = 0.1
_ALDR_ITERATIONS = 30


def squared_earth_mover(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the squared earth mover's distance of ordered classes, arXiv 1611.05916, section 3.

    Σ_k (P_k - Y_k)² over the cumulative shares of the classes: the ranked probability score, least in expectation where
    the shares are the true ones, so that what is estimated from them stays sound. A reading two classes off costs more
    than one beside the label, and none more than K - 1.

    Args:
        logits: (B, K), classes from low to high.
        labels: int64 (B,), or shares of the classes (B, K).

    Returns:
        (B,), 0 to K - 1.
    """
    shares = F.one_hot(labels, logits.shape[1]) if labels.ndim == 1 else labels
    difference = logits.softmax(1) - shares.to(logits.dtype)
    return difference.cumsum(1)[:, :-1].square().sum(1)  # the last one is 1 - 1


def smoothed(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Return labels (B,), or shares (B, K), as shares of which all classes divide `smoothing` equally."""
    shares = F.one_hot(labels, classes).float() if labels.ndim == 1 else labels
    return (1 - smoothing) * shares + smoothing / classes


def generalised_cross_entropy(logits: Tensor, labels: Tensor, q: float) -> Tensor:
    """Return (1 - p_y^q) / q, arXiv 1805.07836: cross-entropy as q goes to 0, half the absolute error at q = 1.

    Args:
        logits: (B, K).
        labels: int64 (B,).
        q: in (0, 1]; the larger, the less a label counts that the network finds unlikely.

    Returns:
        (B,), 0 to 1/q.
    """
    log_p = -F.cross_entropy(logits, labels, reduction="none")
    return -torch.expm1(q * log_p) / q


def symmetric_cross_entropy(logits: Tensor, labels: Tensor, beta: float) -> Tensor:
    """Return 0.1 times the cross-entropy plus `beta` times the reverse one, arXiv 1908.06112.

    The reverse one is -Σ p_k log e_k with log 0 = -4, which is 4 (1 - p_y).

    Args:
        logits: (B, K).
        labels: int64 (B,).
        beta: at least 0.

    Returns:
        (B,), at least 0.
    """
    forward = F.cross_entropy(logits, labels, reduction="none")
    reverse = -_LOG_OF_ZERO * -torch.expm1(-forward)
    return _SCE_ALPHA * forward + beta * reverse


def moving_targets(targets: Tensor, logits: Tensor, momentum: float) -> Tensor:
    """Return the moving averages of predictions after those of one more step, without gradient.

    Args:
        targets: (B, K), the averages so far, 0 before a sample's first step.
        logits: (B, K) of this step.
        momentum: share that stays, in [0, 1).

    Returns:
        (B, K); rows sum to 1 - momentum^n after n steps.
    """
    p = _bounded(logits.detach())
    return momentum * targets + (1 - momentum) * p / p.sum(1, keepdim=True)


def early_learning_penalty(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log(1 - <p, t>), arXiv 2007.00151: low where the network still says what it said early on.

    Args:
        logits: (B, K).
        targets: (B, K), of `moving_targets`.

    Returns:
        (B,), at most 0.
    """
    return torch.log1p(-(_bounded(logits) * targets).sum(1))


def _bounded(logits: Tensor) -> Tensor:
    """Probabilities that are neither 0 nor 1, so that the logarithm of the penalty has a gradient."""
    return logits.softmax(1).clamp(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)


def aldr_kl(logits: Tensor, labels: Tensor, lambda0: float) -> Tensor:
    """Return the adaptive label-distributionally robust loss ALDR-KL, arXiv 2112.14869, alpha = 2, margin 0.1.

    With v_k = f_k - f_y + 0.1 (k ≠ y), logits f divided by their mean absolute value, it is

        λ log((1/K) Σ_k exp(v_k / λ)) - (alpha log K / 2 λ0) (λ - λ0)²

    at each sample's own temperature λ (`aldr_temperature`), which maximises it: λ needs no gradient. The authors' code
    comes nearer to that temperature by one iteration each time a sample is drawn; here it is found at once. The scale
    of the logits is not learned, so their probabilities mean little; their order is what counts.

    Args:
        logits: (B, K), K at least 2.
        labels: int64 (B,).
        lambda0: highest temperature, above 0; the higher, the more alike all labels are treated.

    Returns:
        (B,).
    """
    f = logits / logits.abs().mean(1, keepdim=True).clamp_min(1e-8)
    v = f - f.gather(1, labels[:, None]) + _ALDR_MARGIN
    v = v.scatter(1, labels[:, None], 0.0)
    temperature = aldr_temperature(v.detach(), lambda0)
    log_k = math.log(logits.shape[1])
    soft_maximum = temperature * (torch.logsumexp(v / temperature[:, None], 1) - log_k)
    return soft_maximum - _ALDR_ALPHA * log_k / (2 * lambda0) * (temperature - lambda0) ** 2


def aldr_temperature(v: Tensor, lambda0: float) -> Tensor:
    """Return the highest λ with λ = λ0 (1 - KL(softmax(v/λ) || 1/K) / (alpha log K)), alpha = 2, of each row of v.

    Iterated from λ0: each iteration lowers λ towards it, the surer the row the further, never below λ0 / 2.

    Args:
        v: (B, K), without gradient.
        lambda0: above 0.

    Returns:
        (B,), λ0/2 to λ0.
    """
    log_k = math.log(v.shape[1])
    temperature = torch.full_like(v[:, 0], lambda0)
    for _ in range(_ALDR_ITERATIONS):
        log_p = F.log_softmax(v / temperature[:, None], 1)
        divergence = (log_p.exp() * log_p).sum(1) + log_k
        temperature = lambda0 * (1 - divergence / (_ALDR_ALPHA * log_k))
    return temperature
