"""What a run will cost: some steps of each kind of work are timed here and now, times those there will be."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from diffinf.classify.methods import COST
from diffinf.classify.model import ClassifierSpec, create_classifier, to_input
from diffinf.classify.train import train_classifier
from diffinf.config import RunConfig, split_arm
from diffinf.data.dataset import FaceDataset, open_dataset
from diffinf.diffusion.diffae.autoencoder import DatasetHeads, DiffAE, check_images, is_imported, read_config
from diffinf.diffusion.familiarity import LOOKS, denoising_errors
from diffinf.features.dlib_faces import SECONDS
from diffinf.influence.ghost import squared_gradient_norms
from diffinf.progress import silenced
from diffinf.stages.identifying import identity_provider
from diffinf.stages.workspace import resolve_device
from diffinf.training.loop import worker_count

if TYPE_CHECKING:
    from diffinf.diffusion.autoencoder import DiffusionAutoencoder
    from diffinf.diffusion.interface import Autoencoder

_TIMED_STEPS = 6
# Fast steps are timed this long: few of them say little on a busy machine.
_TIMED_SECONDS, _MOST_STEPS = 0.5, 100
_UNWATCHED: dict[str, Any] = {"validation_share": 0.0, "sheets": 0, "tracker": "none"}  # counted apart
_FORWARD_SHARE = 1 / 3  # of a training step: the backward pass costs about two forward ones
_TIMED_DIFFUSION_STEPS = 2  # of an imported network on a CPU, where one takes a second an image


def estimate_costs(config: RunConfig, until: str = "report") -> list[dict[str, Any]]:
    """Estimate the seconds of each stage up to `until` on this machine, by timing some steps of each.

    Returns:
        One dict a stage: stage, work (in words), seconds. Stages that a run has done already are counted too.

    Raises:
        UserError: the dataset or the settings cannot be used.
    """
    dataset = open_dataset(config.dataset, config.data, seed=config.seed)
    timing = _Timing(config, dataset)
    costs: list[dict[str, Any]] = []
    for stage, rows in timing.stages().items():
        costs += [{"stage": stage, "work": work, "seconds": round(seconds, 1)} for work, seconds in rows()]
        if stage == until:
            break
    return costs


Rows = list[tuple[str, float]]


class _Timing:
    """Times one step of each kind of work on pictures of the run's size."""

    def __init__(self, config: RunConfig, dataset: FaceDataset) -> None:
        self.config, self.dataset = config, dataset
        self._steps: dict[int | None, float] = {}
        self.device = resolve_device(config.device)
        self.n = len(dataset.rows("train"))
        weights = config.autoencoder.weights
        self.imported = weights if isinstance(weights, Path) and is_imported(weights) else None
        if self.imported is not None:
            shape = (dataset.channels, dataset.image_size, dataset.image_size)
            check_images(read_config(self.imported), shape)
        self.workers = worker_count(config.compare.workers) if self.device.type == "cpu" else 1
        self.spec = ClassifierSpec(
            name=config.classifier.name,
            num_classes=len(dataset.class_names),
            in_channels=dataset.channels,
            image_size=dataset.image_size,
            class_names=dataset.class_names,
        )

    def stages(self) -> dict[str, Callable[[], Rows]]:
        return {
            "train": self.train,
            "score": self.score,
            "train-autoencoder": self.autoencoder,
            "repair": self.repair,
            "compare": self.compare,
        }

    def train(self) -> Rows:
        if self.config.classifier.checkpoint is not None:
            return [("your classifier: nothing to train", 0.0)]
        steps = self.config.classifier.steps
        return [(f"{steps} steps of {self.spec.name}", steps * self._step(threads=torch.get_num_threads()))]

    def score(self) -> Rows:
        config = self.config.classifier
        one = config.steps * self._step(threads=1 if self.device.type == "cpu" else None)
        passes = 1 if config.checkpoint is not None else config.checkpoints
        gradients = passes * self.n * self._gradient()
        folds = f"{config.folds} folds of {config.steps} steps, {self.workers} at once"
        return [
            (folds, one * -(-config.folds // self.workers)),
            (f"gradients of {self.n} samples under {passes} checkpoints", gradients),
        ]

    def autoencoder(self) -> Rows:
        if self.config.autoencoder.weights is not None and self.imported is None:
            return [("trained weights: nothing to train", 0.0)]
        steps = self.config.autoencoder.steps
        # The guide is a classifier of the same cost.
        guide = self.config.autoencoder.guide_steps
        seconds = guide * self._step(threads=torch.get_num_threads())
        if self.imported is not None:
            return [self._codes(), (f"{guide} steps of the guide", seconds), self._usual_error()]
        from diffinf.diffusion.monitor import monitoring_evaluations

        step = self._autoencoder[0]
        evaluations = monitoring_evaluations(self.config.autoencoder, self.n, self.spec.num_classes)
        batches = evaluations / self.config.autoencoder.batch_size
        return [
            (f"{guide} steps of the guide", seconds),
            (f"{steps} steps of the denoiser", steps * step),
            ("held-out images and sheets of faces", batches * step * _FORWARD_SHARE),
        ]

    def repair(self) -> Rows:
        config, steps = self.config.repair, self.config.classifier.steps
        share = self.config.influence.share
        flagged = round(self.n * (self.config.influence.max_share if share is None else share))
        step = self._step(threads=1 if self.device.type == "cpu" else None)
        apart, decode = self._edit()
        decodes = (1 + len(config.strengths)) / 2  # one strength at best, all of them at worst
        rounds = -(-config.judge_folds // self.workers)
        judges = f"judge of {config.judge_folds} folds, {steps} steps each"
        rows = [
            (
                f"up to {flagged} edits of {config.diffusion_steps} steps",
                flagged * (apart + decodes * decode),
            ),
            (judges, rounds * steps * step),
        ]
        if config.spare:
            rows.append(
                (f"second look of {config.judge_folds} folds, {steps} steps each", rounds * steps * step)
            )
        if self.imported is not None:
            rows.append(self._codes())
        persons = self.dataset.identities
        named = None if persons is None else persons[self.dataset.rows("train")]
        provider = identity_provider(config.identity, named)
        if provider == "persons":
            rows.append((f"identity embedder, {steps} steps", steps * step))
        elif provider == "dlib":
            taught = min(config.distill_images, self.n) / worker_count(self.config.compare.workers)
            compared = flagged * (1 + decodes) / self.workers
            rows.append(("faces described by dlib", SECONDS * (taught + compared)))
        return rows

    def compare(self) -> Rows:
        config = self.config.compare
        steps = self.config.classifier.steps
        one = steps * self._step(threads=1 if self.device.type == "cpu" else None)
        count = config.seeds * sum(COST.get(split_arm(arm)[1] or "", 1) for arm in config.arms)
        rows = [
            (
                f"{len(config.arms)} arms of {config.seeds} seeds, {self.workers} at once",
                one * -(-count // self.workers),
            )
        ]
        if "truth_label" in self.dataset.truth_columns:
            folds = self.config.repair.judge_folds
            rows.append((f"oracle on the truth, {folds} folds", one * -(-folds // self.workers)))
        return rows

    def _pictures(self, count: int) -> tuple[Tensor, Tensor]:
        """Noise of the right shape: what it shows does not change what it costs."""
        side, channels = self.spec.image_size, self.spec.in_channels
        images = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8)
        return images, torch.arange(count) % self.spec.num_classes

    def _step(self, threads: int | None) -> float:
        """Seconds of one optimisation step of the classifier, the mean of some; timed once."""
        if threads not in self._steps:
            each = self._mean_step(threads, _TIMED_STEPS)
            if _TIMED_STEPS * each < _TIMED_SECONDS:
                each = self._mean_step(threads, min(_MOST_STEPS, round(_TIMED_SECONDS / each)))
            self._steps[threads] = each
        return self._steps[threads]

    def _mean_step(self, threads: int | None, steps: int) -> float:
        """Seconds of one of `steps` steps, after a first one that warms up."""
        config = self.config.classifier.model_copy(update={"steps": steps + 1, "checkpoint": None})
        images, labels = self._pictures(config.batch_size)
        stamps: list[float] = []
        with _threads(threads):
            train_classifier(
                images,
                labels,
                spec=self.spec,
                config=config,
                seed=0,
                device=self.device,
                record=False,
                progress=False,
                on_step=lambda _: stamps.append(time.perf_counter()),
            )
        return (stamps[-1] - stamps[0]) / steps

    def _gradient(self) -> float:
        """Seconds of one sample's squared gradient norm."""
        config = self.config.influence
        model = create_classifier(self.spec, seed=0).to(self.device).eval()
        images, labels = self._pictures(min(config.batch_size, self.n))
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            x = to_input(images, self.device)
            squared_gradient_norms(model, x, labels.to(self.device), scope=config.scope).cpu()
            seconds.append(time.perf_counter() - start)
        return min(seconds) / len(images)  # the first ones compile and verify

    @cached_property
    def _autoencoder(self) -> tuple[float, DiffusionAutoencoder]:
        """Seconds of one training step of the autoencoder, and one: two short trainings, after one to warm up."""
        from diffinf.diffusion.train import train_autoencoder

        images, labels = self._pictures(2 * self.config.autoencoder.batch_size)
        seconds = []
        for steps in (1, 1, 1 + _TIMED_STEPS):
            config = self.config.autoencoder.model_copy(
                update={
                    **_UNWATCHED,
                    "steps": steps,
                    "guide_steps": 1,
                    "first_stage_steps": 1,
                    "prior_steps": 0,
                }
            )
            with tempfile.TemporaryDirectory() as folder, silenced():
                start = time.perf_counter()
                model = train_autoencoder(
                    images,
                    one_hot(labels, self.spec.num_classes),
                    None,
                    config,
                    class_names=self.spec.class_names,
                    seed=0,
                    device=self.device,
                    directory=Path(folder),
                )
                seconds.append(time.perf_counter() - start)
        return max(0.0, seconds[2] - seconds[1]) / _TIMED_STEPS, model

    @cached_property
    def _network(self) -> DiffAE:
        """The imported autoencoder with heads that know nothing yet."""
        assert self.imported is not None
        model = DiffAE.load(self.imported, self.device)
        model.heads = DatasetHeads(model.config, self.spec.class_names)
        return model.to(self.device).eval().requires_grad_(False)

    @torch.no_grad()
    def _codes(self) -> tuple[str, float]:
        """The semantic codes of all samples by an imported network."""
        images = self._pictures(4 if self.device.type == "cpu" else self._network.encode_batch)[0]
        images = images.to(self.device)
        seconds = []
        for _ in range(2):  # the first one is slower
            start = time.perf_counter()
            self._network.code(self._network.to_latents(images)).cpu()
            seconds.append(time.perf_counter() - start)
        return f"semantic codes of {self.n} samples", self.n * min(seconds) / len(images)

    def _usual_error(self) -> tuple[str, float]:
        """What the imported network is off by on some of the samples."""
        images, looks = self._pictures(1)[0], min(self.n, LOOKS)
        start = time.perf_counter()
        denoising_errors(self._network, images)
        return f"error of the denoiser on {looks} samples", looks * (time.perf_counter() - start)

    def _edit(self) -> tuple[float, float]:
        """Seconds to take one flagged image apart, and to decode it once, spread over the workers."""
        from diffinf.repair.edit import decode_edit, take_apart
        from diffinf.repair.editors import Wish

        config = self.config.repair
        model: Autoencoder = self._autoencoder[1] if self.imported is None else self._network
        count, repeats = config.batch_size, 1.0
        if self.imported is not None and self.device.type == "cpu":
            steps = min(_TIMED_DIFFUSION_STEPS, config.diffusion_steps)
            count, repeats = 1, config.diffusion_steps / steps
            finish = max(1, round(config.finish_steps / repeats))
            shorter = {"diffusion_steps": steps, "inversion_steps": None, "finish_steps": finish}
            config = config.model_copy(update=shorter)
        images, labels = self._pictures(count)
        images, labels = images.to(self.device), labels.to(self.device)
        with _threads(1 if self.device.type == "cpu" else None):
            start = time.perf_counter()
            shown = one_hot(labels, self.spec.num_classes).float()
            parts = take_apart(model, images, shown, config)
            parts.roundtrip.cpu()  # a GPU is done only then
            middle = time.perf_counter()
            decode_edit(model, parts, Wish(parts.code, labels, shown), 1.0, config).images.cpu()
            end = time.perf_counter()
        each = len(images) * self.workers / repeats
        return (middle - start) / each, (end - middle) / each


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
