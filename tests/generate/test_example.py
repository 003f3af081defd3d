"""The example of negative context with a model of diffusers' own."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffinf.generate import random_contexts

EXAMPLE = Path(__file__).parents[2] / "examples" / "negative_context.py"


def test_it_writes_a_row_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "row.png"
    monkeypatch.setattr(sys, "argv", ["negative_context.py", str(out)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert Image.open(out).size == (8 * 16, 16)


def test_a_scale_of_zero_is_no_guidance_and_another_one_is() -> None:
    names = runpy.run_path(str(EXAMPLE))
    generate, unet = names["generate"], names["small_unet"]()
    contexts = random_contexts(3, names["CONTEXT_SIZE"])
    far, close = (generate(unet, contexts, scale=0.0, strategy=name, steps=3) for name in ("far", "close"))
    torch.testing.assert_close(far, close, atol=1e-6, rtol=0)
    assert not torch.allclose(far, generate(unet, contexts, scale=2.0, steps=3), atol=1e-4)
