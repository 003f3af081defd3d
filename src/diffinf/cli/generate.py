"""Commands of the conditional generator: `train-generator` and `generate`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from diffinf.cli.app import (
    Config,
    Device,
    Estimate,
    Format,
    Fresh,
    Id,
    Identity,
    Image,
    Json,
    Label,
    Limit,
    Preset,
    Root,
    Seed,
    Set,
    Split,
    app,
    say_loading,
)
from diffinf.cli.settings import data_settings, given, run_settings


@app.command("train-generator")
def train_generator(
    dataset: Annotated[str, typer.Argument(help="A dataset: folder or table; its split train is learned.")],
    out: Annotated[Path, typer.Argument(help="Folder of the generator.")],
    condition: Annotated[
        str | None,
        typer.Option(help="What pictures are asked for by: label, identity, embedding (default identity)."),
    ] = None,
    embeddings: Annotated[
        Path | None,
        typer.Option(help="For embedding: .npz or Parquet with id and embedding (default: an own embedder)."),
    ] = None,
    format_: Format = None,
    image: Image = None,
    label: Label = None,
    root: Root = None,
    id_: Id = None,
    split: Split = None,
    identity: Identity = None,
    limit: Limit = None,
    seed: Seed = None,
    device: Device = None,
    config: Config = None,
    set_: Set = None,
    preset: Preset = None,
    estimate: Estimate = False,
    as_json: Json = False,
    fresh: Fresh = False,
) -> None:
    """Train a conditional latent diffusion model of a dataset's labels, persons or embeddings; resumes."""
    data = data_settings(
        format=format_,
        image=image,
        label=label,
        root=root,
        id=id_,
        split=split,
        identity=identity,
        limit=limit,
    )
    values = {"seed": seed, "device": device, "data": data, "generator": {"condition": condition}}
    settings = run_settings(dataset, given(values), config, set_ or [], preset, from_scratch=False)
    say_loading()
    if estimate:
        from diffinf.cli.show import show_costs
        from diffinf.stages.generating import estimate_generator

        show_costs(estimate_generator(settings), as_json)
        return
    leads = _leads()
    from diffinf.stages.generating import train_generator_on

    model = train_generator_on(settings, out, embeddings=embeddings, fresh=fresh)
    if leads:
        found = {
            "generator": str(out),
            "condition": model.condition,
            "contexts": len(model.context_names),
            "context_size": model.context_size,
        }
        if model.condition == "embedding":
            found["embeddings"] = str(embeddings or out / "embedder")
            if not as_json:  # it has learned none, and need not
                source = "reference:DATASET or FILE" if embeddings is None else "FILE"
                found["contexts"] = f"none of its own (diffinf generate {out} OUT --contexts {source})"
        _say(found, as_json)


@app.command()
def generate(
    model: Annotated[Path, typer.Argument(help="Folder of a generator.")],
    out: Annotated[
        Path, typer.Argument(help="Folder to write: images/IDENTITY/NUMBER.png, samples.parquet.")
    ],
    contexts: Annotated[
        str,
        typer.Option(
            help="train, FILE (.npy, .npz, .parquet), random:N, reference:DATASET, perturb:DEG[-DEG][:ONE]."
        ),
    ] = "train",
    per_context: Annotated[int, typer.Option(help="Images of each context.")] = 8,
    negative: Annotated[str, typer.Option(help="none, null, random, close, mid or far.")] = "far",
    scale: Annotated[float, typer.Option(help="w of (1 + w)·positive - w·negative.")] = 0.5,
    schedule: Annotated[str, typer.Option(help="constant, adaptive, reversed or interval:a-b.")] = "constant",
    identity_guidance: Annotated[
        float, typer.Option(help="Pull by the embedder trained with the generator, such as 0.3; 0: none.")
    ] = 0.0,
    sampler: Annotated[str, typer.Option(help="ddpm, ddim or dpm++.")] = "ddim",
    steps: Annotated[int, typer.Option(help="Network evaluations of an unguided image.")] = 50,
    batch_size: Annotated[
        int | None, typer.Option(help="Images at once (default: 16 on a CPU, else 64).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Every random draw is a function of it.")] = 0,
    device: Device = None,
    as_json: Json = False,
    fresh: Fresh = False,
) -> None:
    """Generate images of identities, each led away from a negative context (arXiv 2508.09661); resumes."""
    leads = _leads()
    say_loading()
    from diffinf.generate.negative import parse_schedule
    from diffinf.generate.sample import Sampling
    from diffinf.stages.generating import generate as write

    sampling = Sampling(
        negative=negative,  # type: ignore[arg-type]
        scale=scale,
        schedule=parse_schedule(schedule),
        sampler=sampler,  # type: ignore[arg-type]
        steps=steps,
        seed=seed,
        batch_size=batch_size,
    )
    table = write(
        model,
        out,
        contexts=contexts,
        per_context=per_context,
        sampling=sampling,
        identity_guidance=identity_guidance,
        device=device or "auto",
        fresh=fresh,
    )
    if leads:
        _say({"images": str(out / "images"), "table": str(table)}, as_json)


def _leads() -> bool:
    """Whether this process speaks; under torchrun the others help, and say nothing."""
    leads = os.environ.get("RANK", "0") == "0"
    if not leads:
        from diffinf.progress import set_quiet

        set_quiet(True)
    return leads


def _say(found: dict[str, Any], as_json: bool) -> None:
    print(json.dumps(found, indent=2) if as_json else "\n".join(f"{k}: {v}" for k, v in found.items()))
