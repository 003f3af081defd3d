"""The thin layer over Accelerate: it changes nothing where there is nothing to do, and refuses in words."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from diffinf.errors import UserError
from diffinf.training.acceleration import Acceleration, find_tracker, resolve_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_one_process_in_float32_is_left_alone() -> None:
    acceleration = Acceleration(CPU)
    assert (acceleration.precision, acceleration.size, acceleration.leads) == ("float32", 1, True)
    assert acceleration.state == {} and acceleration.share(7) == slice(0, 7)
    module = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    forward = module.forward
    prepared, stepper = acceleration.prepare(module, optimizer)
    assert prepared is module and module.forward == forward
    before = module.bias.detach().clone()
    acceleration.backward(module(torch.ones(4, 3)).sum())
    acceleration.clip(module.parameters(), 1e9)
    stepper.step()
    torch.testing.assert_close(module.bias, before - 0.4)
    means = acceleration.means({"loss": torch.tensor(0.1), "v": torch.tensor(2.0)}, 1.0)
    assert means == {"loss": float(torch.tensor(0.1)), "v": 2.0}


def test_another_precision_can_follow_in_one_process() -> None:
    for precision, dtype in (
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("auto", torch.float32),
    ):
        acceleration = Acceleration(CPU, precision=precision)  # type: ignore[arg-type]
        with acceleration.autocast():
            assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype
        module = nn.Linear(2, 2)
        prepared, _ = acceleration.prepare(module, torch.optim.SGD(module.parameters()))
        out = prepared(torch.ones(1, 2))
        assert out.dtype == torch.float32  # losses are
        assert module.weight.dtype == torch.float32
        (out.sum()).backward()
        assert module.weight.grad is not None and module.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("has", [False, True])
def test_auto_is_bfloat16_where_the_gpu_has_it(monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    assert resolve_precision("auto", CUDA) == ("bfloat16" if has else "float32")
    assert resolve_precision("auto", CPU) == "float32"
    assert resolve_precision("float16", CUDA) == "float16"
    if has:
        assert resolve_precision("bfloat16", CUDA) == "bfloat16"
    else:
        with pytest.raises(UserError, match="does not compute in bfloat16"):
            resolve_precision("bfloat16", CUDA)


def test_float16_needs_a_gpu() -> None:
    with pytest.raises(UserError, match="float16 needs a GPU, the device is cpu"):
        Acceleration(CPU, precision="float16")


def test_batches_are_split_without_rest() -> None:
    acceleration = Acceleration(CPU)
    for size in (1, 2, 3, 5):
        parts = []
        for rank in range(size):
            acceleration.rank, acceleration.size = rank, size
            part = acceleration.share(7)
            parts += list(range(7))[part]
            assert part.stop > part.start
        assert parts == list(range(7))
    acceleration.size = 8
    with pytest.raises(UserError, match="7 samples cannot be split over 8 processes"):
        acceleration.share(7)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_missing_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setattr("diffinf.training.acceleration.find_spec", lambda _: None)
    with pytest.raises(UserError, match=f"{name} is not installed; `pip install {name}`"):
        Acceleration(CPU, tracker=name, directory=tmp_path)
    monkeypatch.setattr("diffinf.training.acceleration.find_spec", lambda _: SimpleNamespace())
    assert find_tracker(name) == [name] and find_tracker("none") == []


def test_importing_it_is_light() -> None:
    import subprocess

    code = "import sys, diffinf.training.acceleration; print('accelerate' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
