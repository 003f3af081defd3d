"""Who is relabelled or dropped, and who is kept all the same."""

from __future__ import annotations

from collections import Counter

import pytest

from diffinf.config import Policy
from diffinf.repair.policy import decide


def decided(policy: Policy, *rows: tuple[str, str, float], n: int = 100) -> list[str]:
    """Statuses of samples labelled "old" from (reason, likeliest, trust)."""
    reasons, likeliest, trust = zip(*rows, strict=True)
    return decide(reasons, ["old"] * len(rows), likeliest, trust, Counter(old=n, young=n), policy)


@pytest.mark.parametrize(
    ("policy", "status"), [("edit", "kept"), ("edit-or-relabel", "relabelled"), ("edit-or-drop", "dropped")]
)
def test_refused_edits_of_doubtful_labels_follow_the_policy(policy: Policy, status: str) -> None:
    rows = [("", "young", 0.1), ("judge", "young", 0.1), ("class_unreliable", "young", 0.49)]
    assert decided(policy, *rows) == ["edited", status, status]


@pytest.mark.parametrize("policy", ["edit-or-relabel", "edit-or-drop"])
def test_a_trusted_label_is_kept(policy: Policy) -> None:
    assert decided(policy, ("judge", "young", 0.5), ("judge", "young", 0.99)) == ["kept", "kept"]


def test_there_must_be_another_label_to_give() -> None:
    row = ("judge", "old", 0.1)
    assert decided("edit-or-relabel", row) == ["kept"] and decided("edit-or-drop", row) == ["dropped"]


@pytest.mark.parametrize("policy", ["edit-or-relabel", "edit-or-drop"])
def test_no_class_is_emptied(policy: Policy) -> None:
    rows = [("judge", "young", trust) for trust in (0.1, 0.4, 0.2, 0.3)]
    statuses = decided(policy, *rows, n=4)
    assert [status == "kept" for status in statuses] == [False, True, False, True], "the most trusted stay"
    assert decided(policy, *rows, n=1).count("kept") == 4


def test_no_flags() -> None:
    assert decide([], [], [], [], Counter(), "edit-or-drop") == []
