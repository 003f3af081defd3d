"""What the benchmark of generation is made of: rendered people, networks that judge, the measures of an arm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from diffinf.classify.model import SMALL_CNN, ClassifierSpec, create_classifier, predict, to_input
from diffinf.classify.train import train_classifier
from diffinf.config import ClassifierConfig
from diffinf.data.rendered import factor_names, render_faces, sample_faces
from diffinf.evaluate.fidelity import frechet_distance
from diffinf.evaluate.rca import relative_classification_accuracy
from diffinf.evaluate.separability import identity_separability
from diffinf.features.persons import PersonEmbedder, train_identity
from diffinf.files import atomic_path, load_tensors, save_tensors
from diffinf.training.loop import batch_indices, fit, seeded, step_generator, warmup_cosine
from repair_measures import READABLE, r_squared

EMBEDDING = 64
CPU = torch.device("cpu")
NUISANCE = tuple(name for name in factor_names("nuisance") if name not in ("noise", "noise_seed"))
EXTRACTOR = f"penultimate features of the RCA oracle, a {SMALL_CNN} trained on held-out people"


@dataclass(frozen=True)
class Scale:
    """How large the benchmark is; everything that is cached depends on it."""

    size: int = 32
    people: int = 2000  # that the generator and the contexts' embedder are trained on
    pictures: int = 20  # of each
    judge_people: int = 300  # that the judge alone is trained on
    held_people: int = 50  # whose contexts are generated from
    context_pictures: int = 20
    oracle_pictures: int = 60
    real_pictures: int = 16
    similarity: float = 0.5  # of everybody: look-alikes
    embedder_steps: int = 2500
    oracle_steps: int = 1500
    regressor_steps: int = 1200
    steps: int = 5000  # of the generator
    known_pictures: int = 80  # of the held-out people, for the generator that knows them
    known_steps: int = 2000  # of that generator; 0: it is left out
    per_context: int = 16
    sampling_steps: int = 20
    seed: int = 0


class Judge(nn.Module):
    """Another architecture than the contexts' embedder: depthwise 5x5 convolutions, group norm, GELU."""

    def __init__(self, size: int = EMBEDDING) -> None:
        """Build it untrained."""
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 32, 4, stride=2, padding=1)]
        for before, after in ((32, 64), (64, 96), (96, 128)):
            layers += [
                nn.Conv2d(before, before, 5, padding=2, groups=before),
                nn.GroupNorm(8, before),
                nn.Conv2d(before, 2 * after, 1),
                nn.GELU(),
                nn.Conv2d(2 * after, after, 1),
                nn.AvgPool2d(2) if before < 96 else nn.Identity(),
            ]
        self.body = nn.Sequential(*layers, nn.GroupNorm(8, 128), nn.Flatten(), nn.LazyLinear(size))

    def forward(self, x: Tensor) -> Tensor:
        """Return vectors (B, D) of images (B, 3, H, W) in [-1, 1]."""
        vectors: Tensor = self.body(x)
        return vectors


def cached(path: Path, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of a file, which is computed and written whole where it is not there."""
    if not path.exists():
        save_tensors(path, compute())
    return load_tensors(path)


def render(people: int, pictures: int, seed: int, scale: Scale) -> dict[str, Tensor]:
    """Render so many pictures of so many look-alikes: images (N, 3, H, W), who (N,), nuisance factors (N, F)."""
    factors, who = sample_faces(
        people * pictures, seed, "expression", identities=people, similarity=scale.similarity
    )
    nuisance = np.stack([getattr(factors, name) for name in NUISANCE], axis=1).astype(np.float32)
    images = torch.from_numpy(render_faces(factors, scale.size))
    return {"images": images, "who": torch.from_numpy(who), "nuisance": torch.from_numpy(nuisance)}


def parts_of(faces: dict[str, Tensor], counts: list[int]) -> list[dict[str, Tensor]]:
    """Split the pictures of each person into parts of so many a person, in their order."""
    order = torch.argsort(faces["who"], stable=True).view(int(faces["who"].max()) + 1, -1)
    return [
        {name: values[rows.flatten()] for name, values in faces.items()}
        for rows in torch.split(order[:, : sum(counts)], counts, dim=1)
    ]


def train_embedder(
    network: nn.Module, faces: dict[str, Tensor], scale: Scale, seed: int, path: Path
) -> PersonEmbedder:
    """Train an embedder by a margin softmax, or read it from `path`."""
    with torch.no_grad():
        network(to_input(faces["images"][:2], CPU))  # gives lazy layers their shape

    def work() -> dict[str, Tensor]:
        return train_identity(
            network,
            faces["images"],
            faces["who"],
            to_input=to_input,
            steps=scale.embedder_steps,
            batch_size=64,
            learning_rate=2e-3,
            seed=seed,
            device=CPU,
            checkpoint=path.with_suffix(".checkpoint"),
        ).state_dict()

    network.load_state_dict(cached(path, work))
    path.with_suffix(".checkpoint").unlink(missing_ok=True)
    return PersonEmbedder(network.eval().requires_grad_(False), to_input, CPU)


def contexts_embedder(faces: dict[str, Tensor], scale: Scale, path: Path) -> PersonEmbedder:
    """The embedder that makes the contexts."""
    spec = ClassifierSpec(SMALL_CNN, EMBEDDING, 3, scale.size)
    return train_embedder(create_classifier(spec, scale.seed), faces, scale, scale.seed, path)


def judge_embedder(faces: dict[str, Tensor], scale: Scale, path: Path) -> PersonEmbedder:
    """The embedder that judges: another architecture, seed and people."""
    with seeded(scale.seed + 100):
        network = Judge()
        network(torch.zeros(2, 3, scale.size, scale.size))
    return train_embedder(network, faces, scale, scale.seed + 100, path)


def train_oracle(faces: dict[str, Tensor], scale: Scale, directory: Path) -> nn.Module:
    """The classifier of the held-out people, trained on pictures that nothing else sees."""
    spec = ClassifierSpec(SMALL_CNN, scale.held_people, 3, scale.size)
    config = ClassifierConfig(steps=scale.oracle_steps)
    return train_classifier(
        faces["images"],
        faces["who"],
        spec=spec,
        config=config,
        seed=scale.seed + 200,
        directory=directory,
        record=False,
    )


class Regressor:
    """Reads nuisance factors in pictures, in standard units of renders; trained on the truth."""

    def __init__(self, faces: dict[str, Tensor], held: dict[str, Tensor], scale: Scale, path: Path) -> None:
        """Train it on `faces`, or read it from `path`; see on `held` which factors it can read."""
        values = faces["nuisance"]
        self.mean, self.std = values.mean(0), values.std(0).clamp_min(1e-6)
        spec = ClassifierSpec(SMALL_CNN, len(NUISANCE), 3, scale.size)
        self.network = create_classifier(spec, scale.seed + 300)
        self.network.load_state_dict(cached(path, lambda: self._train(faces, scale, path)))
        self.network.eval()
        truth = ((held["nuisance"] - self.mean) / self.std).double().numpy()
        self.quality = r_squared(truth, self.read(held["images"]))
        self.readable = self.quality >= READABLE

    def _train(self, faces: dict[str, Tensor], scale: Scale, path: Path) -> dict[str, Tensor]:
        images, targets = faces["images"], (faces["nuisance"] - self.mean) / self.std
        network = self.network.train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01)

        def step(index: int) -> dict[str, float]:
            rows = batch_indices(len(images), 64, scale.seed + 300, index)
            with seeded(int(step_generator(scale.seed, "regressor", index).initial_seed())):
                loss = F.mse_loss(network(to_input(images[rows], CPU)), targets[rows])
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * warmup_cosine(index, scale.regressor_steps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            return {"loss": loss.item()}

        checkpoint = path.with_suffix(".checkpoint")
        state: dict[str, Any] = {"network": network, "optimizer": optimizer}
        fit(step, steps=scale.regressor_steps, state=state, checkpoint=checkpoint, description="factors")
        checkpoint.unlink(missing_ok=True)
        return network.state_dict()

    def read(self, images: Tensor) -> npt.NDArray[Any]:
        """Return the factors (N, F) read in uint8 images (N, 3, H, W)."""
        return predict(self.network, images, device=CPU)[1].double().numpy()

    def spread(self, images: Tensor, who: Tensor) -> npt.NDArray[Any]:
        """Return the standard deviation of each factor (F,) within identities, over all of them."""
        values, names = self.read(images), who.numpy()
        within = [values[names == name].var(axis=0, ddof=1) for name in np.unique(names)]
        return np.sqrt(np.mean(within, axis=0))


@dataclass(frozen=True)
class Measures:
    """What judges an arm; nothing here had a part in making its pictures."""

    judge: PersonEmbedder
    oracle: nn.Module
    regressor: Regressor
    real: dict[str, Tensor]

    def of(self, images: Tensor, who: Tensor) -> dict[str, Any]:
        """Measure pictures (N, 3, H, W) that are to show the held-out people `who` (N,)."""
        identity = identity_separability(self.judge.embed(images)[0].numpy(), who.numpy())
        features, logits = predict(self.oracle, images, device=CPU)
        real_features, real_logits = predict(self.oracle, self.real["images"], device=CPU)
        names = [f"{row:03d}" for row in range(int(self.real["who"].max()) + 1)]
        accuracy = relative_classification_accuracy(
            logits.argmax(1).numpy(),
            who.numpy(),
            real_logits.argmax(1).numpy(),
            self.real["who"].numpy(),
            class_names=names,
        ).to_dict()
        fidelity = frechet_distance(real_features.numpy(), features.numpy(), allow_singular=True)
        return {
            "n": len(images),
            "fdr": identity.separability.fdr,
            "eer": identity.separability.eer,
            "genuine_mean": identity.separability.genuine_mean,
            "impostor_mean": identity.separability.impostor_mean,
            "diversity": identity.diversity,
            "rca": accuracy["rca"],
            "generated_accuracy": accuracy["generated_accuracy"],
            "oracle_accuracy": accuracy["real_accuracy"],
            "frechet": fidelity.distance,
            "nuisance_spread": self.regressor.spread(images, who)[self.regressor.readable].tolist(),
        }


def draw_people(arms: dict[str, Tensor], held: int, path: Path, people: int = 6, pictures: int = 3) -> None:
    """Draw pictures (N, 3, H, W) of some arms side by side as a PNG; a row a person, the first ones, not chosen."""
    blocks = []
    for images in arms.values():
        some = images.view(held, -1, *images.shape[1:])[:people, :pictures]
        blocks.append(
            F.pad(some.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1), (0, 0, 0, 12), value=255)
        )
    sheet = torch.cat(blocks, dim=1)
    sheet = sheet.repeat_interleave(2, 0).repeat_interleave(2, 1)
    with atomic_path(path) as partial:
        Image.fromarray(sheet.numpy()).save(partial, format="PNG")
