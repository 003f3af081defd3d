"""Each sign of trouble on made-up figures, and silence on sound ones."""

from __future__ import annotations

import math

import pytest

from diffinf.training.health import (
    code_findings,
    diverged,
    latent_findings,
    loss_findings,
    use_findings,
)


def history(*values: float, every: int = 100, name: str = "v") -> list[dict[str, float]]:
    return [{"step": float(every * (k + 1)), name: value, "loss": 1.0} for k, value in enumerate(values)]


def kinds(*values: float, every: int = 100) -> list[str]:
    return [finding.kind for finding in loss_findings(history(*values, every=every), "v", "a.rate")]


def test_a_loss_that_falls_is_sound() -> None:
    assert kinds() == kinds(1.0) == kinds(1.0, 0.9) == []
    assert kinds(1.0, 0.6, 0.5, 0.48, 0.49, 0.47, 0.48) == []


def test_a_loss_that_explodes_is_told_with_its_figures_and_the_setting() -> None:
    (finding,) = loss_findings(history(1.0, 0.4, 0.5, 0.9), "v", "a.rate")
    assert finding.kind == "exploded"
    assert "v rose from 0.4 to 0.9 by step 400" in finding.message and "lower a.rate" in finding.message
    assert kinds(1.0, 0.4, 0.5, 0.79) == []


def test_a_loss_that_stands_still_is_told_once_there_was_time() -> None:
    assert kinds(1.0, 1.0, 0.99, 1.0) == ["stuck"]
    assert kinds(1.0, 1.0, 1.0) == []  # too few intervals
    assert kinds(1.0, 1.0, 0.99, 1.0, every=10) == []  # too few steps
    assert kinds(1.0, 1.0, 0.99, 0.96) == []


def test_a_collapsed_code_is_told() -> None:
    assert code_findings(0.2) == []
    (finding,) = code_findings(1e-5)
    assert finding.kind == "collapsed" and "hardly differs between images" in finding.message


def test_a_denoiser_that_ignores_the_code_is_told() -> None:
    assert use_findings(0.5, 0.6) == []
    for shuffled in (0.5, 0.501, 0.49):
        (finding,) = use_findings(0.5, shuffled)
        assert finding.kind == "ignored" and "ignores the semantic code" in finding.message


@pytest.mark.parametrize(("mean", "std", "bad"), [(0, 1, False), (0, 9, True), (0, 0.1, True), (2, 1, True)])
def test_latents_far_from_unit_scale_are_told(mean: float, std: float, bad: bool) -> None:
    assert bool(latent_findings(mean, std)) == bad
    assert latent_findings(0.0, math.nan)


def test_a_divergence_names_step_part_and_remedy() -> None:
    said = diverged(
        "autoencoder", 7, {"loss": math.nan, "v": 0.3, "identity": math.inf}, "lower a.rate (now 3)"
    )
    assert said == (
        "autoencoder: the loss is nan at step 7 (identity no finite number); lower a.rate (now 3), and run again"
    )
    assert diverged("guide", 0, {"loss": math.inf}).startswith("guide: the loss is inf at step 0; lower the")
