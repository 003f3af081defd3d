"""Who judges identity in a repair: chosen, trained or looked up, and calibrated; and the head that holds edits back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from diffinf.classify.crossfit import write_material
from diffinf.classify.model import create_classifier, save_classifier, to_input
from diffinf.config import Identity
from diffinf.errors import UserError
from diffinf.features.calibration import IdentityCalibration, calibrate, sample_rows
from diffinf.features.distil import LEAST_IMAGES, HeadQuality, IdentityHead, distil_identity
from diffinf.features.dlib_faces import DlibFaces
from diffinf.features.persons import PersonEmbedder, hold_out_persons, train_identity
from diffinf.repair.batches import run_batches
from diffinf.stages.workspace import Ints, Strings, Workspace

Provider = Literal["persons", "dlib", "none"]
IDENTITY_SIZE = 64
LEAST_PERSONS = 4  # with two pictures or more: two to train on, two to calibrate on


@dataclass(frozen=True)
class IdentityJudge:
    """Who judges identity, and what it can teach.

    Attributes:
        provider: persons, dlib or none.
        persons_named: whether the dataset names enough persons, so that an autoencoder trained on it tells them apart.
        figures: for gate.json: judge, threshold (None: it found too few faces to judge), how that was calibrated, and
            the share of images on which the judge failed; None where nobody judges.
        rows: training samples (M,) that dlib found a face in.
        vectors: dlib's unit vectors (M, I) of these.
    """

    provider: Provider
    persons_named: bool = False
    figures: dict[str, Any] | None = None
    rows: Tensor | None = None
    vectors: Tensor | None = None

    @property
    def threshold(self) -> float | None:
        """Least cosine of the same person; None where identity is not judged."""
        return None if self.figures is None else self.figures["threshold"]

    @property
    def own_head(self) -> bool:
        """Whether the autoencoder's own head holds edits back: trained on these persons, unless weights were taken."""
        return self.provider != "none" and self.persons_named

    def distilled_head(self, codes: Tensor, seed: int) -> tuple[IdentityHead, HeadQuality] | None:
        """Teach a head on normalised codes (N, D) of the training samples what dlib sees.

        None where the autoencoder's own head serves, where dlib is not the judge, and where it found too few faces.
        """
        if self.own_head or self.rows is None or self.vectors is None or len(self.rows) < LEAST_IMAGES:
            return None
        return distil_identity(codes[self.rows], self.vectors, seed=seed)


def identity_provider(wanted: Identity, identities: Strings | None) -> Provider:
    """Return who judges identity, for the persons (N,) of the training samples as the dataset names them.

    Raises:
        UserError: who was asked for cannot judge here.
    """
    count = _persons_named(identities)
    if wanted == "dlib":
        DlibFaces()  # says what to do where it is not installed
        return "dlib"
    if wanted == "persons" and count < LEAST_PERSONS:
        raise UserError(
            f"repair.identity: persons: {count} persons are named in two training images or more, and at least "
            f"{LEAST_PERSONS} are needed; name their column (--identity), or choose auto, dlib or none"
        )
    return "persons" if wanted != "none" and count >= LEAST_PERSONS else "none"


def judge_identity(workspace: Workspace, scratch: Path) -> IdentityJudge:
    """Prepare the judge that the settings ask for; an embedder of persons stays in the run's repair/identity."""
    config = workspace.config.repair
    provider = identity_provider(config.identity, workspace.identities)
    if provider == "none":
        return IdentityJudge("none")
    persons = None
    if _persons_named(workspace.identities) >= LEAST_PERSONS:
        persons = np.unique(np.asarray(workspace.identities), return_inverse=True)[1]
    if provider == "dlib":
        return _dlib(workspace, scratch, persons)
    assert persons is not None, "identity_provider counted them"
    return _persons(workspace, scratch, persons)


def _persons_named(identities: Strings | None) -> int:
    """Count the persons with two pictures or more: a sample without a name goes by its id, which tells nothing."""
    if identities is None:
        return 0
    return int((np.unique(identities, return_counts=True)[1] >= 2).sum())


def _persons(workspace: Workspace, scratch: Path, persons: Ints) -> IdentityJudge:
    """Train an embedder on most persons (N,) and calibrate it on the others."""
    held_out, numbered = hold_out_persons(persons, 0.2, workspace.seed)
    images = workspace.images
    spec = replace(workspace.spec, num_classes=IDENTITY_SIZE, class_names=())
    settings = workspace.config.classifier
    network = train_identity(
        create_classifier(spec, workspace.seed + 2),
        images[~held_out],
        torch.from_numpy(numbered),
        to_input=to_input,
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        seed=workspace.seed + 2,
        device=workspace.device,
        checkpoint=scratch / "identity.checkpoint",
    )
    save_classifier(workspace.run.repair / "identity", network, spec)
    vectors, _ = PersonEmbedder(network, to_input, workspace.device).embed(images[held_out])
    quantile = workspace.config.repair.identity_quantile
    calibration = calibrate(vectors, persons[held_out], quantile)
    return IdentityJudge("persons", True, _figures("persons", calibration, quantile, "persons", 0.0))


def _dlib(workspace: Workspace, scratch: Path, persons: Ints | None) -> IdentityJudge:
    """Describe some training images by dlib and calibrate on them: on persons (N,) where they are known."""
    config, images = workspace.config.repair, workspace.images
    rows = sample_rows(len(images), config.distill_images, workspace.seed, persons)
    directory = scratch / "identity"
    write_material(directory / "material", images=images[rows])
    described = run_batches(
        "embed_job",
        directory,
        len(rows),
        config=config,
        device=torch.device("cpu"),  # dlib's wheels know nothing else
        workers=workspace.config.compare.workers,
        description="describe faces by dlib",
        settings={"judge": "dlib"},
    )
    found = described["found"]
    failed = 1 - float(found.float().mean())
    rows, vectors = rows[found], described["vectors"][found]
    who = np.arange(len(rows)) if persons is None else persons[rows.numpy()]
    basis = "images" if persons is None else "persons"
    calibration = calibrate(vectors, who, config.identity_quantile, most=len(rows))
    figures = _figures("dlib", calibration, config.identity_quantile, basis, failed)
    if len(rows) < LEAST_IMAGES:
        figures["threshold"] = None
    return IdentityJudge("dlib", persons is not None, figures, rows, vectors)


def _figures(
    judge: Provider, calibration: IdentityCalibration, quantile: float, basis: str, failed: float
) -> dict[str, Any]:
    """Put together what gate.json says; `basis`: whether the pairs were of different persons or images."""
    return {
        "judge": judge,
        "calibrated_on": f"pairs of different {basis}",
        "quantile": quantile,
        "failed": failed,
        **asdict(calibration),
    }
