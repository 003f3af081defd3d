"""Self-influence, rival scores, noise estimates and flags."""

from diffinf.influence.flag import FlagResult, Mixture, flag
from diffinf.influence.ghost import FallbackWarning, GradientNorms, squared_gradient_norms
from diffinf.influence.noise import (
    class_noise_rates,
    class_shares,
    confident_joint,
    error_log_odds,
    expected_precision,
    label_posterior,
    label_trust,
    ranked_trust,
    refined_joint,
)
from diffinf.influence.rivals import rival_scores
from diffinf.influence.self_influence import self_influence

__all__ = [
    "FallbackWarning",
    "FlagResult",
    "GradientNorms",
    "Mixture",
    "class_noise_rates",
    "class_shares",
    "confident_joint",
    "error_log_odds",
    "expected_precision",
    "flag",
    "label_posterior",
    "label_trust",
    "ranked_trust",
    "refined_joint",
    "rival_scores",
    "self_influence",
    "squared_gradient_norms",
]
