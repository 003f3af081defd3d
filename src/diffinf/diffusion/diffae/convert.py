"""Import of released DiffAE checkpoints: nothing is executed, and every tensor is used or named in an error."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from diffinf.diffusion.diffae.autoencoder import HEADS_FILE, HEADS_WEIGHTS_FILE, DiffAE
from diffinf.diffusion.diffae.config import DiffAEConfig, infer_config, named_config
from diffinf.diffusion.diffae.network import DiffAENetwork
from diffinf.errors import UserError
from diffinf.files import file_sha256, load_tensors

Tensors = dict[str, Tensor]
_STATISTICS = ("conds_mean", "conds_std")
_EXTRAS = ("x_T", "conds", *_STATISTICS)
# Lightning before 1.5 keys the state of its callbacks by their classes. They are only named, never called.
_NAMED_ONLY = ("pytorch_lightning.callbacks.", "lightning.pytorch.callbacks.")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_ZIP_START = b"PK\x03\x04"


@dataclass(frozen=True)
class Report:
    """What an import found.

    Attributes:
        config: of the network.
        tensors: number of the network's tensors.
        parameters: number of their values.
        notes: what was decided, a sentence each.
    """

    config: DiffAEConfig
    tensors: int
    parameters: int
    notes: list[str]


def import_diffae(
    checkpoint: Path, out: Path, *, config: str | None = None, latent_statistics: Path | None = None
) -> Report:
    """Write the DiffAE in a released checkpoint to the folder `out`, in float32, without original code.

    Args:
        checkpoint: a Lightning checkpoint or a file of a state dict (both as torch writes them), or safetensors.
        out: folder to write; replaced if it holds an imported DiffAE, whose fitted heads are removed.
        config: a preset's name or a JSON file; none: from the shapes.
        latent_statistics: file with conds_mean and conds_std, which normalise the codes.

    Raises:
        UserError: a file is missing, damaged, compressed, needs code to be run, or its tensors are not a DiffAE's;
            or `out` is taken.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / "diffae.json").is_file()):
        raise UserError(f"{out}: expected a new folder, or one of an earlier import; choose another")
    notes: list[str] = []
    tensors, extras = _sorted_tensors(read_tensors(checkpoint), checkpoint, notes)
    try:
        found = _configured(tensors, extras, config, notes)
        _check_shapes(found, tensors)
    except UserError as error:
        raise UserError(f"{checkpoint}: {error}") from error
    weights = _float32(tensors, checkpoint, notes)
    with torch.device("meta"):
        network = DiffAENetwork(found)
    network.load_state_dict(weights, assign=True)
    model = DiffAE(found, network)
    if (statistics := _statistics(extras, checkpoint, latent_statistics, found, notes)) is not None:
        model.set_statistics(*statistics)
    _remove_heads(out, notes)
    model.save(out, {"file": checkpoint.name, "sha256": file_sha256(checkpoint), "notes": notes})
    return Report(found, len(weights), sum(values.numel() for values in weights.values()), notes)


def _remove_heads(folder: Path, notes: list[str]) -> None:
    """Remove heads that were fitted to the weights of an earlier import: they would read the new codes wrongly."""
    for name in (HEADS_FILE, HEADS_WEIGHTS_FILE):
        if (folder / name).exists():
            (folder / name).unlink()
            notes.append(f"removed {name}, fitted to the weights that were there before")


class _Named:
    """Stands for a class that a checkpoint only names; it takes any arguments and does nothing with them."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        return super().__new__(cls)


def read_tensors(path: Path) -> Tensors:
    """Return the tensors in a checkpoint, on the CPU; nothing in it is executed.

    Raises:
        UserError: the file is missing, damaged, compressed, needs code to be run, or holds something else.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a checkpoint (.ckpt, .pt, .pth, .safetensors)")
    if path.suffix.lower() == ".safetensors":
        return load_tensors(path)
    content = _load(path)
    inner = _entries(content).get("state_dict", content)
    state = _entries(inner)
    if not state:
        raise UserError(
            f"{path}: expected a state_dict of tensors by name, found {type(inner).__name__}"
            + (" without entries" if isinstance(inner, dict) else "")
        )
    tensors: Tensors = {}
    for name, value in state.items():
        if not isinstance(name, str):
            raise UserError(
                f"{path}: expected a state_dict of tensors by name, found a {type(name).__name__}"
            )
        if not isinstance(value, Tensor):
            raise UserError(f"{path}: {name}: expected a tensor, found {type(value).__name__}")
        tensors[name] = _dense(value, f"{path}: {name}")
    return tensors


def _entries(value: Any) -> dict[Any, Any]:
    """Return a plain copy of a dict; empty for anything else.

    The methods of an unpickled OrderedDict are not asked, since a file can put others in their place.
    """
    return dict(dict.items(value)) if isinstance(value, dict) else {}


def _dense(value: Tensor, where: str) -> Tensor:
    """Return the bare tensor, without attributes and gradient; a UserError unless all of it lies in the file."""
    plain = Tensor.detach(value)
    if plain.layout is not torch.strided or plain.device.type != "cpu" or plain.is_quantized:
        kind = "a quantized" if plain.is_quantized else f"a {plain.layout} {plain.device.type}"
        raise UserError(f"{where}: expected a dense tensor with its values, found {kind} one")
    # A view can repeat few values without end, which would fill the memory.
    if plain.numel() * plain.element_size() > plain.untyped_storage().nbytes():
        raise UserError(f"{where}: expected all {plain.numel()} values in the file, found a view of fewer")
    return plain


def _load(path: Path) -> Any:
    names: list[str] = []
    try:
        with path.open("rb") as file:
            zipped = file.read(len(_ZIP_START)) == _ZIP_START  # which is how torch decides, too
        if zipped:
            _check_archive(path)
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        inert: list[Any] = [(_Named, name) for name in names if name.startswith(_NAMED_ONLY)]
        with torch.serialization.safe_globals(inert), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of another age; what matters raises
            # Mapped, not read: the optimizer's state beside the weights is twice their size.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        refused = [name for name in names if not name.startswith(_NAMED_ONLY)]
        if refused:
            raise UserError(
                f"{path}: refused, since reading it would run code: it names {', '.join(refused[:3])}; expected "
                "tensors and plain values. Save its state_dict alone where you trust the file"
            ) from error
        raise UserError(
            f"{path}: refused: not a file of tensors and plain values ({_first_line(error)}); reading anything "
            "else could run code, or the file is damaged"
        ) from error
    except (
        Exception
    ) as error:  # damaged pickles raise nearly anything: IndexError, AssertionError, MemoryError ...
        raise UserError(
            f"{path}: damaged or not a checkpoint ({_first_line(error)}); download it again"
        ) from error


def _check_archive(path: Path) -> None:
    """Raise a UserError for a compressed member, and an error of any kind for one that misses its checksum.

    Torch maps the members as they lie in the file and looks at neither. A member is read by pieces.
    """
    with zipfile.ZipFile(path) as archive:
        # Not testzip, which of two members of one name reads the last one twice.
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise UserError(
                    f"{path}: {member.filename} in it is compressed, expected an archive as torch.save writes it; "
                    "unpack it and pack it again without compression (zip -0), or download the original"
                )
            with archive.open(member) as stored:
                while stored.read(1 << 20):
                    pass


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]


def _sorted_tensors(tensors: Tensors, source: Path, notes: list[str]) -> tuple[Tensors, Tensors]:
    """Return the network's tensors without prefixes (averaged ones where there are some), and the extras."""
    groups: dict[str, Tensors] = {"ema_model.": {}, "model.": {}, "": {}}
    for name, value in tensors.items():
        bare = name.removeprefix("module.")
        kind = next(prefix for prefix in groups if bare.startswith(prefix))
        short = bare.removeprefix(kind).removeprefix("module.")
        if short in groups[kind]:
            raise UserError(f"{source}: {name}: there twice, with and without module. in front")
        groups[kind][short] = value
    extras = {name: groups[""].pop(name) for name in _EXTRAS if name in groups[""]}
    chosen = next((prefix for prefix, group in groups.items() if group), None)
    if chosen is None:
        raise UserError(
            f"{source}: no tensors of a network in it; expected ema_model.*, model.* or bare names"
        )
    network = groups[chosen]
    _refuse_other_networks(groups, chosen, source)
    for prefix, group in groups.items():
        # The plain copy beside the averaged one is accounted for, tensor by tensor, and left out.
        odd = set(group) ^ set(network) if group and prefix == "model." else set(group)
        if prefix != chosen and odd:
            raise UserError(f"{source}: unknown tensors: {_listed({prefix + name for name in odd})}")
    if chosen == "ema_model.":
        notes.append("took the averaged weights (ema_model)")
    elif chosen == "model.":
        notes.append("there are no averaged weights (ema_model) in it: took the plain ones (model)")
    return network, extras


def _refuse_other_networks(groups: Mapping[str, Tensors], chosen: str, source: Path) -> None:
    """Raise a UserError for a latent DPM and for a DDPM without a semantic encoder."""
    for prefix, group in groups.items():
        latent = {prefix + name for name in group if name.startswith("latent_net.")}
        if latent:
            raise UserError(
                f"{source}: a checkpoint with a latent DPM, which is not imported: {_listed(latent)}; import the "
                "autoencoder's own checkpoint, with this one's statistics by --latent-statistics"
            )
    network = groups[chosen]
    if not any(name.startswith("encoder.") for name in network):
        raise UserError(
            f"{source}: no semantic encoder in it (no {chosen}encoder.* among {len(network)} tensors): a DDPM, "
            f"or something else, such as {_listed(set(network))}; expected a DiffAE autoencoder"
        )


def _listed(names: set[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _configured(tensors: Tensors, extras: Tensors, name: str | None, notes: list[str]) -> DiffAEConfig:
    """Return the configuration, from its name or from the shapes; x_T tells the images' size."""
    shape = tuple(extras["x_T"].shape) if "x_T" in extras else None
    if shape is not None and (len(shape) != 4 or shape[2] != shape[3]):
        raise UserError(f"x_T: expected (N, C, H, H), found {shape}")
    side = shape[3] if shape else None
    if name is not None:
        config = named_config(name)
        notes.append(f"configuration: {name}")
    else:
        config = infer_config({key: tuple(value.shape) for key, value in tensors.items()}, side)
        origin = "as x_T has it" if side else "taking the deepest attention to be at 16 px"
        notes.append(
            f"configuration: from the shapes; {config.image_size} px, {origin}; taken as in all released networks, "
            f"since shapes do not tell: {config.num_heads} attention head, {config.timesteps} linear noise levels"
        )
    if shape is not None:
        expected = (config.image_channels, config.image_size, config.image_size)
        if shape[1:] != expected:
            raise UserError(f"x_T: expected (N, {', '.join(map(str, expected))}), found {shape}")
        notes.append("left out x_T, the noise that the original's training pictures started from")
    return config


def _check_shapes(config: DiffAEConfig, tensors: Tensors) -> None:
    """Raise a UserError that names the tensors that are missing, unknown or of another shape."""
    with torch.device("meta"):
        expected = DiffAENetwork(config).state_dict()
    if unknown := set(tensors) - set(expected):
        raise UserError(f"unknown tensors: {_listed(unknown)}")
    if missing := set(expected) - set(tensors):
        raise UserError(f"missing tensors: {_listed(missing)}")
    for name, value in expected.items():
        if tensors[name].shape != value.shape:
            raise UserError(f"{name}: expected {tuple(value.shape)}, found {tuple(tensors[name].shape)}")


def _float32(tensors: Tensors, source: Path, notes: list[str]) -> Tensors:
    """Return the tensors in float32; a UserError names one that is not of finite floats."""
    kinds = sorted({str(value.dtype).removeprefix("torch.") for value in tensors.values()})
    converted = {name: _finite(value, f"{source}: {name}") for name, value in tensors.items()}
    if kinds != ["float32"]:
        notes.append(f"converted {', '.join(kinds)} to float32")
    return converted


def _finite(values: Tensor, where: str) -> Tensor:
    if values.dtype not in _FLOATS:
        raise UserError(f"{where}: expected finite floats, found {values.dtype}")
    converted = values.float()
    # Looked at afterwards: a float64 can be finite and too large for float32.
    if not converted.isfinite().all():
        raise UserError(f"{where}: expected finite floats in the range of float32, found others")
    return converted


def _statistics(
    extras: Tensors, source: Path, file: Path | None, config: DiffAEConfig, notes: list[str]
) -> tuple[Tensor, Tensor] | None:
    """Return mean and standard deviation (D,) of the codes, of the file if given, else of the checkpoint."""
    if file is not None:
        found = read_tensors(file)
        beside = ("model.", "ema_model.")  # of a latent DPM's checkpoint, which has the statistics too
        if unknown := {name for name in found if name not in _EXTRAS and not name.startswith(beside)}:
            raise UserError(f"{file}: unknown tensors: {_listed(unknown)}; expected conds_mean and conds_std")
    else:
        found = extras
    origin = source if file is None else file
    present = [name for name in _STATISTICS if name in found]
    if not present and file is None:
        notes.append("no statistics of the codes in it: they will be those of the dataset it is fitted to")
        return None
    if len(present) < 2:
        raise UserError(f"{origin}: expected both conds_mean and conds_std, found {present or 'neither'}")
    for name in _STATISTICS:
        if found[name].numel() != config.semantic_channels:
            raise UserError(
                f"{origin}: {name}: expected {config.semantic_channels} finite values, found "
                f"{tuple(found[name].shape)}"
            )
    mean, std = (_finite(found[name], f"{origin}: {name}").flatten() for name in _STATISTICS)
    if (std <= 0).any():
        raise UserError(f"{origin}: conds_std: expected values above 0, found {float(std.min()):.3g}")
    notes.append(f"codes are normalised by conds_mean and conds_std of {origin.name}")
    return mean, std
