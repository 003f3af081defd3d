"""dlib's detector of frontal faces, for crops: the optional extra `face`.

Histograms of oriented gradients and a linear classifier; about .03 s a picture of 600 x 600 pixels on one core. It
finds faces that look towards the camera, from about 80 pixels on, turned in the picture by up to about 30 degrees.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from importlib.metadata import version

import numpy as np
from PIL import Image

from diffinf.data.crop import Face
from diffinf.features.dlib_faces import SIDE, finders, weights_folder

LONGEST = 1200  # pixels of a side that are searched: faces that fill less than a fifteenth of it are not seen


@dataclass(frozen=True)
class DlibDetector:
    """Finds faces whose score reaches a threshold, and five landmarks of each.

    Landmarks are, as in dlib, the outer and inner corner of the eye at the right of the picture, those of the other
    eye, and the base of the nose. dlib works outside the interpreter's lock, so threads run side by side.
    """

    threshold: float = 0.0
    _own: threading.local = field(default_factory=threading.local, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raise UserError where the extra is missing."""
        weights_folder("crop: dlib's face detector", "")

    @property
    def name(self) -> str:
        """Name, version and threshold."""
        return f"dlib {version('dlib-bin')} (HOG, score >= {self.threshold:g})"

    def detect(self, image: Image.Image) -> list[Face]:
        """Return all faces in an upright "L" or "RGB" picture."""
        if not hasattr(self._own, "finders"):
            self._own.finders = finders()
        detector, landmarks = self._own.finders
        # Small pictures are enlarged to a face chip's side; a strip must not become a giant by that.
        scale = min(max(1.0, SIDE / min(image.size)), LONGEST / max(image.size))
        width, height = (max(1, round(scale * side)) for side in image.size)
        searched = image if (width, height) == image.size else image.resize((width, height), reducing_gap=3.0)
        pixels = np.ascontiguousarray(np.asarray(searched.convert("RGB")))
        x, y = image.width / width, image.height / height
        rectangles, scores, _ = detector.run(pixels, 0, self.threshold)
        faces = []
        for rectangle, score in zip(rectangles, scores, strict=True):
            parts = landmarks(pixels, rectangle).parts()
            points = [((part.x + 0.5) * x, (part.y + 0.5) * y) for part in parts]
            eyes = [tuple(np.mean(points[k : k + 2], axis=0).tolist()) for k in (0, 2)]
            box = (
                rectangle.left() * x,
                rectangle.top() * y,
                (rectangle.right() + 1) * x,
                (rectangle.bottom() + 1) * y,
            )
            faces.append(Face(box, float(score), (eyes[0], eyes[1]), tuple(points)))
        return faces
