"""Generation with negative context on rendered look-alikes: separability, RCA, fidelity and cost by strategy.

    python benchmarks/generation.py [--work DIR] [--json FILE] [--steps 3000] [--people 300] ...

Everything is rendered here at 32 px. The generator is trained on some people under the contexts of an embedder A, and
asked for others by their contexts. A judge B of another architecture, seed and people embeds what comes out; an oracle
classifier of the held-out people, trained on renders that nothing else sees, reads who it is. Six strategies at w = .5;
then, for the two guided ones of the highest FDR, two other scales and other schedules; guidance by embedder A beside
the contexts', which neither judge B nor the oracle has a part in; real pictures as the reference;
and the failure that the Fréchet distance does not see: good pictures of the wrong person. Beside it a second
generator, trained on the people it is asked for under contexts that it learned: the setting of relative
classification accuracy.

Each part is kept in --work under a name made of the options and read when it is there: a killed run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffinf import __version__
from diffinf.config import GeneratorConfig
from diffinf.diffusion.first_stage import PatchComponents
from diffinf.files import load_tensors, read_json, stage_key, write_json
from diffinf.generate import choose_negative_contexts, identity_contexts, parse_schedule, random_contexts
from diffinf.generate.identity import IdentityGuidance
from diffinf.generate.model import LAYOUT, ContextGenerator, create_generator
from diffinf.generate.sample import Sampling, denoise, draw_noise, image_seed, sample_images
from diffinf.generate.train import train_generator
from generation_parts import (
    CPU,
    EXTRACTOR,
    NUISANCE,
    Measures,
    Regressor,
    Scale,
    cached,
    contexts_embedder,
    draw_people,
    judge_embedder,
    parts_of,
    render,
    train_oracle,
)

STRATEGIES = ("none", "null", "random", "close", "mid", "far")
SCALES = (0.25, 1.0)  # beside .5
SCHEDULES = ("adaptive", "reversed", "interval:0-0.5", "interval:0.3-0.8", "interval:0.5-1")
SHOWN = ("real held-out pictures", "none", "null w=0.5 constant", "null w=0.5 constant pull=0.15")
PULLS = (("none", 0.0, 0.3), ("null", 0.5, 0.15), ("null", 0.5, 0.3), ("far", 0.5, 0.3), ("null", 1.0, 0.3))
KNOWN = (("none", 0.0), ("null", 0.5), ("null", 1.0), ("null", 2.0), ("far", 0.5), ("far", 1.0))
BATCHES = (32, 64)  # images, beside the default, to measure a step's cost at
TARGET = 2.34  # times the FDR of "none", as published


class Benchmark:
    """The parts in order; each is read from `work` where it is there."""

    def __init__(self, scale: Scale, generator: dict[str, Any], work: Path) -> None:
        """Render the people and train what judges."""
        config = GeneratorConfig(condition="embedding", steps=scale.steps, **generator)
        self.scale, self.work = scale, work / stage_key(asdict(scale), config.model_dump(mode="json"))[:12]
        self.work.mkdir(parents=True, exist_ok=True)
        seed = 1000 * (scale.seed + 1)
        self.train = self._faces("train", scale.people, scale.pictures, seed)
        judged = self._faces("judged", scale.judge_people, scale.pictures, seed + 1)
        counts = [scale.context_pictures, scale.oracle_pictures, scale.real_pictures]
        held = self._faces("held", scale.held_people, sum(counts), seed + 2)
        context, oracle, self.real = parts_of(held, counts)
        # Real pictures as if they had been generated: of the same people, but not those that measure.
        each = min(scale.per_context, scale.context_pictures)
        self.as_generated = parts_of(context, [each])[0]
        embedder = contexts_embedder(self.train, scale, self.work / "embedder.safetensors")
        self.embedder = embedder.network
        self.contexts = identity_contexts(embedder.embed(context["images"])[0], context["who"])
        self.given = identity_contexts(embedder.embed(self.train["images"])[0], self.train["who"])
        self.measures = Measures(
            judge_embedder(judged, scale, self.work / "judge.safetensors"),
            train_oracle(oracle, scale, self.work / "oracle"),
            Regressor(judged, oracle, scale, self.work / "factors.safetensors"),
            self.real,
        )
        self.model = self._generator("generator", config, self.train, self.given)
        self.known: ContextGenerator | None = None
        if scale.known_steps:
            by_name = config.model_copy(update={"condition": "identity", "steps": scale.known_steps})
            anew = self._faces("known", scale.held_people, scale.known_pictures, seed + 2)
            self.known = self._generator("known", by_name, anew, None)
        self.who = torch.arange(scale.held_people).repeat_interleave(scale.per_context)

    def _faces(self, name: str, people: int, pictures: int, seed: int) -> dict[str, Tensor]:
        return cached(self.work / f"{name}.safetensors", lambda: render(people, pictures, seed, self.scale))

    def _generator(
        self, name: str, config: GeneratorConfig, faces: dict[str, Tensor], given: Tensor | None
    ) -> ContextGenerator:
        folder = self.work / name
        if not (folder / LAYOUT.description).exists():
            people = [] if given is not None else [f"{row:03d}" for row in range(int(faces["who"].max()) + 1)]
            train_generator(
                faces["images"],
                faces["who"],
                config,
                given=given,
                context_names=people,
                seed=self.scale.seed,
                device=CPU,
                directory=folder,
            )
        return ContextGenerator.from_pretrained(folder)

    def arm(
        self,
        strategy: str,
        w: float = 0.5,
        schedule: str = "constant",
        *,
        pull: float = 0.0,
        known: bool = False,
    ) -> dict[str, Any]:
        """Generate the held-out people in one way, by the generator that knows them or the other, and measure."""
        name = f"{strategy} w={w:g} {schedule}" if strategy != "none" else "none"
        name = f"{name} pull={pull:g}" if pull else name
        name = f"known, {name}" if known else name
        model, contexts = self.model, self.contexts
        if known and self.known is not None:
            model, contexts = self.known, self.known.denoiser.contexts()
        guidance = IdentityGuidance(self.embedder, contexts, pull) if pull else None
        sampling = Sampling(
            negative=strategy,  # type: ignore[arg-type]
            scale=w,
            schedule=parse_schedule(schedule),
            steps=self.scale.sampling_steps,
            seed=self.scale.seed,
        )
        choice = choose_negative_contexts(contexts, sampling.negative, sampling.seed)
        negatives = None if strategy in ("none", "null") else contexts[choice.indices][self.who]
        seeds = self._seeds()

        def images() -> Tensor:
            return sample_images(model, contexts[self.who], seeds, sampling, negatives, guidance, self.who)

        found = self._measured(name, images, self.who)
        return {"strategy": strategy, "w": w, "schedule": schedule, "pull": pull, **found}

    def wrong_people(self) -> dict[str, Any]:
        """The pictures of "none", each taken for another person: the same pictures, hence the same distance."""
        shifted = (self.who + 1) % self.scale.held_people
        path = self.work / "arms" / "none.safetensors"
        return self._measured("contexts shuffled", lambda: cached(path, dict)["images"], shifted)

    def unconditional(self) -> dict[str, Any]:
        """Pictures under the empty context, whoever was asked for."""

        def images() -> Tensor:
            parts = []
            sampling = Sampling(negative="none", steps=self.scale.sampling_steps, seed=self.scale.seed)
            seeds = self._seeds()
            size = sampling.images_at_once(self.model.device)
            for start in range(0, len(seeds), size):
                generators, noise = draw_noise(self.model, seeds[start : start + size])
                empty = self.model.denoiser.embed_empty(len(noise))
                latents = denoise(self.model, noise, empty, None, sampling, generators)
                parts.append(self.model.to_images(latents))
            return torch.cat(parts)

        return self._measured("unconditional", images, self.who)

    def _seeds(self) -> list[int]:
        each = self.scale.per_context
        return [image_seed(self.scale.seed, f"{row // each:03d}", row % each) for row in range(len(self.who))]

    def _measured(self, name: str, images: Callable[[], Tensor], who: Tensor) -> dict[str, Any]:
        path = self.work / "arms" / f"{name.replace(':', '_')}.json"
        if not path.exists():
            pictures = path.with_suffix(".safetensors")

            def work() -> dict[str, Tensor]:
                start = time.process_time()
                made = images()
                return {"images": made, "seconds": torch.tensor([time.process_time() - start])}

            made = cached(pictures, work)
            write_json(path, {"cpu_seconds": float(made["seconds"]), **self.measures.of(made["images"], who)})
        found: dict[str, Any] = read_json(path)
        return {"arm": name, **found}


def step_cost(model: ContextGenerator, repeats: int = 7, steps: int = 3) -> list[dict[str, float]]:
    """CPU seconds of one denoising step with and without guidance, the default batch first: the least of `repeats`.

    Not the median: what else the machine does can only add to a time.
    """
    rows = []
    for images in (Sampling().images_at_once(CPU), *BATCHES):
        generators, noise = draw_noise(model, list(range(images)))
        embedded = model.denoiser.embed(random_contexts(2 * images, model.context_size))
        positive, negative = embedded.chunk(2)
        times: dict[str, list[float]] = {"unguided": [], "guided": []}
        for _ in range(repeats + 1):
            for name, other in (("unguided", None), ("guided", negative)):
                start = time.process_time()
                denoise(model, noise, positive, other, Sampling(steps=steps), generators)
                times[name].append((time.process_time() - start) / steps)
        least = {name: min(values[1:]) for name, values in times.items()}
        rows.append({"images": images, **least, "ratio": least["guided"] / least["unguided"]})
    return rows


def untrained(scale: Scale, generator: dict[str, Any]) -> ContextGenerator:
    """A generator of the benchmark's shapes: what a step costs does not depend on the weights."""
    config = GeneratorConfig(**generator)
    images = torch.randint(0, 256, (64, 3, scale.size, scale.size), dtype=torch.uint8)
    model = create_generator(
        PatchComponents.fit(images, config.latent_channels, config.patch_size),
        image_size=scale.size,
        channels=config.unet_channels,
        layers=config.unet_layers,
        context_size=config.context_size,
        injection=config.injection,
        prediction=config.prediction,
    )
    return model.freeze()


def evaluations(schedule: str, steps: int, timesteps: int) -> float:
    """Network evaluations of a guided image under a schedule, over those of an unguided one."""
    found = parse_schedule(schedule)
    levels = [timesteps - 1 - round(index * timesteps / steps) for index in range(steps)]
    return 1 + sum(found.scale(1.0, level, timesteps) > 0 for level in levels) / steps


def run(scale: Scale, generator: dict[str, Any], work: Path, arguments: list[str]) -> dict[str, Any]:
    """Run all arms and return the report, which names the command-line `arguments`."""
    bench = Benchmark(scale, generator, work)
    held_out = bench.as_generated
    real = bench._measured("real held-out pictures", lambda: held_out["images"], held_out["who"])
    none = bench.arm("none")
    first = [none, *(bench.arm(strategy) for strategy in STRATEGIES[1:])]
    best = sorted(first[1:], key=lambda arm: -(arm["fdr"] or 0.0))[:2]
    more = [
        arm
        for found in best
        for arm in (
            *(bench.arm(found["strategy"], w) for w in SCALES),
            *(bench.arm(found["strategy"], 0.5, schedule) for schedule in SCHEDULES),
        )
    ]
    failures = [bench.wrong_people(), bench.unconditional()]
    pulled = [bench.arm(strategy, w, pull=pull) for strategy, w, pull in PULLS]
    known = [bench.arm(*arm, known=True) for arm in KNOWN] if bench.known else []
    rows = [real, *first, *more, *pulled, *failures, *known]
    base = torch.tensor(none["nuisance_spread"])
    for row in rows:
        spread = torch.tensor(row["nuisance_spread"])
        row["spread_of_none"] = float((spread / base).mean()) if len(base) else None
        row["fdr_of_none"] = row["fdr"] / none["fdr"] if none["fdr"] else None
        gap = (real["fdr"] or 0.0) - (none["fdr"] or 0.0)
        row["gap_closed"] = ((row["fdr"] or 0.0) - (none["fdr"] or 0.0)) / gap if gap else None
        if "schedule" in row and row["strategy"] != "none":
            row["evaluations"] = evaluations(row["schedule"], scale.sampling_steps, bench.model.timesteps)
    quality = zip(NUISANCE, bench.measures.regressor.quality.tolist(), strict=True)
    readable = {name: value for name, value in quality if value == value and value > float("-inf")}
    return {
        "command": shlex.join(["python", "benchmarks/generation.py", *arguments]),
        "version": __version__,
        "date": time.strftime("%Y-%m-%d"),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "folder": bench.work.name,
        "scale": asdict(scale),
        "generator": generator,
        "extractor": EXTRACTOR,
        "target": {"fdr_times": TARGET, "or_gap_closed": 0.5},
        "held_out_loss": read_json(bench.work / "generator" / "metrics.json")["validation"],
        "r_squared": readable,
        "step_cost": step_cost(bench.model),
        "best": [arm["strategy"] for arm in best],
        "rows": rows,
    }


def show(report: dict[str, Any]) -> None:
    """Print the table."""
    names = ("fdr", "eer", "frechet", "diversity", "spread_of_none", "gap_closed", "evaluations")
    print(f"{'arm':34}" + "".join(f"{name[:11]:>12}" for name in ("rca", *names)))
    for row in report["rows"]:
        values = [estimate(row["rca"]), *(row.get(name) for name in names)]
        print(f"{row['arm']:34}" + "".join(f"{'-' if v is None else f'{v:.3f}':>12}" for v in values))
    losses = ", ".join(f"{check['step']}: {check['loss']:.4f}" for check in report["held_out_loss"])
    print(f"held-out loss by step: {losses or 'too few images'}")
    show_cost(report["step_cost"])


def show_cost(rows: list[dict[str, float]]) -> None:
    """Print what a guided step costs."""
    for row in rows:
        each = 1000 * row["guided"] / row["images"]
        print(
            f"{row['images']} images a batch: a guided step costs {row['ratio']:.2f} times an unguided one, "
            f"{each:.2f} ms an image"
        )


def estimate(value: Any) -> float | None:
    """Return the estimate of an interval, or None where there is none."""
    return None if value is None else float(value["estimate"] if isinstance(value, dict) else value)


def main(arguments: list[str] | None = None) -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/generation"), help="where parts are kept")
    parser.add_argument("--json", type=Path, help="where the report goes (WORK/generation.json)")
    parser.add_argument("--picture", type=Path, help="a sheet of some arms, some people, as PNG")
    parser.add_argument("--set", action="append", default=[], help="generator setting as name=value (JSON)")
    parser.add_argument(
        "--rendered", action="store_true", help="rendered people: all there is, and the default"
    )
    parser.add_argument(
        "--step-cost", action="store_true", help="only the cost of a guided step, of an untrained generator"
    )
    for field in fields(Scale):
        kind = float if field.name == "similarity" else int
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    given = parser.parse_args(arguments)
    scale = Scale(**{field.name: getattr(given, field.name) for field in fields(Scale)})
    settings = {name: json.loads(value) for name, _, value in (text.partition("=") for text in given.set)}
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if given.step_cost:
        show_cost(step_cost(untrained(scale, settings)))
        return
    report = run(scale, settings, given.work, sys.argv[1:] if arguments is None else arguments)
    show(report)
    if given.picture is not None:
        folder = given.work / report["folder"] / "arms"
        shown = {name: load_tensors(folder / f"{name}.safetensors")["images"] for name in SHOWN}
        draw_people(shown, scale.held_people, given.picture)
    write_json(given.json or given.work / "generation.json", report)


if __name__ == "__main__":
    main()
