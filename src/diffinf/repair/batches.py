"""The two heavy passes over the flagged samples as resumable batches: taking apart, and editing behind the gate.

Each batch is a job for a worker process; its result is one file, and a batch whose file is there is skipped.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffinf.classify.crossfit import read_material
from diffinf.classify.workers import Job, Report, run_jobs
from diffinf.config import RepairConfig
from diffinf.diffusion.interface import Autoencoder, load_autoencoder
from diffinf.features.codes import CodeEmbedder
from diffinf.features.interface import similarity
from diffinf.files import load_tensors, save_tensors
from diffinf.repair.attempts import edit_batch
from diffinf.repair.edit import take_apart
from diffinf.repair.editors import Inverted, Wish
from diffinf.repair.gate import Gate, identity_embedder, load_gate
from diffinf.training.loop import worker_count


def run_batches(
    function: str,
    scratch: Path,
    count: int,
    *,
    config: RepairConfig,
    device: torch.device,
    workers: int | None,
    description: str,
    settings: dict[str, Any],
) -> dict[str, Tensor]:
    """Run `function` of this module over `count` samples in batches; return its tensors, joined, rows in order.

    Args:
        function: "take_apart_job", "edit_job" or "embed_job".
        scratch: holds material/ (arrays of all samples) and receives the batches.
        count: number of samples.
        config: settings of the repair.
        device: where to compute; on a CPU the batches are spread over worker processes.
        workers: processes at once; None: one a core.
        description: of the progress bar.
        settings: what else the function reads from its job.
    """
    starts = range(0, count, config.batch_size)
    stops = [min(start + config.batch_size, count) for start in starts]
    paths = [_batch(scratch, function, start, stop) for start, stop in zip(starts, stops, strict=True)]
    jobs = [
        {
            "scratch": str(scratch),
            "path": str(path),
            "start": start,
            "stop": stop,
            "device": str(device),
            "config": config.model_dump(mode="json"),
            **settings,
        }
        for start, stop, path in zip(starts, stops, paths, strict=True)
    ]
    run_jobs(
        f"{__name__}:{function}",
        [job for job, path in zip(jobs, paths, strict=True) if not path.exists()],
        workers=worker_count(workers),
        units=config.batch_size,
        description=description,
        device=device.type,
    )
    parts = [load_tensors(path) for path in paths]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _batch(scratch: Path, function: str, start: int, stop: int) -> Path:
    """Return where the result of rows `start` to `stop` lies: batches of another size are not taken for these."""
    return scratch / f"{function}-{start}-{stop}.safetensors"


@cache
def _autoencoder(directory: str, device: str) -> Autoencoder:
    return load_autoencoder(Path(directory), device)


@cache
def _gate(repair: str, scorers: str, settings: str, device: str) -> Gate:
    return load_gate(
        Path(repair), Path(scorers), RepairConfig.model_validate_json(settings), torch.device(device)
    )


def forget_models() -> None:
    """Let go of the models that this process holds: those of another repair may lie under the same paths."""
    _autoencoder.cache_clear()
    _gate.cache_clear()


def _read(job: Job) -> tuple[Autoencoder, RepairConfig, dict[str, Tensor]]:
    """Return the autoencoder, the settings and this batch's rows of the material."""
    config = RepairConfig.model_validate(job["config"])
    rows = slice(job["start"], job["stop"])
    material = {
        name: values[rows] for name, values in read_material(Path(job["scratch"]) / "material").items()
    }
    model = _autoencoder(job["autoencoder"], job["device"])
    return model, config, {name: values.to(model.device) for name, values in material.items()}


def take_apart_job(job: Job, report: Report) -> dict[str, Any]:
    """Invert a batch and decode it unedited."""
    model, config, material = _read(job)
    parts = take_apart(model, material["images"], material["shown"], config)
    error = (parts.roundtrip.float() - material["images"].float()).abs().mean((1, 2, 3)) / 127.5
    save_tensors(Path(job["path"]), {**vars(parts), "error": error})
    report(job["stop"] - job["start"])
    return {}


def edit_job(job: Job, report: Report) -> dict[str, Any]:
    """Decode a batch of edits and gate them; each sample gets the first edit that passes."""
    model, config, material = _read(job)
    gate = _gate(job["repair"], job["scorers"], config.model_dump_json(), job["device"])
    path = _batch(Path(job["scratch"]), "take_apart_job", job["start"], job["stop"])
    apart = {name: values.to(model.device) for name, values in load_tensors(path).items()}
    result = edit_batch(
        model,
        gate,
        material["images"],
        Inverted(apart["code"], apart["latents"], apart["noisy"], apart["roundtrip"]),
        Wish(material["code"], material["labels"], material["shown"]),
        material["judge_fold"],
        material["score_fold"],
        config,
    )
    codes = CodeEmbedder(
        lambda images: model.code(model.to_latents(images.to(model.device))), model.encode_batch
    )
    result["code_similarity"] = similarity(codes, material["images"], result["edited"]).cosine
    save_tensors(Path(job["path"]), result)
    report(len(material["images"]))
    return {}


def embed_job(job: Job, report: Report) -> dict[str, Any]:
    """Embed a batch of images by the judge of identity that the job names."""
    scratch, rows = Path(job["scratch"]), slice(job["start"], job["stop"])
    judge = identity_embedder(job["judge"], scratch, torch.device(job["device"]))
    vectors, found = judge.embed(read_material(scratch / "material")["images"][rows])
    save_tensors(Path(job["path"]), {"vectors": vectors, "found": found})
    report(job["stop"] - job["start"])
    return {}
