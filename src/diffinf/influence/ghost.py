"""Exact per-sample squared gradient norms from one forward and one backward of a batch.

Every call that a parameter takes part in is seen (`capture.py`: a torch function mode, so functional uses
and shared weights are seen too). Calls with a closed form (`rules.py`) leave a hook on their output; when
the gradient arrives there, the parameter's per-sample norm is computed and the arrays are let go
(`pieces.py`, `forms.py`). Parameters themselves need no gradient meanwhile, which saves the backward its weight half. A
parameter with any call that has no closed form goes to an exact per-sample fallback, and the first batch is
checked against autograd (arXiv 1510.01799, 2110.05679).
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffinf.errors import UserError
from diffinf.influence.capture import Capture
from diffinf.influence.fallback import looped_norms, vectorised_norms
from diffinf.influence.losses import PerSampleLoss, check_labels, per_sample_loss

logger = logging.getLogger(__name__)

Scope = Literal["all", "head"] | Sequence[str]

_TOLERANCE = 1e-3
# Below this share of the sample's whole squared norm a parameter's part is rounding (attention's key bias:
# exactly 0).
_NEGLIGIBLE = 1e-9
# Where timm's attention keeps, between calls of a model in eval mode, what it looked up in a parameter: the
# parameter would be hidden from the next call.
_CACHE = "attention_bias_cache"


class FallbackWarning(UserWarning):
    """Some parameters have no fast rule; their exact norms take a per-sample gradient each."""


def squared_gradient_norms(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    scope: Scope = "all",
    loss: PerSampleLoss | str | None = None,
) -> Tensor:
    """Exact ||∇_θ loss(f_θ(x_i), y_i)||² of every sample, from one forward and one backward of the batch.

    The model runs in eval mode and is left as it was found: flags, mode, buffers, `.grad`. One sample is
    checked against autograd, parameter by parameter; for many batches of one model use `GradientNorms`,
    which checks once.

    Args:
        model: takes `images`; its output goes to `loss`.
        images: (N, C, H, W), or whatever the model takes; axis 0 is the batch.
        labels: (N,) class indices, or what `loss` takes; axis 0 is the batch.
        scope: "all" parameters (whatever their gradient flags say), the "head" (the classifier's last linear
            layer), or the names of parameters or modules.
        loss: `loss(output, labels) -> (N,)`, or the name of one in `losses.py`; cross-entropy when None.

    Returns:
        (N,) on the model's device; float32, or float64 for a float64 model. +inf where a gradient is not
        finite.

    Raises:
        UserError: labels that the loss cannot take, NaN outputs, a name in `scope` that is not there, or a
            loss that is not per sample.
    """
    return GradientNorms(model, scope=scope, loss=loss)(images, labels)


class GradientNorms:
    """`squared_gradient_norms` for many batches of one model: the check against autograd is done once.

    `fallback` names the parameters (with the reason) that take the slow exact way; it grows as they are
    found. `describe` turns a row of the batch into the name by which messages call that sample.
    """

    def __init__(
        self, model: nn.Module, *, scope: Scope = "all", loss: PerSampleLoss | str | None = None
    ) -> None:
        """Choose the parameters; UserError for a `scope` or a `loss` that is not there."""
        self.model = model
        self.loss: PerSampleLoss = per_sample_loss(loss)
        self.names = tuple(_scope_names(model, scope))
        self.fallback: dict[str, str] = {}
        self.describe: Callable[[int], str] = "sample {} of the batch".format
        self._unverified = True
        self._vectorise = True

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """(N,); see `squared_gradient_norms`."""
        parts = list(self.breakdown(images, labels).values())
        total = torch.stack(parts).sum(0) if parts else images.new_zeros(len(images))
        return torch.nan_to_num(total, nan=torch.inf, posinf=torch.inf)

    def breakdown(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """What each parameter contributes: {name: (N,)}, in the model's order. The sum is the squared
        norm."""
        if len(images) != len(labels):
            raise UserError(f"{len(images)} images but {len(labels)} labels: give one label for each image.")
        if len(images) == 0:
            return {name: torch.zeros(0, device=images.device) for name in self.names}
        single = len(images) == 1
        with _as_found(self.model), torch.inference_mode(False), torch.enable_grad():
            # Tensors made in inference mode cannot take part in a backward; a copy can.
            images, labels = (
                x.clone() if x.is_inference() else x for x in (images.detach(), labels.detach())
            )
            if single:  # never a batch of one: see `looped_norms`
                images, labels = images[[0, 0]], labels[[0, 0]]
            fast = self._fast(images, labels)
            slow = self._slow(self.fallback, images, labels)
            if self._unverified:
                self._verify(fast, slow, images, labels)
                # One sample alone cannot show that samples are kept apart: the check waits for company.
                self._unverified = single
        found = {name: slow[name] if name in slow else fast[name] for name in self.names}
        return {name: value[:1] for name, value in found.items()} if single else found

    def _fast(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One forward and one backward; parameters found to have no closed form are added to `fallback`."""
        tracked = {
            n: p for n, p in self.model.named_parameters() if n in self.names and n not in self.fallback
        }
        capture = Capture(tracked, len(images))
        with capture:
            output = self.model(images)
        values = self._checked_loss(output, labels, len(images))
        capture.settle()
        if values.requires_grad and capture.trigger is not None:
            torch.autograd.grad(values.sum(), capture.trigger, allow_unused=True)
        norms = capture.finish()
        for name, reason in capture.refused.items():
            self.fallback[name] = reason
        if capture.refused:
            self._announce(capture.refused)
        zero = values.new_zeros(len(images), dtype=torch.promote_types(values.dtype, torch.float32)).detach()
        return {name: norms.get(name, zero) for name in tracked if name not in self.fallback}

    def _checked_loss(self, output: Any, labels: Tensor, batch: int) -> Tensor:
        check_labels(self.loss, output, labels, self.describe)
        if isinstance(output, Tensor) and output.is_floating_point() and bool(output.isnan().any()):
            rows = output.isnan().reshape(len(output), -1).any(1).nonzero().flatten().tolist()
            raise UserError(
                f"the model returns NaN for {self.describe(rows[0])} ({len(rows)} of {batch} samples of the batch): "
                "expected finite outputs. Check the checkpoint (a diverged training?) and the images' range."
            )
        values = self.loss(output, labels)
        if values.shape != (batch,):
            raise UserError(
                f"the loss returned shape {tuple(values.shape)}, expected ({batch},): one value a sample. "
                'Use reduction="none".'
            )
        return values

    def _slow(
        self, names: Sequence[str] | dict[str, str], images: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        if not names:
            return {}
        if self._vectorise:
            try:
                return vectorised_norms(self.model, list(names), images, labels, self.loss)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever a model does that vmap cannot: one sample at a time can
                logger.info("no vectorised fallback (%s); one sample at a time instead", error)
                self._vectorise = False
        return looped_norms(self.model, list(names), images, labels, self.loss)

    def _verify(
        self, fast: dict[str, Tensor], slow: dict[str, Tensor], images: Tensor, labels: Tensor
    ) -> None:
        """Compare the sample with the largest finite norm with autograd; move what disagrees to the
        fallback."""
        total = torch.stack([*fast.values(), *slow.values()]).sum(0)
        row = int(torch.where(total.isfinite(), total, -1.0).argmax())
        if not bool(total[row].isfinite()):
            return
        one = slice(row, row + 1)
        truth = looped_norms(self.model, self.names, images[one], labels[one], self.loss)
        whole = float(torch.stack(list(truth.values())).sum())
        if not torch.isfinite(torch.tensor(whole)):
            return

        def differs(found: Tensor, name: str) -> bool:
            expected = float(truth[name][0])
            return abs(float(found[row]) - expected) > _TOLERANCE * expected + _NEGLIGIBLE * whole

        wrong = {n: "disagrees with autograd" for n, value in fast.items() if differs(value, n)}
        if any(differs(value, name) for name, value in slow.items()):
            logger.info("the vectorised fallback disagrees with autograd; one sample at a time instead")
            self._vectorise = False
            slow.update(self._slow(list(slow), images, labels))
        if wrong:
            self.fallback.update(wrong)
            self._announce(wrong)
            slow.update(self._slow(wrong, images, labels))

    def _announce(self, reasons: dict[str, str]) -> None:
        shown = ", ".join(f"{name} ({reason})" for name, reason in list(reasons.items())[:8])
        more = "" if len(reasons) <= 8 else f" and {len(reasons) - 8} more"
        warnings.warn(
            f"{len(reasons)} of {len(self.names)} parameters of {type(self.model).__name__} take the exact "
            f"per-sample fallback: {shown}{more}",
            FallbackWarning,
            stacklevel=5,
        )


def _scope_names(model: nn.Module, scope: Scope) -> list[str]:
    every = [name for name, _ in model.named_parameters()]
    if scope == "all":
        return every
    if scope == "head":
        head = _head(model)
        inside = {id(p) for p in head.parameters()}
        return [name for name, p in model.named_parameters() if id(p) in inside]
    wanted = [scope] if isinstance(scope, str) else list(scope)
    for entry in wanted:
        if not any(name == entry or name.startswith(entry + ".") for name in every):
            raise UserError(
                f'scope: "{entry}" is no parameter or module of {type(model).__name__}; expected "all", '
                f'"head" or names such as {", ".join(every[:3])}.'
            )
    return [n for n in every if any(n == entry or n.startswith(entry + ".") for entry in wanted)]


def _head(model: nn.Module) -> nn.Module:
    """The classifier layer: what timm calls it, else the last linear layer that is registered."""
    get_classifier = getattr(model, "get_classifier", None)
    head = get_classifier() if callable(get_classifier) else None
    if isinstance(head, nn.Module) and any(True for _ in head.parameters()):
        return head
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if not linears:
        raise UserError(
            f'scope "head": {type(model).__name__} has no linear layer; name its parameters instead.'
        )
    return linears[-1]


@contextlib.contextmanager
def _as_found(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradient flags inside; mode, flags and buffers as they were afterwards."""
    training: list[nn.Module] = []
    flagged: list[Tensor] = []
    buffers: list[tuple[Tensor, int, Tensor]] = []
    caches: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    hooks: list[torch.utils.hooks.RemovableHandle] = []
    for module in model.modules():  # one walk: for small batches four would be felt
        if module.training:
            training.append(module)
        flagged += [p for p in module._parameters.values() if p is not None and p.requires_grad]
        for b in module._buffers.values():
            if b is not None and not b.is_inference():
                buffers.append((b, b._version, b.detach().clone()))
        if _CACHE in module.__dict__:
            caches.append((cache := getattr(module, _CACHE), dict(cache)))
            hooks.append(module.register_forward_pre_hook(lambda m, _: getattr(m, _CACHE).clear()))
    try:
        if training:
            model.eval()
        for p in flagged:
            p.requires_grad_(False)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for cache, content in caches:
            cache.clear()
            cache.update(content)
        for module in training:
            module.training = True
        for p in flagged:
            p.requires_grad_(True)
        with torch.no_grad():
            for buffer, version, copy in buffers:
                if buffer._version != version:
                    buffer.copy_(copy)
