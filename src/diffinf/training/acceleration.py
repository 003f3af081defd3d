"""Mixed precision, several processes and trackers, through Hugging Face Accelerate: the one place that knows it.

On one process in float32 it adds nothing to a training: no wrapper around modules, nothing drawn, the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from diffinf.errors import UserError

Precision = Literal["auto", "float32", "bfloat16", "float16"]
_NAMES = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}  # Accelerate's


def resolve_precision(
    precision: Precision, device: torch.device, section: str = "autoencoder"
) -> Literal["float32", "bfloat16", "float16"]:
    """Return the precision to compute in on `device`: "auto" is bfloat16 on a GPU that has it, else float32.

    Raises:
        UserError: the device does not have the precision that was asked for.
    """
    cuda = device.type == "cuda"
    has_bfloat16 = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "auto":
        return "bfloat16" if has_bfloat16 else "float32"
    if precision == "float16" and not cuda:
        raise UserError(
            f"{section}.precision: float16 needs a GPU, the device is {device}; choose auto or float32"
        )
    if precision == "bfloat16" and cuda and not has_bfloat16:
        raise UserError(
            f"{section}.precision: this GPU does not compute in bfloat16; choose auto, float32 or float16"
        )
    return precision


def find_tracker(name: str, section: str = "autoencoder") -> list[Any]:
    """Return what Accelerate is to log with.

    Raises:
        UserError: the package is not installed; the message names the command that installs it.
    """
    if name == "none":
        return []
    if find_spec(name) is None:
        raise UserError(
            f"{section}.tracker: {name} is not installed; `pip install {name}`, or set {section}.tracker=none"
        )
    return [name]


class Acceleration:
    """This process among those that train together (torchrun starts them), its precision and its tracker."""

    def __init__(
        self,
        device: torch.device,
        *,
        precision: Precision = "auto",
        tracker: str = "none",
        directory: Path | None = None,
        section: str = "autoencoder",
    ) -> None:
        """Join the other processes, if torchrun started some.

        Args:
            device: where this process computes.
            precision: of activations and gradients; the weights stay in float32.
            tracker: "none", "tensorboard", "wandb" or "trackio".
            directory: where a tracker may write.
            section: of the settings, for messages.

        Raises:
            UserError: the device does not have the precision, or the tracker is not installed.
        """
        self.device, self._section = device, section
        self.precision = resolve_precision(precision, device, section)
        log_with = find_tracker(tracker, section)
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        # Accelerate keeps one state a process, and refuses another precision than that of an earlier training.
        AcceleratorState._reset_state(reset_partial_state=True)
        self._accelerator = Accelerator(
            device_placement=False,
            mixed_precision=_NAMES[self.precision],
            cpu=device.type == "cpu",
            log_with=log_with or None,
            project_dir=None if directory is None else str(directory),
        )
        self._tracks = bool(log_with)
        self.rank: int = self._accelerator.process_index
        self.size: int = self._accelerator.num_processes

    @property
    def leads(self) -> bool:
        """Whether this process writes the results."""
        return self.rank == 0

    @property
    def state(self) -> dict[str, Any]:
        """What must be saved and restored beside modules and optimisers: the scale of float16 gradients."""
        scaler = self._accelerator.scaler
        return {} if scaler is None else {"scaler": scaler}

    def share(self, batch_size: int) -> slice:
        """Return this process's rows of a batch that all processes draw alike.

        Raises:
            UserError: there are more processes than samples in a batch.
        """
        if batch_size < self.size:
            raise UserError(
                f"{self._section}.batch_size: {batch_size} samples cannot be split over {self.size} processes; "
                "raise it, or start fewer processes"
            )
        return slice(batch_size * self.rank // self.size, batch_size * (self.rank + 1) // self.size)

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """Return what to call and to step instead: in mixed precision, with gradients averaged over the processes."""
        return cast(tuple[nn.Module, Any], self._accelerator.prepare(module, optimizer))

    def autocast(self) -> AbstractContextManager[None]:
        """Compute in the chosen precision inside the block, for what is not called through `prepare`."""
        return cast(AbstractContextManager[None], self._accelerator.autocast())

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients, scaled where float16 needs it."""
        self._accelerator.backward(loss)

    def clip(self, parameters: Iterable[nn.Parameter], norm: float) -> None:
        """Bring the gradients of `parameters` to at most `norm` together."""
        self._accelerator.clip_grad_norm_(parameters, norm)

    def means(self, scalars: Mapping[str, Tensor], weight: float) -> dict[str, float]:
        """Return scalars averaged over the processes, this one's with `weight` (all of them sum to their number)."""
        stacked = torch.stack([value.detach().float() for value in scalars.values()])
        if self.size > 1:
            stacked = self._accelerator.reduce(stacked * weight, reduction="mean")
        return dict(zip(scalars, stacked.tolist(), strict=True))

    def agree(self, module: nn.Module) -> None:
        """Give `module` the weights and buffers that it has in the first process."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                torch.distributed.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            self._accelerator.wait_for_everyone()

    def start_tracking(self, name: str, settings: Mapping[str, Any]) -> None:
        """Begin to log under `name`, with the settings as text."""
        if self._tracks:
            self._accelerator.init_trackers(name, config={key: str(value) for key, value in settings.items()})

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log scalars at a step."""
        if self._tracks:
            self._accelerator.log(dict(values), step=step)

    def finish_tracking(self) -> None:
        """Write what the tracker still holds."""
        if self._tracks:
            for tracker in self._accelerator.trackers:
                if self.leads or not tracker.main_process_only:
                    tracker.finish()
