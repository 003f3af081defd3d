"""dlib as a detector of faces: boxes and landmarks in the picture's own pixels, and that it is missed in words."""

from __future__ import annotations

import math
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from diffinf.data.crop.geometry import cut_out, square_around
from diffinf.errors import UserError
from diffinf.features import dlib_faces
from diffinf.features.dlib_detector import LONGEST, DlibDetector
from faces import drawn_face

installed = pytest.mark.skipif(
    find_spec("dlib") is None or find_spec("face_recognition_models") is None,
    reason='the extra is not installed: pip install "diffinf[face]"',
)


def photograph(width: int, height: int, left: int, top: int, side: int) -> Image.Image:
    """A drawn face of `side` pixels somewhere on a grey ground."""
    image = Image.new("L", (width, height), 70)
    image.paste(Image.fromarray(drawn_face(size=side)[0].numpy()), (left, top))
    return image


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dlib_faces, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r'crop: dlib.*pip install "diffinf\[face\]"`$'):
        DlibDetector()


@installed
@pytest.mark.parametrize(
    ("width", "height", "left", "top", "side"),
    [(640, 480, 300, 100, 240), (3000, 2500, 400, 900, 800), (64, 64, 0, 0, 64)],
)
def test_box_and_landmarks_are_in_pixels_of_the_picture(
    width: int, height: int, left: int, top: int, side: int
) -> None:
    assert LONGEST < 3000  # one picture is shrunk for the search, one enlarged
    faces = DlibDetector().detect(photograph(width, height, left, top, side))
    assert len(faces) == 1 and len(faces[0].landmarks) == 5 and faces[0].score >= 0
    # Where the face was drawn: eyes at 140 and 244 of 384, 163 below the upper edge.
    scale = side / 384
    for (x, y), across in zip(sorted(faces[0].eyes), (140, 244), strict=True):
        assert x == pytest.approx(left + across * scale, abs=0.08 * side)
        assert y == pytest.approx(top + 163 * scale, abs=0.08 * side)
    x0, y0, x1, y1 = faces[0].box
    assert x0 < left + 140 * scale < left + 244 * scale < x1 and y0 < top + 163 * scale < y1


@installed
def test_a_turned_face_is_level_when_aligned() -> None:
    upright = photograph(500, 500, 130, 130, 240)
    detector = DlibDetector()

    def slope(image: Image.Image) -> float:
        (face,) = detector.detect(image)
        (x0, y0), (x1, y1) = sorted(face.eyes)
        return math.degrees(math.atan2(y1 - y0, x1 - x0))

    turned = upright.rotate(-15, Image.Resampling.BICUBIC, fillcolor=70)  # clockwise
    assert slope(turned) == pytest.approx(15, abs=6)
    (face,) = detector.detect(turned)
    assert abs(slope(cut_out(turned, square_around(face, 0.5, align=True), 256))) < 4


@installed
def test_no_face_in_noise_or_strips() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3)).astype(np.uint8)
    for image in (Image.fromarray(noise), Image.new("L", (1, 5000)), Image.new("RGB", (5000, 2))):
        assert DlibDetector().detect(image) == []
    assert DlibDetector(-0.3).name != DlibDetector().name
