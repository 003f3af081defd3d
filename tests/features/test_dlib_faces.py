"""dlib as a judge: what is a face to it, what it says without one, and that it is missed in words."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from diffinf.errors import UserError
from diffinf.features import dlib_faces
from diffinf.features.dlib_faces import SIDE, SIZE, DlibFaces, described, detected, prepared
from diffinf.features.interface import similarity
from faces import drawn_face

installed = pytest.mark.skipif(
    find_spec("dlib") is None or find_spec("face_recognition_models") is None,
    reason='the extra is not installed: pip install "diffinf[face]"',
)


@pytest.mark.parametrize("missing", ["dlib", "face_recognition_models"])
def test_without_the_extra_it_says_what_to_install(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there: Any = SimpleNamespace(submodule_search_locations=["/nowhere"])
    monkeypatch.setattr(dlib_faces, "find_spec", lambda name: None if name == missing else there)
    with pytest.raises(UserError, match=r'pip install "diffinf\[face\]"'):
        DlibFaces()


def test_weights_that_are_not_whole_are_as_good_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: Any = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(dlib_faces, "find_spec", lambda _: there)
    with pytest.raises(UserError, match="not installed"):
        DlibFaces()


@pytest.mark.parametrize(("shape", "size"), [((48, 48, 1), (150, 150)), ((60, 30, 3), (300, 150))])
def test_small_pictures_are_brought_to_the_side_of_a_face_chip(
    shape: tuple[int, int, int], size: tuple[int, int]
) -> None:
    picture = prepared(np.full(shape, 77, dtype=np.uint8))
    assert picture.shape == (*size, 3) and min(picture.shape[:2]) == SIDE
    assert (picture == 77).all()


def test_large_pictures_stay_as_they_are() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (SIDE + 9, SIDE, 3)).astype(np.uint8)
    assert np.array_equal(prepared(picture), picture)


@installed
def test_where_there_is_no_face_nothing_is_described() -> None:
    images = torch.full((2, 1, 32, 32), 90, dtype=torch.uint8)
    vectors, found = DlibFaces().embed(images)
    assert vectors.shape == (2, SIZE) and vectors.dtype == torch.float32 and not vectors.any()
    assert found.tolist() == [False, False]
    alike = similarity(DlibFaces(), images, images)
    assert alike.cosine.isnan().all() and not alike.before.any()
    vectors, found = DlibFaces().embed(images[:0])
    assert vectors.shape == (0, SIZE) and found.shape == (0,)


@installed
def test_a_rectangle_is_described_by_a_unit_vector_that_follows_the_picture() -> None:
    import dlib

    rng = np.random.default_rng(0)
    pictures = [prepared(rng.integers(0, 256, (12, 12, 1)).astype(np.uint8)) for _ in range(2)]
    whole = dlib.rectangle(0, 0, SIDE - 1, SIDE - 1)
    first, again, other = (described(pictures[k], whole) for k in (0, 0, 1))
    assert first.shape == (SIZE,) and np.linalg.norm(first) == pytest.approx(1, abs=1e-5)
    assert np.array_equal(first, again) and first @ other < 0.999


@installed
@pytest.mark.parametrize("channels", [1, 3])
def test_a_face_is_found_and_is_most_like_itself(channels: int) -> None:
    faces = torch.stack([drawn_face(brow, channels) for brow in (0, 4)])
    assert detected(prepared(faces[0].permute(1, 2, 0).numpy())) is not None
    vectors, found = DlibFaces().embed(faces)
    assert found.all()
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    darker = (0.9 * faces.float()).to(torch.uint8)
    same = similarity(DlibFaces(), faces, darker).cosine
    assert (same > (vectors[0] @ vectors[1])).all()


@installed
def test_an_edit_without_a_face_cannot_be_compared() -> None:
    face = drawn_face(0, 1)[None]
    alike = similarity(DlibFaces(), face, torch.full_like(face, 90))
    assert alike.cosine.isnan().all() and alike.before.all() and not alike.after.any()
