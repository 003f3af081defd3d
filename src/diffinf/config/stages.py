"""The settings of each stage: every field described, unknown names refused."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from diffinf.config.arms import check_arms, check_knobs

EditorName = Literal["guided", "guide", "contexts", "renoised", "codes", "linear"]
Identity = Literal["auto", "persons", "dlib", "none"]
Policy = Literal["edit", "edit-or-relabel", "edit-or-drop"]
LossName = Literal["cross_entropy", "earth_mover"]


class StageConfig(BaseModel):
    """What all stages' settings share: unknown fields are errors, and assignments are checked too."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, validate_default=True)


class ClassifierConfig(StageConfig):
    """The classifier: baseline, folds of the cross-fit, arms."""

    name: str = Field("small_cnn", description="small_cnn, or the name of a timm model")
    steps: int = Field(1000, ge=1, description="optimisation steps")
    batch_size: int = Field(64, ge=1, description="samples a step")
    learning_rate: float = Field(3e-3, gt=0, description="peak learning rate of AdamW")
    weight_decay: float = Field(
        0.05, ge=0, description="decoupled weight decay of AdamW, times the learning rate"
    )
    loss: LossName = Field(
        "cross_entropy",
        description="what is minimised; earth_mover, for ordered classes, counts how far off a reading is: squared "
        "differences of the cumulative shares",
    )
    targets: Literal["label", "votes"] = Field(
        "label",
        description="what is learned: the label, or the shares of the votes (data.votes, data.annotators)",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target that all classes divide")
    augment: bool = Field(True, description="flip and shift the training images")
    checkpoints: int = Field(4, ge=1, description="checkpoints kept for the self-influence")
    folds: int = Field(4, ge=2, description="folds of the cross-fitted judge")
    checkpoint: Path | None = Field(
        None, description="a trained classifier (safetensors) instead of the baseline"
    )


class InfluenceConfig(StageConfig):
    """Scores and flags."""

    scope: Literal["all", "head"] | list[str] = Field("all", description="parameters of the self-influence")
    batch_size: int = Field(256, ge=1, description="samples a backward pass")
    flag: Literal["share", "class_share", "count", "auto"] = Field(
        "share", description="how the flags are drawn"
    )
    share: float | None = Field(
        None, ge=0, le=1, description="share to flag; none: the estimated noise rate, capped"
    )
    max_share: float = Field(0.3, ge=0, le=1, description="cap of the estimated share")
    count: int | None = Field(None, ge=0, description="samples to flag with flag=count")
    flags: Path | None = Field(None, description="file of ids to flag instead (text, CSV or Parquet)")


class AutoencoderConfig(StageConfig):
    """The diffusion autoencoder."""

    weights: Path | Literal["rendered"] | None = Field(
        None,
        description="folder of trained weights, or of an imported DiffAE, or the shipped ones for rendered faces; "
        "none: train",
    )
    first_stage: Literal["patches", "kl", "pixels"] = Field(
        "patches",
        description="what the diffusion works on: principal components of patches, latents of a trained KL "
        "autoencoder, or the pixels themselves",
    )
    first_stage_steps: int = Field(2000, ge=1, description="kl: optimisation steps of the first stage")
    first_stage_channels: list[int] = Field(
        [32, 64, 64],
        min_length=1,
        description="kl: widths by level, multiples of 16; each after the first halves the sides",
    )
    patch_size: int = Field(4, ge=2, description="side of the patches that become one position of a latent")
    latent_channels: int = Field(
        16, ge=1, description="channels of a latent; patches: at most patch_size^2 per image channel"
    )
    whitening: float = Field(
        0.5,
        ge=0,
        le=1,
        description="0: channels keep their spread; 1: all have the same; between: in between",
    )
    attribute_size: int = Field(16, ge=1, description="part of the semantic code that carries the attribute")
    appearance_size: int = Field(
        32, ge=1, description="part of the semantic code that carries everything else"
    )
    unet_channels: list[int] = Field(
        [64, 96, 96], description="width of the denoiser by level, multiples of 32"
    )
    unet_layers: int = Field(1, ge=1, description="residual blocks a level")
    steps: int = Field(1500, ge=1, description="optimisation steps of the denoiser and the semantic encoder")
    max_depth: float = Field(
        0.6, gt=0, le=1, description="highest noise level trained on; edits go no deeper, so less is wasted"
    )
    guide_steps: int = Field(1000, ge=1, description="optimisation steps of the guide")
    guide_learning_rate: float = Field(3e-3, gt=0, description="peak learning rate of the guide")
    guide_noise: float = Field(
        0.7, ge=0, description="largest noise, in latent units, that the guide reads through"
    )
    batch_size: int = Field(64, ge=1, description="samples a step")
    learning_rate: float = Field(8e-4, gt=0, description="peak learning rate")
    ema_decay: float = Field(0.995, ge=0, lt=1, description="largest decay of the averaged weights")
    prior_steps: int = Field(
        1000,
        ge=0,
        description="optimisation steps of the latent prior that new faces are drawn from; 0: none",
    )
    label_dropout: float = Field(
        0.15, ge=0, le=1, description="share of trusted labels withheld from the denoiser"
    )
    code_dropout: float = Field(
        0.2, ge=0, le=1, description="share of semantic codes withheld from the denoiser"
    )
    attribute_weight: float = Field(0.1, ge=0, description="weight of the attribute head's loss on the code")
    adversary_weight: float = Field(
        0.1, ge=0, description="weight of keeping the attribute out of the appearance code"
    )
    identity_weight: float = Field(0.05, ge=0, description="weight of the identity head's loss on the code")
    identity_size: int = Field(32, ge=2, description="size of the identity embedding on the code")
    identity_margin: float = Field(0.2, ge=0, description="cosine margin between persons")
    identity_scale: float = Field(16.0, gt=0, description="scale of the cosines in the softmax")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the training; auto: bfloat16 on a GPU that has it, else float32"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute the denoiser's activations twice instead of keeping them: less memory"
    )
    validation_share: float = Field(
        0.02,
        ge=0,
        le=0.5,
        description="share of the training images held out to measure the loss on: 32 to 512, none of too few",
    )
    sheets: int = Field(
        3, ge=0, le=100, description="how often, over the training, sheets of faces are written"
    )
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = Field(
        "none", description="where losses are logged beside metrics.json; its package is installed apart"
    )


class GeneratorConfig(StageConfig):
    """The conditional generator: what it is conditioned on, its networks, its training."""

    condition: Literal["label", "identity", "embedding"] = Field(
        "identity",
        description="what a picture is asked for by: a learned context for each label or person, or a given embedding",
    )
    context_size: int = Field(
        64, ge=2, description="components of a context; of given embeddings: as many as they have"
    )
    context_of: Literal["identity", "image"] = Field(
        "identity", description="embedding: the mean of a person's images, or each image's own"
    )
    embedder_steps: int = Field(
        1000, ge=1, description="embedding: optimisation steps of the embedder, where no embeddings are given"
    )
    injection: Literal["norm", "attention"] = Field(
        "norm", description="how the context reaches the U-Net: adaptive group norm, or cross-attention"
    )
    component_dropout: float = Field(
        0.25, ge=0, lt=1, description="share of a context's components withheld at a step: 0, 0.25, 0.5"
    )
    context_dropout: float = Field(
        0.1, ge=0, le=1, description="share of contexts replaced by the learned empty one"
    )
    prediction: Literal["epsilon", "v"] = Field(
        "v", description="what the denoiser predicts: the noise, or v"
    )
    first_stage: Literal["patches", "kl", "pixels"] = Field(
        "patches", description="what the diffusion works on, as autoencoder.first_stage"
    )
    first_stage_steps: int = Field(2000, ge=1, description="kl: optimisation steps of the first stage")
    first_stage_channels: list[int] = Field(
        [32, 64], min_length=1, description="kl: widths by level; each after the first halves the sides"
    )
    patch_size: int = Field(2, ge=2, description="side of the patches that become one position of a latent")
    latent_channels: int = Field(
        12, ge=1, description="channels of a latent; patches: as many as a patch has values lose nothing"
    )
    whitening: float = Field(
        0.5, ge=0, le=1, description="patches: 0 keeps the channels' spread, 1 makes it equal"
    )
    unet_channels: list[int] = Field(
        [32, 64, 128], min_length=1, description="width of the U-Net by level, multiples of 32"
    )
    unet_layers: int = Field(1, ge=1, description="residual blocks a level")
    steps: int = Field(3000, ge=1, description="optimisation steps")
    batch_size: int = Field(64, ge=1, description="samples a step")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    ema_decay: float = Field(0.998, ge=0, lt=1, description="largest decay of the averaged weights")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the training; auto: bfloat16 on a GPU that has it, else float32"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations twice instead of keeping them: less memory"
    )
    validation_share: float = Field(
        0.02, ge=0, le=0.5, description="share of the images held out to measure the loss on: 32 to 512"
    )
    sheets: int = Field(3, ge=0, le=100, description="how often, over the training, sheets are written")
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = Field(
        "none", description="where losses are logged beside metrics.json; its package is installed apart"
    )


class RepairConfig(StageConfig):
    """Surrogate, edit, gate, and what becomes of what the gate refuses."""

    policy: Policy = Field(
        "edit",
        description="what becomes of a sample whose edit is refused, if its label is probably wrong: it is kept, "
        "relabelled (edit-or-relabel) or dropped (edit-or-drop)",
    )
    surrogate_steps: int = Field(600, ge=1, description="optimisation steps of the surrogate")
    code_steps: int = Field(60, ge=0, description="optimisation steps of an edited code")
    code_stop: float = Field(
        0.9,
        gt=0,
        le=1,
        description="a code stops moving once the attribute head reads the label in it with at least this "
        "probability and the surrogate finds high influence less likely than not",
    )
    code_learning_rate: float = Field(0.1, gt=0, description="Adam's step on normalised codes")
    influence_weight: float = Field(0.3, ge=0, description="weight of the surrogate's term")
    identity: Identity = Field(
        "auto",
        description="who judges whether it is still the same person: persons (an embedder trained on the persons that "
        "the dataset names), dlib (a face recogniser, extra face) or none; auto: persons where enough are named, "
        "else none",
    )
    identity_weight: float = Field(
        4.0, ge=0, description="weight of the identity head's term, where there is such a head"
    )
    distill_images: int = Field(
        1000,
        ge=100,
        description="training images that dlib describes, to calibrate on and to train the identity head on the code",
    )
    proximity_weight: float = Field(
        0.2, ge=0, description="weight of the squared distance to the code as it was"
    )
    realism_weight: float = Field(0.5, ge=0, description="weight of -log p(code | label)")
    diffusion_steps: int = Field(
        6, ge=1, le=1000, description="network evaluations of an inversion and of a decode"
    )
    inversion_steps: int | None = Field(
        None, ge=1, le=1000, description="network evaluations of an inversion; none: as diffusion_steps"
    )
    depth: float = Field(
        0.4, gt=0, le=1, description="noise level that images are inverted to; 1 is pure noise"
    )
    editor: EditorName = Field(
        "guided",
        description="what draws an image to its label: contexts and guide, the guide or the contexts alone, contexts "
        "with fresh noise, the moved code alone, or a linear direction of the code",
    )
    guidance: float = Field(4.0, ge=0, description="w of (1 + w)·positive context - w·negative context")
    fresh_noise: float = Field(
        0.5, ge=0, le=1, description="renoised: share of the stochastic code's variance that is drawn anew"
    )
    guide_scale: float = Field(0.25, ge=0, description="step of the guide, in units of the latents' spread")
    finish_depth: float = Field(
        0.25,
        gt=0,
        le=1,
        description="noise level from which the denoiser alone makes a face of what the guide drew",
    )
    finish_steps: int = Field(3, ge=1, le=1000, description="network evaluations of that, under each context")
    guide_noise: float = Field(0.3, ge=0, description="noise that the guide looks through, in latent units")
    guide_share: float = Field(0.2, gt=0, le=1, description="share of the positions that the guide may move")
    guide_smoothness: float = Field(
        0.7, gt=0, description="spread in positions of what is too smooth to be an expression"
    )
    blend_difference: float = Field(
        0.05,
        gt=0,
        description="change in [0, 2] from which on the decoded edit replaces the original's pixels",
    )
    blend_width: float = Field(
        0.04, gt=0, description="softness of that seam, as a share of the image's side"
    )
    strengths: list[float] = Field(
        [0.8, 0.5, 1.1, 1.5, 2.0],
        min_length=1,
        description="strengths tried, in this order; the first that passes is taken. After one that does not show the "
        "label only stronger ones are tried, after one that lost the person only gentler ones",
    )
    judge_margin: float = Field(
        0.3, ge=0, le=1, description="P(label) must exceed every other class's by so much"
    )
    spare: float = Field(
        0.75,
        ge=0,
        description="of the edits that passed, those are taken back whose originals show their label best on a second "
        "look: as many as flags are estimated to be right, times this; 0: none, and no second look",
    )
    identity_quantile: float = Field(
        0.99,
        gt=0,
        lt=1,
        description="identity threshold: this quantile of pairs of different persons, or of different images where "
        "nobody names persons",
    )
    roundtrip_limit: float = Field(
        0.15, gt=0, description="largest mean absolute round-trip error in [-1, 1]"
    )
    influence_quantile: float = Field(
        0.75,
        gt=0,
        le=1,
        description="an edit's influence must fall below this quantile of its class's unflagged",
    )
    trusted_minimum: int = Field(
        10, ge=0, description="a class with fewer samples of label_trust >= 0.5 is not edited"
    )
    judge_folds: int = Field(2, ge=2, description="folds of the cross-fitted judge")
    batch_size: int = Field(32, ge=1, description="images edited at once")


class CompareConfig(StageConfig):
    """The arms that are trained and compared."""

    arms: list[str] = Field(
        ["baseline", "filter", "relabel", "resample", "diffinf"],
        description="arms to train, baseline first; docs/guide.md has them all",
    )
    seeds: int = Field(3, ge=1, description="trainings of each arm")
    knobs: dict[str, float] = Field(
        {},
        description="main setting of a method where it is not the default: gce (q), sce (beta), elr (lambda), aldr-kl "
        "(lambda0), co-teaching (forget rate; none: the noise rate estimated on the labels as given, in X+co-teaching "
        "too), sam (rho), down-weight (weight of a flagged sample)",
    )
    allow_overlap: bool = Field(
        False,
        description="compare although test samples share pictures or persons with training or validation",
    )
    workers: int | None = Field(None, ge=1, description="processes at once on a CPU; none: one a core")

    @field_validator("arms")
    @classmethod
    def _known_arms(cls, names: list[str]) -> list[str]:
        check_arms(names)
        return names

    @field_validator("knobs")
    @classmethod
    def _known_knobs(cls, knobs: dict[str, float]) -> dict[str, float]:
        check_knobs(knobs)
        return knobs
