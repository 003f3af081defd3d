"""Self-influence, rival scores, noise estimates and flags."""

from diffinf.influence.flag import FlagResult, calibrated_score, flag
from diffinf.influence.ghost import FallbackWarning, GradientNorms, squared_gradient_norms
from diffinf.influence.noise import (
    class_noise_rates,
    confident_joint,
    expected_precision,
    label_posterior,
    label_trust,
    refined_joint,
)
from diffinf.influence.rivals import rival_scores
from diffinf.influence.self_influence import self_influence

__all__ = [
    "FallbackWarning",
    "FlagResult",
    "GradientNorms",
    "calibrated_score",
    "class_noise_rates",
    "confident_joint",
    "expected_precision",
    "flag",
    "label_posterior",
    "label_trust",
    "refined_joint",
    "rival_scores",
    "self_influence",
    "squared_gradient_norms",
]
