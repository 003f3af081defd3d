"""The diffusion autoencoder: an image is a semantic code, a label context and a stochastic code (arXiv 2111.15640).

What is our own: the denoiser is conditioned on the semantic code AND on the label, each of which is left out now and
then in training, so that decoding can be guided by a positive and a negative context (arXiv 2508.09661 for the rule).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from diffinf.diffusion import storage
from diffinf.diffusion.first_stage import FirstStage, PatchComponents
from diffinf.diffusion.invert import Correction, Prediction, default_scheduler
from diffinf.diffusion.latents import LatentAutoencoder
from diffinf.diffusion.networks import CodeStatistics, Denoiser, Guide, SemanticEncoder
from diffinf.diffusion.spec import AutoencoderSpec
from diffinf.errors import UserError

STEPS = 20  # network evaluations of an inversion or a decode where the caller does not say
PRIOR_STEPS = 50
SAMPLE_GUIDANCE, SAMPLE_RESTARTS = 2.0, 4


class DiffusionAutoencoder(LatentAutoencoder):
    """Images to semantic and stochastic codes and back; images are uint8 (N, C, H, W) everywhere.

    Semantic codes (N, D) are normalised: zero mean and unit variance over the training set. Stochastic codes
    (N, L, h, w) are latents carried up to noise level `depth`; they are decoded with the same `steps` and `depth`.
    A label context is shares of the classes (N, K), rows summing to 1; by default it is what the encoder's attribute
    head reads in the semantic code.
    """

    decode_batch = 64

    @torch.no_grad()
    def encode(
        self,
        images: Tensor,
        shares: Tensor | None = None,
        *,
        steps: int = STEPS,
        depth: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the semantic codes (N, D) and the stochastic codes (N, L, h, w) of images.

        Args:
            images: uint8 (N, C, H, W).
            shares: label context (N, K).
            steps: network evaluations.
            depth: noise level in (0, 1]; by default the highest that was trained on.

        Raises:
            UserError: images or shares do not fit this autoencoder.
        """

        def part(images: Tensor, shares: Tensor | None) -> tuple[Tensor, Tensor]:
            latents = self.to_latents(images)
            code = self.code(latents)
            predict = self._predict_under(code, shares)
            level = self.max_depth if depth is None else depth
            return code, self.invert_latents(latents, predict, steps=steps, depth=level)

        codes, noisy = self._in_batches(part, images, shares)
        return codes, noisy

    @torch.no_grad()
    def decode(
        self,
        semantic_code: Tensor,
        stochastic_code: Tensor,
        shares: Tensor | None = None,
        *,
        steps: int = STEPS,
        depth: float | None = None,
        correct: Correction | None = None,
    ) -> Tensor:
        """Return uint8 images (N, C, H, W) of codes.

        Args:
            semantic_code: normalised (N, D).
            stochastic_code: (N, L, h, w), at noise level `depth`.
            shares: label context (N, K).
            steps: network evaluations.
            depth: noise level in (0, 1]; by default the highest that was trained on.
            correct: changes the predicted clean latents of a step, which is so far, in (0, 1], from the end.

        Raises:
            UserError: codes or shares are not finite, or do not fit this autoencoder.
        """
        spec = self.spec
        side = spec.image_size // spec.patch_size
        _check_codes("semantic code", semantic_code, (spec.code_size,))
        _check_codes("stochastic code", stochastic_code, (spec.latent_channels, side, side))
        if len(semantic_code) != len(stochastic_code):
            raise UserError(
                f"found {len(semantic_code)} semantic codes, but {len(stochastic_code)} stochastic codes"
            )

        def part(code: Tensor, noisy: Tensor, shares: Tensor | None) -> tuple[Tensor]:
            code, noisy = code.to(self.device), noisy.to(self.device)
            predict = self._predict_under(code, shares)
            level = self.max_depth if depth is None else depth
            clean = self.decode_latents(noisy, predict, steps=steps, depth=level, correct=correct)
            return (self.to_images(clean),)

        return self._in_batches(part, semantic_code, stochastic_code, shares)[0]

    def reconstruct(
        self,
        images: Tensor,
        shares: Tensor | None = None,
        *,
        steps: int = STEPS,
        depth: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the images encoded and decoded, uint8 (N, C, H, W), and their mean absolute errors in [-1, 1], (N,).

        Arguments and errors are those of `encode`.
        """
        codes = self.encode(images, shares, steps=steps, depth=depth)
        back = self.decode(*codes, shares, steps=steps, depth=depth)
        error = (back.float() - images.to(back.device).float()).abs().mean((1, 2, 3)) / 127.5
        return back, error

    def interpolate(
        self,
        a: Tensor,
        b: Tensor,
        weights: Sequence[float],
        *,
        steps: int = STEPS,
        depth: float | None = None,
    ) -> Tensor:
        """Return images between `a` and `b`, uint8 (W, N, C, H, W): at weight 0 the round trip of a, at 1 that of b.

        The semantic code is interpolated linearly, the stochastic code on the sphere.

        Args:
            a: uint8 (N, C, H, W).
            b: uint8 (N, C, H, W).
            weights: W shares of b.
            steps: network evaluations.
            depth: noise level in (0, 1]; by default the highest that was trained on.
        """
        (code_a, noisy_a), (code_b, noisy_b) = (
            self.encode(images, steps=steps, depth=depth) for images in (a, b)
        )
        between = [
            self.decode(
                torch.lerp(code_a, code_b, weight),
                spherical(noisy_a, noisy_b, weight),
                steps=steps,
                depth=depth,
            )
            for weight in weights
        ]
        return torch.stack(between)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        labels: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        steps: int = STEPS,
        prior_steps: int = PRIOR_STEPS,
        guidance: float = SAMPLE_GUIDANCE,
        restarts: int = SAMPLE_RESTARTS,
    ) -> Tensor:
        """Return `n` new images, uint8 (n, C, H, W): the prior draws semantic codes, noise is the stochastic code.

        Args:
            n: how many.
            labels: class indices (n,); by default each class is as likely.
            generator: on the CPU; none: one seeded with 0.
            steps: network evaluations of the decode; guided ones cost twice.
            prior_steps: evaluations of the prior.
            guidance: w of the label's context against the empty one (arXiv 2207.12598); 0: unguided.
            restarts: how often what the denoiser makes of the start is noised again, each one more evaluation.

        Raises:
            UserError: there is no prior, or the labels do not fit.
        """
        if self.prior is None:
            raise UserError(
                "this autoencoder has no latent prior to sample from; train one with autoencoder.prior_steps > 0"
            )
        generator = generator or torch.Generator().manual_seed(0)
        classes = len(self.class_names)
        if labels is None:
            labels = torch.randint(0, classes, (n,), generator=generator)
        if labels.shape != (n,) or not all(0 <= label < classes for label in labels.tolist()):
            raise UserError(f"labels: expected {n} class indices from 0 to {classes - 1}, found {labels}")
        shares = F.one_hot(labels.long(), classes).float().to(self.device)
        code = self.prior.sample(shares, self.scheduler, steps=prior_steps, generator=generator)
        spec = self.spec
        side = spec.image_size // spec.patch_size
        shape = (n, spec.latent_channels, side, side)
        noises = [torch.randn(shape, generator=generator) for _ in range(1 + restarts)]

        def part(code: Tensor, shares: Tensor, *noises: Tensor) -> tuple[Tensor]:
            context, depth = self.context(code, shares), self.max_depth
            noisy = self._start(context, [noise.to(self.device) for noise in noises])
            predict = self._guided(code, shares, guidance)
            return (self.to_images(self.decode_latents(noisy, predict, steps=steps, depth=depth)),)

        return self._in_batches(part, code, shares, *noises)[0]

    def _start(self, context: Tensor, noises: Sequence[Tensor]) -> Tensor:
        """Return noisy latents (B, L, h, w) at the highest noise level that was trained on, for contexts (B, W).

        Where training stopped below pure noise, some of the image is left at the start, its broad colours above all.
        Latents drawn channel by channel have none, and the denoiser takes that for grey. So what it makes of them is
        noised again, once for each further noise (Restart, arXiv 2306.14878).
        """
        signal, depth = self.signal(1, self.max_depth), self.max_depth
        mean, std = (
            torch.tensor(values or [default] * noises[0].shape[1], device=self.device)[:, None, None]
            for values, default in ((self.latent_mean, 0.0), (self.latent_std, 1.0))
        )
        noisy: Tensor = signal**0.5 * mean + (1 - signal + signal * std.square()).sqrt() * noises[0]
        for noise in noises[1:]:
            clean = self.decode_latents(noisy, lambda x, t: self.predict(x, t, context), steps=1, depth=depth)
            noisy = signal**0.5 * clean + (1 - signal) ** 0.5 * noise
        return noisy

    def _guided(self, code: Tensor, shares: Tensor, guidance: float) -> Prediction:
        """Return the denoiser's prediction under normalised codes (B, D) and a label, led away from no label."""
        context = self.context(code, shares)
        if guidance == 0:
            return lambda noisy, t: self.predict(noisy, t, context)
        unheard = torch.zeros(len(code), dtype=torch.bool, device=self.device)
        empty = self.denoiser.context(self.encoder.appearance(self.raw(code)), shares, keep_label=unheard)
        both = torch.cat([context, empty])

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            towards, away = self.predict(noisy.repeat(2, 1, 1, 1), t.repeat(2), both).chunk(2)
            v: Tensor = (1 + guidance) * towards - guidance * away
            return v

        return predict

    def _predict_under(self, code: Tensor, shares: Tensor | None) -> Prediction:
        """Return the denoiser's prediction under normalised codes (B, D) and a label context."""
        if shares is None:
            shares = self.read_code(code)[0].softmax(1)
        expected = (len(code), len(self.class_names))
        if tuple(shares.shape) != expected:
            raise UserError(
                f"shares: expected shares of the classes of shape {expected}, found {tuple(shares.shape)}"
            )
        context = self.context(code, shares.to(code))
        return lambda noisy, t: self.predict(noisy, t, context)

    def _in_batches(
        self, work: Callable[..., tuple[Tensor, ...]], *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return what `work` does to `tensors` (N, ...), some None, a part at a time."""
        first = tensors[0]
        assert first is not None
        parts = [
            work(*(x if x is None else x[start : start + self.decode_batch] for x in tensors))
            for start in range(0, max(1, len(first)), self.decode_batch)
        ]
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def save_pretrained(self, save_directory: Path | str, *, dtype: torch.dtype = torch.float32) -> None:
        """Write model_index.json, one folder a component, and autoencoder.json.

        Args:
            save_directory: the folder; parents are made.
            dtype: of the weights as stored; float16 halves the size, with no change that can be seen.
        """
        description = {
            **asdict(self.spec),
            "latent_mean": list(self.latent_mean),
            "latent_std": list(self.latent_std),
            "usual_error": list(self.usual_error),
        }
        storage.write_folder(Path(save_directory), self.components, description, dtype)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Path | str, *, device: torch.device | str = "cpu"
    ) -> Self:
        """Read a folder that `save_pretrained` wrote; nothing is looked up elsewhere, and nothing in it is executed.

        Raises:
            UserError: a file is missing, damaged, changed, of another format version, or does not fit the others; or
                the folder names a class that is not known.
        """
        directory = Path(pretrained_model_name_or_path)
        components, description = storage.read_folder(directory)
        path = directory / storage.DESCRIPTION
        try:
            mean, std = (_numbers(description.pop(name)) for name in ("latent_mean", "latent_std"))
            usual = _numbers(description.pop("usual_error", ()))  # folders written earlier have none
            for name in ("class_names", "unet_channels"):
                description[name] = tuple(description[name])
            spec = AutoencoderSpec(**description)
            if {len(mean), len(std)} not in ({0}, {spec.latent_channels}):
                raise ValueError("latent_mean, latent_std: expected one number a channel")
            if len(usual) not in (0, 2):
                raise ValueError("usual_error: expected a mean and a standard deviation")
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: not an autoencoder's specification ({error})") from error
        try:
            model = cls(
                **components,
                class_names=spec.class_names,
                max_depth=spec.max_depth,
                latent_mean=mean,
                latent_std=std,
                usual_error=usual,
            )
        except UserError as error:
            raise UserError(f"{directory}: {error}") from error
        if model.spec != spec:
            different = [
                f"{name} {value!r} (there {getattr(model.spec, name)!r})"
                for name, value in asdict(spec).items()
                if getattr(model.spec, name) != value
            ]
            raise UserError(f"{path}: sizes do not fit those of the components: {', '.join(different)}")
        model.to(device)
        return model.freeze()


def create_autoencoder(spec: AutoencoderSpec, first_stage: FirstStage | None = None) -> DiffusionAutoencoder:
    """Return an untrained autoencoder without a prior, on DDIM; weights come from torch's global generator.

    Args:
        spec: the shapes.
        first_stage: a fitted one; none: untrained components of patches.

    Raises:
        UserError: no network has such shapes.
    """
    levels = len(spec.unet_channels)
    if spec.image_size % (spec.patch_size * 2 ** (levels - 1)):
        raise UserError(
            f"autoencoder.unet_channels: {levels} levels on latents of {spec.patch_size} pixels a position do not "
            f"divide the images' side of {spec.image_size} pixels; choose fewer levels or another data.image_size"
        )
    classes = len(spec.class_names)
    return DiffusionAutoencoder(
        first_stage=first_stage
        or PatchComponents(spec.image_channels, spec.latent_channels, spec.patch_size),
        encoder=SemanticEncoder(
            spec.latent_channels, spec.attribute_size, spec.appearance_size, classes, spec.identity_size
        ),
        denoiser=Denoiser(
            spec.latent_channels,
            spec.image_size // spec.patch_size,
            spec.unet_channels,
            spec.unet_layers,
            spec.appearance_size,
            classes,
        ),
        guide=Guide(classes, spec.image_channels, spec.image_size),
        statistics=CodeStatistics(spec.code_size),
        scheduler=default_scheduler(spec.timesteps),
        prior=None,
        class_names=spec.class_names,
        max_depth=spec.max_depth,
    )


def spherical(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Return what lies between a and b (N, ...) on the sphere, at 0 a, at 1 b; of nearly parallel ones, on a line."""
    one, other = a.flatten(1), b.flatten(1)
    angle = F.cosine_similarity(one, other).clamp(-1, 1).acos()[:, None]
    near = angle.sin() < 1e-4
    sine = torch.where(near, torch.ones_like(angle), angle.sin())
    share_a = torch.where(near, 1 - weight, ((1 - weight) * angle).sin() / sine)
    share_b = torch.where(near, weight, (weight * angle).sin() / sine)
    return (share_a * one + share_b * other).view_as(a)


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _check_codes(name: str, codes: Tensor, shape: tuple[int, ...]) -> None:
    """Raise a UserError unless codes are (N, *shape) and finite."""
    if tuple(codes.shape[1:]) != shape:
        raise UserError(
            f"{name}: expected shape (N, {', '.join(map(str, shape))}), found {tuple(codes.shape)}"
        )
    broken = (~codes.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
    if broken:
        raise UserError(f"{name}: row {broken[0]} holds values that are not finite ({len(broken)} such rows)")
