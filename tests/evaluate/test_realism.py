import json

import numpy as np
import pytest

from diffinf.evaluate.fidelity import precision_recall_density_coverage
from diffinf.evaluate.realism import matched_rows, relative_realism

GENERATOR = np.random.default_rng(0)
REFERENCE, SAMPLE = GENERATOR.normal(size=(80, 4)), GENERATOR.normal(size=(60, 4))
EDITED = GENERATOR.normal(0.8, 1.0, size=(60, 4))
LABELS = {
    "edited_labels": np.arange(60) % 2,
    "reference_labels": np.arange(80) % 2,
    "real_sample_labels": np.arange(60) % 2,
}


def measure(edited=EDITED, sample=SAMPLE, reference=REFERENCE, **settings):
    return relative_realism(edited, reference, sample, **({"bootstrap": 100} | settings))


def test_values_are_those_of_the_plain_measure():
    found = measure().overall
    for side, features in (("edited", EDITED), ("real", SAMPLE)):
        expected = precision_recall_density_coverage(REFERENCE, features)
        for name in ("precision", "density", "coverage"):
            assert getattr(getattr(found, name), side).estimate == pytest.approx(getattr(expected, name))
    assert found.density.ratio is not None
    assert found.density.ratio.estimate == found.density.edited.estimate / found.density.real.estimate
    assert found.density.ratio.high < 1  # the edits were drawn off the real distribution
    assert (found.n_edited, found.n_reference) == (60, 80)


def test_another_real_sample_is_as_real_and_itself_exactly():
    other = measure(edited=np.random.default_rng(9).normal(size=(60, 4))).overall
    for name in ("precision", "density", "coverage"):
        ratio = getattr(other, name).ratio
        assert ratio.low < 1 < ratio.high
    same = measure(edited=SAMPLE).overall.coverage.ratio
    assert same is not None and same.ci == (1.0, 1.0)  # coverage is paired on the references


def test_an_image_is_held_against_its_own_class():
    """Pictures of the other class are real pictures, but not of what they should show."""
    shift = np.arange(80)[:, None] % 2 * 50.0
    reference, sample = REFERENCE + shift, SAMPLE + shift[:60]
    crossed = SAMPLE + 50.0 - shift[:60]
    assert measure(crossed, sample, reference).overall.precision.edited.estimate > 0.9
    found = measure(crossed, sample, reference, **LABELS)
    assert found.overall.precision.edited.estimate == 0
    assert found.overall.precision.real.estimate > 0.9


def test_classes_add_up():
    found = measure(**LABELS, class_names=["calm", "glad"])
    assert list(found.per_class) == ["calm", "glad"]
    one = precision_recall_density_coverage(REFERENCE[1::2], EDITED[1::2])
    assert found.per_class["glad"].density.edited.estimate == pytest.approx(one.density)
    parts = [part.coverage.edited.estimate for part in found.per_class.values()]
    assert found.overall.coverage.edited.estimate == pytest.approx(np.mean(parts))  # of equal size here
    assert json.loads(json.dumps(found.to_dict()))["nearest_k"] == 5


def test_intervals_hold_their_estimate_and_are_reproducible():
    found = measure(**LABELS)
    assert found == measure(**LABELS) and found != measure(**LABELS, seed=1)
    for name in ("precision", "density", "coverage"):
        figure = getattr(found.overall, name)
        for interval in (figure.edited, figure.real, figure.ratio):
            assert interval.low <= interval.estimate <= interval.high and interval.low < interval.high


def test_a_class_that_cannot_be_measured_is_none_and_left_out():
    labels = LABELS | {"reference_labels": np.repeat([0, 1], [75, 5])}
    found = measure(**labels)
    assert found.per_class["1"] is None and found.per_class["0"] is not None
    assert found.overall == found.per_class["0"] and found.overall.n_edited == 30
    with pytest.raises(ValueError, match="no class"):
        measure(reference=REFERENCE[:5])


def test_no_ratio_to_nothing():
    found = measure(sample=SAMPLE + 100)
    assert found.overall.density.ratio is None and found.overall.density.real.estimate == 0


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="60 edited images, but 59"):
        measure(sample=SAMPLE[:59])
    with pytest.raises(ValueError, match="class '0'"):
        measure(**(LABELS | {"real_sample_labels": np.repeat([0, 1], [20, 40])}))
    with pytest.raises(ValueError, match="together"):
        measure(edited_labels=LABELS["edited_labels"])
    with pytest.raises(ValueError, match="reference: 80 images"):
        measure(**(LABELS | {"reference_labels": [0, 1]}))
    with pytest.raises(ValueError, match="edited: 1 of 60 rows"):
        measure(edited=np.where(np.arange(60)[:, None] == 2, np.nan, EDITED))
    with pytest.raises(ValueError, match="at least 1"):
        measure(nearest_k=0)


def test_matched_rows_are_disjoint_and_of_equal_size():
    edited, held_out = np.array([0] * 10 + [1] * 10 + [2] * 3), np.array([0] * 50 + [1] * 9 + [3] * 5)
    first, reference, sample = matched_rows(edited, held_out, seed=3)
    assert sorted([*reference, *sample]) == list(
        range(59)
    )  # every held-out image of a class that was edited, once
    for label, size in ((0, 10), (1, 4), (2, 0), (3, 0)):
        assert (edited[first] == label).sum() == (held_out[sample] == label).sum() == size
    assert (matched_rows(edited, held_out, seed=3)[2] == sample).all()
    assert (matched_rows(edited, held_out, seed=4)[2] != sample).any()
