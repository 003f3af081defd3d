from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffinf.classify.methods import MethodSpec
from diffinf.compare.arms import ARMS, Material, training_method, training_set
from diffinf.config import DATA_ARMS, ROBUST_ARMS, CompareConfig
from diffinf.errors import UserError

CLASSES = 3


@st.composite
def materials(draw: st.DrawFn) -> Material:
    """Samples 0..n-1 in the pool, then a replacement for each."""
    n = draw(st.integers(12, 40))
    integers = st.lists(st.integers(0, CLASSES - 1), min_size=n, max_size=n)
    labels = np.concatenate([np.arange(6) % CLASSES, draw(integers)[6:]]).astype(np.int64)
    flagged = np.array([False] * 6 + draw(st.lists(st.booleans(), min_size=n - 6, max_size=n - 6)))
    rows = np.flatnonzero(flagged).tolist()
    edited, relabelled, dropped = rows[0::3], rows[1::3], rows[2::3]
    return Material(
        ids=np.array([f"id{i}" for i in range(n)]),
        labels=labels,
        flagged=flagged,
        appears=np.array(draw(integers)),
        edited={row: n + row for row in edited},
        relabelled={row: (int(labels[row]) + 1) % CLASSES for row in relabelled},
        dropped=set(dropped),
        roundtrips={row: 2 * n + row for row in rows},
        oracle_edits={row: 3 * n + row for row in rows},
        truth=np.array(draw(integers)),
        cleanlab_issues=~np.array([True] * 6 + draw(st.lists(st.booleans(), min_size=n - 6, max_size=n - 6))),
        paper_edits={row: 4 * n + row for row in range(6, n, 2)},
        true_flag_edits={row: 5 * n + row for row in range(6, n, 3)},
    )


@settings(max_examples=60, deadline=None)
@given(materials(), st.integers(0, 5))
def test_sizes_and_labels(material: Material, seed: int) -> None:
    n, flagged, labels = len(material.labels), material.flagged, material.labels
    own = np.arange(n)

    baseline = training_set("baseline", material, seed)
    assert (baseline.rows == own).all() and (baseline.labels == labels).all()

    filtered = training_set("filter", material, seed)
    assert (filtered.rows == own[~flagged]).all() and (filtered.labels == labels[~flagged]).all()

    relabelled = training_set("relabel", material, seed)
    assert (relabelled.rows == own).all()
    assert (relabelled.labels[flagged] == material.appears[flagged]).all()
    assert (relabelled.labels[~flagged] == labels[~flagged]).all()

    resampled = training_set("resample", material, seed)
    assert (resampled.labels == labels).all() and (resampled.rows[~flagged] == own[~flagged]).all()
    assert not flagged[resampled.rows].any()  # each class has unflagged samples here
    assert (labels[resampled.rows] == labels).all()

    for name, offset in (("roundtrip", 2 * n), ("oracle-edit", 3 * n)):
        replaced = training_set(name, material, seed)
        assert (replaced.rows == own + offset * flagged).all() and (replaced.labels == labels).all()

    repaired = training_set("diffinf", material, seed)
    assert len(repaired.rows) == n - len(material.dropped)
    at = {
        int(row) % n: (int(row), int(label))
        for row, label in zip(repaired.rows, repaired.labels, strict=True)
    }
    for row in range(n):
        if row in material.dropped:
            assert row not in at
        else:
            expected = material.edited.get(row, row), material.relabelled.get(row, int(labels[row]))
            assert at[row] == expected

    pruned = training_set("cleanlab", material, seed)
    assert material.cleanlab_issues is not None
    assert (pruned.rows == own[~material.cleanlab_issues]).all()
    assert (pruned.labels == labels[pruned.rows]).all()

    for name, offset, every in (("diffinf-paper", 4 * n, 2), ("true-flags", 5 * n, 3)):
        edited = training_set(name, material, seed)
        chosen = (own >= 6) & ((own - 6) % every == 0)
        assert (edited.rows == own + offset * chosen).all() and (edited.labels == labels).all()

    weighted = training_set("down-weight", replace(material, flagged_weight=0.25), seed)
    assert (weighted.rows == own).all() and weighted.weights is not None
    assert (weighted.weights == np.where(flagged, 0.25, 1.0)).all() and baseline.weights is None

    clean = training_set("clean", material, seed) if len(np.unique(material.truth)) > 1 else None
    assert clean is None or (clean.labels == material.truth).all()


@settings(max_examples=30, deadline=None)
@given(materials())
def test_policies_of_what_was_not_edited(material: Material) -> None:
    n, labels = len(material.labels), material.labels
    refused = material.flagged & ~np.isin(np.arange(n), list(material.edited))
    images = np.array([material.edited.get(row, row) for row in range(n)])

    relabelled = training_set("diffinf-edit-or-relabel", material, 0)
    assert (relabelled.rows == images).all()
    assert (relabelled.labels == np.where(refused, material.appears, labels)).all()

    dropped = training_set("diffinf-edit-or-drop", material, 0)
    assert (dropped.rows == images[~refused]).all() and (dropped.labels == labels[~refused]).all()

    resampled = training_set("diffinf-edit-or-resample", material, 0)
    substitutes = training_set("resample", material, 0).rows  # each class has unflagged samples here
    assert (resampled.rows == np.where(refused, substitutes, images)).all()
    assert (resampled.labels == labels).all()

    # What the repair decided goes first, even if it decided nothing.
    decided = replace(material, relabelled_instead={}, dropped_instead=())
    for name in ("diffinf-edit-or-relabel", "diffinf-edit-or-drop", "diffinf-edit-or-resample"):
        chosen = training_set(name, decided, 0)
        assert (chosen.rows == images).all() and (chosen.labels == labels).all()


@settings(max_examples=10, deadline=None)
@given(materials(), st.sampled_from(ROBUST_ARMS))
def test_a_robust_method_trains_on_what_its_arm_says(material: Material, method: str) -> None:
    for name, data in (
        (method, "baseline"),
        (f"diffinf+{method}", "diffinf"),
        (f"filter+{method}", "filter"),
    ):
        chosen, expected = training_set(name, material, 0), training_set(data, material, 0)
        assert (chosen.rows == expected.rows).all() and (chosen.labels == expected.labels).all()


def test_methods_and_their_knobs() -> None:
    compare = CompareConfig(knobs={"gce": 0.4, "elr": 1})
    assert training_method("diffinf", compare, 0.3) is None
    assert training_method("diffinf+gce", compare, 0.3) == MethodSpec("gce", 0.4)
    assert training_method("elr", compare, None) == MethodSpec("elr", 1.0)
    assert training_method("sam", compare, 0.3) == MethodSpec("sam", 0.05)
    # Co-teaching forgets the estimated noise, unless it is told otherwise.
    assert training_method("co-teaching", compare, 0.3) == MethodSpec("co-teaching", 0.3)
    assert training_method("co-teaching", compare, None) == MethodSpec("co-teaching", 0.2)
    told = CompareConfig(knobs={"co-teaching": 0.1})
    assert training_method("filter+co-teaching", told, 0.3) == MethodSpec("co-teaching", 0.1)


@settings(max_examples=20, deadline=None)
@given(materials(), st.permutations(range(12)))
def test_resampling_depends_on_ids_and_seed_not_on_the_order(material: Material, order: list[int]) -> None:
    order = [*order, *range(12, len(material.labels))]
    shuffled = Material(
        material.ids[order], material.labels[order], material.flagged[order], material.appears[order]
    )
    first = material.ids[training_set("resample", material, 3).rows]
    second = shuffled.ids[training_set("resample", shuffled, 3).rows]
    assert (first[order] == second).all()


def test_seeds_resample_differently() -> None:
    flagged = np.arange(200) % 4 == 0
    ids, labels = np.array([f"id{i}" for i in range(200)]), np.arange(200) % 2
    material = Material(ids, labels, flagged, labels)
    rows = [training_set("resample", material, seed).rows for seed in (0, 1)]
    assert (rows[0] != rows[1])[flagged].mean() > 0.8


def test_a_class_that_is_all_flagged_keeps_its_images_when_resampled() -> None:
    labels = np.array([0, 0, 1, 1])
    material = Material(np.array(list("abcd")), labels, labels == 1, labels)
    assert training_set("resample", material, 0).rows.tolist() == [0, 1, 2, 3]
    with pytest.raises(UserError, match="filter leaves 2 samples of fewer than two classes"):
        training_set("filter", material, 0)


def test_no_flags_is_legal_and_changes_nothing() -> None:
    labels = np.array([0, 1, 0, 1])
    material = Material(np.array(list("abcd")), labels, np.zeros(4, bool), 1 - labels)
    for name in ("baseline", "filter", "relabel", "resample", "diffinf"):
        chosen = training_set(name, material, 0)
        assert chosen.rows.tolist() == [0, 1, 2, 3] and (chosen.labels == labels).all()


@pytest.mark.parametrize(
    "name", ["roundtrip", "clean", "oracle-edit", "cleanlab", "diffinf-paper", "true-flags"]
)
def test_arms_say_what_they_lack(name: str) -> None:
    labels = np.array([0, 1])
    with pytest.raises(UserError, match=f"the arm {name} needs"):
        training_set(name, Material(np.array(["a", "b"]), labels, labels == 0, labels), 0)


def test_unknown_arm() -> None:
    labels = np.array([0, 1])
    material = Material(np.array(["a", "b"]), labels, labels == 0, labels)
    with pytest.raises(UserError, match=r"no arm 'drop'.*baseline, filter") as caught:
        training_set("drop", material, 0)
    assert all(name in str(caught.value) for name in (*ARMS, *ROBUST_ARMS))
    for name in ("baseline+gce", "gce+sam", "diffinf+filter", "gce+", "+gce", "diffinf+gce+sam"):
        with pytest.raises(UserError, match="there is no arm"):
            training_method(name, CompareConfig(), None)


def test_every_arm_of_the_settings_is_there() -> None:
    assert tuple(ARMS) == DATA_ARMS


@settings(max_examples=30, deadline=None)
@given(materials(), st.sampled_from(DATA_ARMS), st.integers(0, 5))
def test_targets_hold_where_image_and_label_are_as_they_came(material: Material, arm: str, seed: int) -> None:
    n = len(material.labels)
    soft = np.random.default_rng(seed).dirichlet(np.ones(CLASSES), n).astype(np.float32)
    plain = training_set(arm, material, seed)
    chosen = training_set(arm, replace(material, targets=soft), seed)
    assert chosen.targets is not None and chosen.targets.shape == (len(chosen.rows), CLASSES)
    assert np.array_equal(chosen.rows, plain.rows) and plain.targets is None
    for row, label, target in zip(chosen.rows, chosen.labels, chosen.targets, strict=True):
        untouched = row < n and material.labels[row] == label
        assert np.array_equal(target, soft[row] if untouched else np.eye(CLASSES)[label])
    assert training_set("gce", replace(material, targets=soft), seed).targets is None
    assert training_set("elr", replace(material, targets=soft), seed).targets is not None
