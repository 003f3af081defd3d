"""The renderer: determinism, and that each factor moves what it should and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffinf.data.rendered import (
    FACTORS,
    FaceFactors,
    class_names,
    counterfactual,
    factor_names,
    plain_faces,
    render_faces,
    sample_faces,
    sample_identities,
    true_labels,
    write_contact_sheet,
)
from diffinf.data.rendered.tasks import AGE_EDGES, CLASS_NAMES, Task

TASKS = tuple(CLASS_NAMES)
seeds = st.integers(0, 2**20)


def faces(n: int = 24, seed: int = 0, task: Task = "expression") -> FaceFactors:
    return sample_faces(n, seed, task, identities=n)[0]


@pytest.mark.parametrize("size", [32, 48, 64, 128])
def test_pictures_are_rgb_of_the_asked_size_and_not_empty(size: int) -> None:
    pictures = render_faces(faces(6), size)
    assert pictures.shape == (6, 3, size, size)
    assert pictures.dtype == np.uint8
    assert (pictures.std(axis=(1, 2, 3)) > 15).all()


@given(seed=seeds, size=st.sampled_from([24, 32, 64, 96]), task=st.sampled_from(TASKS))
@settings(max_examples=10, deadline=None)
def test_a_picture_depends_on_its_own_factors_alone(seed: int, size: int, task: Task) -> None:
    sample = faces(12, seed, task)
    together = render_faces(sample, size)
    alone = np.concatenate([render_faces(sample.take([row]), size) for row in range(12)])
    backwards = render_faces(sample.take(slice(None, None, -1)), size)[::-1]
    for other in (alone, backwards):
        # Sums over arrays of another shape may round otherwise: a grey level, in very few places.
        difference = np.abs(together.astype(int) - other.astype(int))
        assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


@given(values=st.fixed_dictionaries({n: st.sampled_from([f.low, f.high]) for n, f in FACTORS.items()}))
@settings(max_examples=60, deadline=None)
def test_the_ends_of_all_ranges_can_be_drawn(values: dict[str, float]) -> None:
    with np.errstate(all="raise", under="ignore"):
        picture = render_faces(plain_faces(1, **values), 48)
    assert picture.max() > 0


@pytest.mark.parametrize("name", [name for name in FACTORS if name != "noise_seed"])
def test_every_factor_shows(name: str) -> None:
    context = {"light_strength": 0.8, "age": 50, "hair_volume": 0.6, "background_colour": 1, "glasses": 1}
    factor = FACTORS[name]
    steps = np.linspace(factor.low, factor.high, 4)[:3]  # hues and angles come round to where they began
    pictures = render_faces(plain_faces(3, **{**context, name: steps}), 64).astype(int)
    assert np.ptp(pictures, axis=0).max() > 5


@given(seed=seeds, task=st.sampled_from(TASKS), target=st.integers(0, 4))
@settings(max_examples=20, deadline=None)
def test_counterfactual_moves_the_attribute_only(seed: int, task: Task, target: int) -> None:
    sample = faces(12, seed, task)
    moved = counterfactual(sample, target, task)
    assert (true_labels(moved, task) == target).all()
    for name in factor_names("identity") + factor_names("nuisance"):
        np.testing.assert_array_equal(getattr(moved, name), getattr(sample, name))
    already = true_labels(sample, task) == target
    np.testing.assert_array_equal(
        render_faces(moved, 32)[already],
        render_faces(sample, 32)[already],
        err_msg="a fitting face was moved",
    )


@given(seed=seeds, target=st.integers(0, 4))
@settings(max_examples=10, deadline=None)
def test_an_expression_leaves_the_background_and_the_noise_alone(seed: int, target: int) -> None:
    sample = faces(16, seed)
    before = render_faces(sample, 64)
    after = render_faces(counterfactual(sample, target, "expression"), 64)
    corner = np.s_[:, :, :8, :3], np.s_[:, :, :8, -3:], np.s_[:, :, 30:40, :2]
    for place in corner:
        np.testing.assert_array_equal(before[place], after[place])
    moved = true_labels(sample, "expression") != target
    assert (np.abs(before.astype(int) - after).max(axis=(1, 2, 3))[moved] > 30).all()


def test_counterfactual_keeps_the_place_within_the_age_group() -> None:
    middle = plain_faces(1, age=(AGE_EDGES[2] + AGE_EDGES[3]) / 2)
    older = counterfactual(middle, 4, "age")
    assert older.age[0] == pytest.approx((AGE_EDGES[4] + AGE_EDGES[5]) / 2)


def test_noise_is_a_separable_last_step() -> None:
    sample = faces(8).replace(noise=6.0)
    noisy, clean = render_faces(sample, 64).astype(int), render_faces(sample, 64, noise=False).astype(int)
    inner = (clean > 30) & (clean < 225)
    grain = (noisy - clean)[inner]
    assert grain.std() == pytest.approx(6.0, rel=0.05)
    assert abs(grain.mean()) < 0.2
    other = render_faces(sample.replace(noise_seed=np.arange(8) + 1), 64)
    assert (other != noisy).any()
    np.testing.assert_array_equal(render_faces(sample.replace(noise=0), 64), clean)


def test_light_from_the_left_lights_the_left() -> None:
    left, right = render_faces(plain_faces(2, light_azimuth=[-60, 60], light_strength=0.9), 64).mean(axis=1)
    cheek = np.s_[36:44, 18:26], np.s_[36:44, 38:46]
    assert left[cheek[0]].mean() > left[cheek[1]].mean() + 30
    # Left and right are mirror images, but for the part of the hair.
    assert np.abs(left[:, ::-1] - right)[30:50, 20:44].mean() < 3


def test_size_does_not_change_the_scene() -> None:
    sample = faces(8).replace(noise=0)
    small = render_faces(sample, 48).astype(float)
    large = render_faces(sample, 96).astype(float).reshape(8, 3, 48, 2, 48, 2).mean(axis=(3, 5))
    assert np.abs(small - large).mean() < 4


@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_similarity_pulls_people_together(seed: int) -> None:
    varied, alike = sample_identities(50, seed), sample_identities(50, seed, similarity=0.8)
    for name in factor_names("identity"):
        spread, pulled = getattr(varied, name).std(), getattr(alike, name).std()
        assert pulled <= 0.35 * spread + 1e-6, name


@pytest.mark.parametrize("task", TASKS)
def test_classes_are_balanced_and_factors_in_range(task: Task) -> None:
    sample, who = sample_faces(1000, 3, task, identities=100)
    assert (np.bincount(who, minlength=100) == 10).all()
    shares = np.bincount(true_labels(sample, task), minlength=len(class_names(task))) / 1000
    assert shares.min() > 0.15
    for name, factor in FACTORS.items():
        values = getattr(sample, name)
        assert factor.low <= values.min() <= values.max() <= factor.high, name
    if task == "expression":
        one = sample.take(who == 7)
        for name in factor_names("identity"):
            assert np.ptp(getattr(one, name)) == 0
        assert np.ptp(one.age) < 12


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="size"):
        render_faces(plain_faces(1), 8)
    with pytest.raises(ValueError, match="unknown factors"):
        plain_faces(1, moustache=1)
    with pytest.raises(ValueError, match="same shape"):
        FaceFactors(**{**plain_faces(2).as_columns(), "age": np.zeros(3)})
    with pytest.raises(ValueError, match="class_index"):
        counterfactual(plain_faces(1), 5, "age")
    with pytest.raises(ValueError, match="unknown task"):
        class_names("smell")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="identities"):
        sample_faces(3, 0, "age", identities=4)
    with pytest.raises(ValueError, match="similarity"):
        sample_identities(3, 0, similarity=1.0)


def test_no_faces_is_no_pictures() -> None:
    assert render_faces(plain_faces(0), 32).shape == (0, 3, 32, 32)


def test_contact_sheet(tmp_path: Path) -> None:
    path = write_contact_sheet(tmp_path / "sheet.png", size=32, samples=1)
    with Image.open(path) as sheet:
        assert sheet.height == 9 * 32
