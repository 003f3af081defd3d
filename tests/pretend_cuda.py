"""A GPU that is not there: tensors that say they are on `cuda:0` and are computed on the CPU.

Inside `pretend_cuda()` whatever asks for the device "cuda" gets tensors that refuse what those of a real GPU refuse:
to meet tensors of the CPU (but for single numbers, and indices into them), to draw from a generator of the CPU, to be
read as numpy arrays. Their values are real, so whole trainings and repairs run. To torch's C++ side they are on the
device "meta", which needs no driver; what Python asks (`device`, `is_cuda`) is answered by "cuda:0".

What it cannot show: the GPU's own kernels and their rounding, memory, speed, autocast (the numbers stay float32), and
several GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

CUDA, META, CPU = torch.device("cuda:0"), torch.device("meta"), torch.device("cpu")
_aten = torch.ops.aten
# Copies between devices, and those whose index may be on the CPU.
_CROSSING = {_aten.copy_.default, _aten._to_copy.default}
_INDEXING = {
    _aten.index.Tensor,
    _aten.index_put_.default,
    _aten.index_put.default,
    _aten._index_put_impl_.default,
}


class WrongDeviceError(RuntimeError):
    """What a real GPU would have refused."""


class OnCuda(Tensor):
    """A tensor of the pretended GPU; `inner` has the values."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnCuda:
        """Put a tensor of the CPU onto the pretended GPU, without a copy."""
        made: OnCuda = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=META,
        )
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:
        """Return what pytest shows."""
        return f"OnCuda({self.inner!r})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation on the values; its result is where a real GPU would leave it."""
    flat, spec = tree_flatten((args, kwargs))
    assert not any(type(x) is Tensor and x.device == META for x in flat), f"{func}: a tensor without values"
    here = [x for x in flat if isinstance(x, OnCuda)]
    device = kwargs.get("device")
    _refuse(func, args, kwargs, flat, bool(here))
    there = bool(here) if device is None else device.type == "meta"
    if not here and not there:
        return func(*args, **kwargs)
    plain = [
        x.inner if isinstance(x, OnCuda) else CPU if x == META and isinstance(x, torch.device) else x
        for x in flat
    ]
    inner_args, inner_kwargs = tree_unflatten(plain, spec)
    found = func(*inner_args, **inner_kwargs)
    known = {id(x.inner): x for x in here}

    def wrapped(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if id(x) in known:
            return known[id(x)]
        return OnCuda(x) if there else x

    result = tree_map(wrapped, found)
    return args[0] if func is _aten.copy_.default else result


def _refuse(func: Any, args: Any, kwargs: Any, flat: list[Any], here: bool) -> None:
    generator = kwargs.get("generator")
    device = kwargs.get("device")
    on_cuda = here if device is None else device.type == "meta"
    if generator is not None and on_cuda:
        raise WrongDeviceError(f"{func}: a generator of the CPU for a tensor on {CUDA}")
    if func in _CROSSING:
        return
    if func in _INDEXING:
        values = [args[0], *args[2:3]]
        if not isinstance(args[0], OnCuda) and any(isinstance(x, OnCuda) for x in args[1]):
            raise WrongDeviceError(f"{func}: indices on {CUDA} into a tensor of the CPU")
    else:
        values = flat
    tensors = [x for x in values if isinstance(x, Tensor)]
    if any(isinstance(x, OnCuda) for x in tensors) and any(
        x.ndim and not isinstance(x, OnCuda) for x in tensors
    ):
        raise WrongDeviceError(f"{func}: tensors on {CUDA} and on the CPU")


class _Operations(TorchDispatchMode):
    """Sees every operation, those that make a tensor out of nothing too."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # In inference mode operations arrive that are otherwise taken to pieces before: `cpu`, which may copy or not.
        if torch.is_inference_mode_enabled() and _is_composite(func):
            with self:
                found = func.decompose(*args, **kwargs or {})
            if found is not NotImplemented:
                return found
        return _compute(func, args, kwargs or {})


def _is_composite(func: Any) -> bool:
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key))


def _asked(value: Any) -> Any:
    if isinstance(value, torch.device):
        return META if value.type == "cuda" else value
    return META if isinstance(value, str) and value.partition(":")[0] == "cuda" else value


class _Names(TorchFunctionMode):
    """Says "cuda:0" to Python where C++ is told "meta"."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__get__" and args and isinstance(args[0], OnCuda):
            asked = getattr(getattr(func, "__self__", None), "__name__", "")
            if asked in ("device", "is_cuda", "is_meta"):
                return {"device": CUDA, "is_cuda": True, "is_meta": False}[asked]
        if func is torch.device:
            return func(*args, **kwargs or {})
        if name in ("__getitem__", "__setitem__") and isinstance(args[1], list):
            args = (args[0], torch.tensor(args[1]), *args[2:])  # as C++ would, but with values
        if name == "tolist" and isinstance(args[0], OnCuda):  # a copy to the CPU, on a real GPU too
            return args[0].inner.tolist()
        asked = {key: _asked(value) for key, value in (kwargs or {}).items()}
        if func in (torch.tensor, torch.as_tensor) and asked.get("device") == META:
            # From numbers: made without an operation that could be seen.
            return func(*args, **{**asked, "device": CPU}).to(META)
        if name == "new_tensor" and isinstance(args[0], OnCuda):
            return args[0].inner.new_tensor(*args[1:], **asked).to(META)
        return func(*(_asked(value) for value in args), **asked)


@contextmanager
def pretend_cuda() -> Iterator[torch.device]:
    """Have a GPU inside the block (one of two that the machine is said to have), and give its device."""
    state = torch.zeros(16, dtype=torch.uint8)
    stand_ins: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "current_device": lambda: 0,
        "is_bf16_supported": lambda including_emulation=True: True,
        "mem_get_info": lambda device=None: (2**30, 2**31),
        "get_rng_state": lambda device=None: state,
        "set_rng_state": lambda new, device=None: None,
        "manual_seed_all": lambda seed: None,
        "manual_seed": lambda seed: None,
        "empty_cache": lambda: None,
        "synchronize": lambda device=None: None,
        "set_device": lambda device: None,
        "_lazy_init": lambda: None,
    }
    no_graphs = mock.patch.object(
        torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda _: None
    )
    with mock.patch.multiple(torch.cuda, **stand_ins), no_graphs, _Names(), _Operations():
        yield torch.device("cuda")
