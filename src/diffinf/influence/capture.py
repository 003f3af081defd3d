"""Sees every call that a parameter takes part in during one forward, and leaves hooks for the backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from diffinf.influence.forms import squared_norm
from diffinf.influence.pieces import Piece, can_join
from diffinf.influence.rules import ORDER_KEEPING_VIEWS, REORDERING_VIEWS, RULES


class _Start(torch.autograd.Function):
    """Makes an output part of the backward where nothing before it needs a gradient."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, trigger: Tensor) -> Tensor:
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        return None, None


@dataclass
class _Use:
    """One call of a parameter: how its piece is made, and the inputs that must not change until then."""

    make: Callable[[Tensor], Piece]
    saved: list[tuple[Tensor, int]]
    reordered: bool
    piece: Piece | None = None


@dataclass
class _Tracked:
    """A parameter, or a view of one with the same elements."""

    name: str
    tensor: Tensor
    reordered: bool = False


@dataclass
class _Parameter:
    uses: list[_Use] = field(default_factory=list)
    norm: Tensor | None = None


class Capture(TorchFunctionMode):
    """Sees every call that one of the parameters takes part in, during one forward."""

    def __init__(self, parameters: Mapping[str, Tensor], batch: int) -> None:
        """Watch the named parameters in a forward of `batch` samples."""
        super().__init__()
        self.batch = batch
        self.refused: dict[str, str] = {}
        self.trigger: Tensor | None = None
        self._tracked = {id(p): _Tracked(name, p) for name, p in parameters.items()}
        self._parameters = {name: _Parameter() for name in parameters}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the call; where a tracked parameter is among its arguments, note what its norm will need."""
        kwargs = kwargs or {}
        found = self._among(args) + (self._among(tuple(kwargs.values())) if kwargs else [])
        if not found:
            return func(*args, **kwargs)
        versions = [(x, x._version) for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        output = func(*args, **kwargs)
        if not isinstance(output, Tensor):
            # Shapes, devices and types carry no gradient; several tensors at once have no rule.
            if isinstance(output, tuple | list) and any(isinstance(x, Tensor) for x in output):
                self._refuse(found, func)
            return output
        if output.dtype == torch.bool or not torch.is_grad_enabled() or id(output) in self._tracked:
            return output
        is_view = func in ORDER_KEEPING_VIEWS or func in REORDERING_VIEWS
        if is_view and len(found) == 1 and output.numel() == found[0].tensor.numel():
            reordered = found[0].reordered or func in REORDERING_VIEWS
            self._tracked[id(output)] = _Tracked(found[0].name, output, reordered)
            return output
        return self._hooked(func, args, kwargs, found, versions, output)

    def _hooked(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        found: list[_Tracked],
        versions: list[tuple[Tensor, int]],
        output: Tensor,
    ) -> Tensor:
        rule = RULES.get(func)
        detached = [x.detach() if isinstance(x, Tensor) and id(x) not in self._tracked else x for x in args]
        parts = rule(self.batch, output, *detached, **kwargs) if rule is not None else None
        makers = {id(tensor): make for tensor, make in parts or []}
        self._refuse([t for t in found if id(t.tensor) not in makers], func)
        pending: list[tuple[str, _Use]] = []
        for tracked in found:
            make = makers.get(id(tracked.tensor))
            if make is not None:
                saved = [(x, v) for x, v in versions if id(x) not in self._tracked]
                pending.append((tracked.name, _Use(make, saved, tracked.reordered)))
        if not pending:
            return output
        if not output.requires_grad:
            if self.trigger is None:
                self.trigger = output.new_zeros((), requires_grad=True)
            # In place on a view, autograd would tie the parameter itself to the graph.
            own = output.clone() if output._is_view() else output
            output = _Start.apply(own, self.trigger)
        for name, use in pending:
            self._parameters[name].uses.append(use)
        hook = output.register_hook(lambda delta: self._arrive(pending, delta))  # type: ignore[no-untyped-call]
        self._hooks.append(hook)
        return output

    def _among(self, values: Sequence[Any]) -> list[_Tracked]:
        found: list[_Tracked] = []
        for value in values:
            if isinstance(value, Tensor):
                if id(value) in self._tracked:
                    found.append(self._tracked[id(value)])
            elif isinstance(value, list | tuple):
                found += self._among(value)
        return found

    def _refuse(self, found: Sequence[_Tracked], func: Any) -> None:
        for tracked in found:
            name = getattr(func, "__name__", str(func))
            self.refused.setdefault(tracked.name, f"no rule for {name}")

    def settle(self) -> None:
        """After the forward: views that were reordered cannot be added to other uses."""
        for name, parameter in self._parameters.items():
            if len(parameter.uses) > 1 and any(use.reordered for use in parameter.uses):
                self.refused.setdefault(name, "shared in different layouts")

    def _arrive(self, pending: list[tuple[str, _Use]], delta: Tensor) -> None:
        for name, use in pending:
            if name in self.refused:
                continue
            if any(tensor._version != version for tensor, version in use.saved):
                self.refused[name] = "its input is overwritten"
                continue
            piece = use.make(delta.detach())
            parameter = self._parameters[name]
            if len(parameter.uses) == 1:
                parameter.norm = squared_norm([piece])
            else:
                use.piece = piece

    def finish(self) -> dict[str, Tensor]:
        """After the backward: {name: (N,)} of the parameters that a gradient reached."""
        norms: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            pieces = [use.piece for use in parameter.uses if use.piece is not None]
            if name in self.refused:
                continue
            if parameter.norm is not None:
                norms[name] = parameter.norm
            elif pieces and can_join(pieces):
                norms[name] = squared_norm(pieces)
            elif pieces:
                self.refused[name] = "shared by layers of different shape"
        # Hooks hold the inputs and the graph holds the hooks: a circle that no garbage collector sees through, and
        # that would keep every batch in memory.
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._parameters.clear()
        self._tracked.clear()
        return norms
