"""Generated images as a folder: one folder an identity, and a table of what each picture was asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import torch
from PIL import Image
from torch import Tensor

from diffinf.errors import UserError
from diffinf.files import atomic_path, write_table
from diffinf.generate.contexts import NO_CONTEXT, NegativeChoice, choose_negative_contexts, perturbed_contexts
from diffinf.generate.identity import IdentityGuidance
from diffinf.generate.model import ContextGenerator
from diffinf.generate.sample import Sampling, image_seed, sample_images
from diffinf.progress import progress_bar
from diffinf.training.loop import step_seed

IMAGES, TABLE = "images", "samples.parquet"


class Order(NamedTuple):
    """What is asked for.

    Attributes:
        contexts: (P, D), of any length but 0: one an identity.
        ids: P names of the identities, each once.
        per_context: images of each.
        perturb: degrees by which each image's context is turned away from its identity's, in a direction of its own;
            two: the angle is drawn between them.
    """

    contexts: Tensor
    ids: Sequence[str]
    per_context: int
    perturb: float | tuple[float, float] = 0.0


def choose_negatives(order: Order, sampling: Sampling) -> NegativeChoice:
    """Return the negative contexts of all identities.

    Raises:
        UserError: contexts, names or settings cannot be used.
    """
    if len(order.ids) != len(order.contexts) or len(set(order.ids)) != len(order.ids):
        repeated = [f", {name!r} {times} times" for name, times in Counter(order.ids).items() if times > 1]
        raise UserError(
            f"contexts: expected one name each, all different, found {len(set(order.ids))} names of "
            f"{len(order.contexts)} contexts{repeated[0] if repeated else ''}"
        )
    return choose_negative_contexts(order.contexts, sampling.negative, sampling.seed)


def write_generated(
    model: ContextGenerator,
    order: Order,
    choice: NegativeChoice,
    sampling: Sampling,
    out: Path,
    *,
    guidance: IdentityGuidance | None = None,
    rank: int = 0,
    size: int = 1,
) -> None:
    """Write the images of process `rank` of `size` as `out`/images/IDENTITY/NUMBER.png; those that are there stay.

    `guidance`, if any, is towards `order.contexts`, beside the one of `sampling`.

    Each file appears whole or not at all. Initial noise depends on (seed, identity, number) alone, so that neither the
    number of processes nor the batch size changes a picture by more than rounding (1/255).
    """
    items = [
        (row, number)
        for row in range(rank, len(order.ids), size)
        for number in range(order.per_context)
        if not (out / image_path(order.ids[row], number)).exists()
    ]
    together = sampling.images_at_once(model.device)
    with progress_bar("generate", len(items)) as advance:
        for start in range(0, len(items), together):
            part = items[start : start + together]
            rows = torch.tensor([row for row, _ in part])
            seeds = [image_seed(sampling.seed, order.ids[row], number) for row, number in part]
            negatives = (
                order.contexts[choice.indices[rows]] if choice.indices[rows[0]] != NO_CONTEXT else None
            )
            asked = _asked(order, part, sampling.seed)
            images = sample_images(model, asked, seeds, sampling, negatives, guidance, rows)
            for (row, number), image in zip(part, images, strict=True):
                _write(out / image_path(order.ids[row], number), image)
            advance(len(part))


def write_samples_table(order: Order, choice: NegativeChoice, sampling: Sampling, out: Path) -> Path:
    """Write `out`/samples.parquet, a row an image, and return its path.

    Columns: context_id, negative_id and cosine (between the two; both null where no context is the negative one),
    number, seed (of the image's noise), file (from `out`).
    """
    import pyarrow as pa

    indices, cosines = choice.indices.tolist(), choice.cosine.tolist()
    rows = [
        {
            "context_id": name,
            "negative_id": None if index == NO_CONTEXT else order.ids[index],
            "cosine": None if index == NO_CONTEXT else cosine,
            "number": number,
            "seed": image_seed(sampling.seed, name, number),
            "file": image_path(name, number),
        }
        for name, index, cosine in zip(order.ids, indices, cosines, strict=True)
        for number in range(order.per_context)
    ]
    schema = pa.schema(
        [
            ("context_id", pa.string()),
            ("negative_id", pa.string()),
            ("cosine", pa.float32()),
            ("number", pa.int32()),
            ("seed", pa.int64()),
            ("file", pa.string()),
        ]
    )
    write_table(out / TABLE, pa.Table.from_pylist(rows, schema=schema))
    return out / TABLE


def image_path(identity: str, number: int) -> str:
    """Return where an image lies below the output folder; characters that a folder's name may not have become %XX."""
    folder = quote(identity, safe=" ()+,@=")
    if not folder.strip("."):
        folder = folder.replace(".", "%2E")
    return f"{IMAGES}/{folder or '%'}/{number:05d}.png"


def _asked(order: Order, part: list[tuple[int, int]], seed: int) -> Tensor:
    """Return the contexts (B, D) of images, each turned by its own draw."""
    contexts = order.contexts[torch.tensor([row for row, _ in part])]
    if not order.perturb:
        return contexts
    turned = [
        perturbed_contexts(one[None], order.perturb, step_seed(seed, f"perturbed:{order.ids[row]}", number))
        for one, (row, number) in zip(contexts, part, strict=True)
    ]
    return torch.cat(turned)


def _write(path: Path, image: Tensor) -> None:
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    with atomic_path(path) as temporary:
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(temporary, format="PNG")
