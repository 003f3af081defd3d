"""Identity by dlib's face recogniser, a ResNet with 128 outputs: the optional extra `face`.

It is not differentiable and takes about .06 to .16 s a face on one core. The package that carries its weights imports
pkg_resources, which newer setuptools no longer has, so only its folder is looked up.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from diffinf.errors import UserError

SIZE = 128
SECONDS = 0.16  # an image, one core
SIDE = 150  # pixels that smaller pictures are brought to: the side of dlib's own face chips
# On tight grey crops of 48 px, brought to SIDE, the detector's own threshold of 0 finds .70 of the faces and
# .01 of the same faces upside down; this one .83 and .05, and .007 of faces cut to pieces (n = 300).
DETECTION_THRESHOLD = -0.3
_WEIGHTS = ("shape_predictor_5_face_landmarks.dat", "dlib_face_recognition_resnet_model_v1.dat")

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class DlibFaces:
    """dlib's descriptors of the face that its detector is surest of in each image."""

    name: str = "dlib"
    judges_identity: bool = True

    def __post_init__(self) -> None:
        """Raise UserError where the extra is missing."""
        weights_folder()

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit vectors (N, 128) of uint8 images (N, C, H, W), and where a face was found, (N,)."""
        pictures = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        rows = [_described(picture.tobytes(), picture.shape) for picture in pictures]
        found = torch.tensor([row is not None for row in rows], dtype=torch.bool)
        nothing = np.zeros(SIZE, dtype=np.float32)
        vectors = np.array([nothing if row is None else row for row in rows], dtype=np.float32)
        return torch.from_numpy(vectors.reshape(-1, SIZE)), found


def weights_folder(
    wanted_by: str = "repair.identity: dlib's face recogniser",
    instead: str = ", or choose auto, persons or none",
) -> Path:
    """Return the folder of dlib's weights; the arguments go into the message of the error.

    Raises:
        UserError: the extra `face` is not installed, or not whole.
    """
    models = find_spec("face_recognition_models")
    folder = (
        None
        if models is None or not models.submodule_search_locations
        else Path(models.submodule_search_locations[0]) / "models"
    )
    if folder is None or find_spec("dlib") is None or not all((folder / name).is_file() for name in _WEIGHTS):
        raise UserError(
            f'{wanted_by} is not installed here; install it with `pip install "diffinf[face]"`{instead}'
        )
    return folder


@cache
def _models() -> tuple[Any, Any, Any]:
    """Detector, landmarks and recogniser of this process."""
    import dlib

    return *finders(), dlib.face_recognition_model_v1(str(weights_folder() / _WEIGHTS[1]))


def finders() -> tuple[Any, Any]:
    """Return a new detector and a new predictor of five landmarks; each serves one thread."""
    import dlib

    return dlib.get_frontal_face_detector(), dlib.shape_predictor(str(weights_folder() / _WEIGHTS[0]))


@lru_cache(maxsize=512)  # originals are compared with one attempt after another
def _described(pixels: bytes, shape: tuple[int, int, int]) -> npt.NDArray[np.float32] | None:
    """Return the unit vector (128,) of an image (H, W, C) as bytes; None where no face is found."""
    picture = prepared(np.frombuffer(pixels, dtype=np.uint8).reshape(shape))
    rectangle = detected(picture)
    return None if rectangle is None else described(picture, rectangle)


def prepared(picture: Picture) -> Picture:
    """Return a picture (H, W, 1 or 3) as RGB whose shorter side has at least SIDE pixels."""
    image = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).convert("RGB")
    scale = SIDE / min(image.size)
    if scale > 1:
        width, height = (round(scale * side) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image))


def detected(picture: Picture) -> Any | None:
    """Return dlib's rectangle of the face it is surest of in RGB (H, W, 3); None where it finds none."""
    rectangles, scores, _ = _models()[0].run(picture, 0, DETECTION_THRESHOLD)
    return rectangles[int(np.argmax(scores))] if len(rectangles) else None


def described(picture: Picture, rectangle: Any) -> npt.NDArray[np.float32]:
    """Return the unit vector (128,) of the face in a rectangle of RGB (H, W, 3), aligned by its eyes and nose."""
    _, landmarks, recogniser = _models()
    vector = np.array(recogniser.compute_face_descriptor(picture, landmarks(picture, rectangle)))
    unit: npt.NDArray[np.float32] = (vector / np.linalg.norm(vector)).astype(np.float32)
    return unit
