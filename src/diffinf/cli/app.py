"""The application, and the options that several commands share."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from diffinf import __version__
from diffinf.config import Policy as PolicyName

# As a user meets them; what is not named here comes last.
_ORDER = (
    *("demo", "inspect", "crop", "run", "train", "score", "train-autoencoder", "repair", "compare", "report"),
    *("detect", "restore", "edit", "predict", "export", "train-generator", "generate", "evaluate"),
    *("import-diffae", "render"),
)


class _InOrder(TyperGroup):
    """Lists the commands in the order of use, not of the files that define them."""

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))


app = typer.Typer(
    name="diffinf",
    cls=_InOrder,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DatasetOrRun = Annotated[
    str,
    typer.Argument(help="A dataset: folder, table, or a table's URL; or the directory of a run."),
]
RunPath = Annotated[Path, typer.Argument(help="The directory of a run.")]

DATA_PANEL = "Dataset"
Format = Annotated[
    str | None,
    typer.Option(
        "--format", help="Layout, such as celeba or table (default auto).", rich_help_panel=DATA_PANEL
    ),
]
Image = Annotated[
    str | None, typer.Option(help="Column with the image: path or bytes.", rich_help_panel=DATA_PANEL)
]
Label = Annotated[str | None, typer.Option(help="Column with the label.", rich_help_panel=DATA_PANEL)]
Root = Annotated[
    Path | None, typer.Option(help="Folder that image paths start from.", rich_help_panel=DATA_PANEL)
]
Id = Annotated[str | None, typer.Option("--id", help="Column with a stable id.", rich_help_panel=DATA_PANEL)]
Split = Annotated[
    str | None,
    typer.Option(
        help="Column with train, validation, test (default: split, if there; '' for none).",
        rich_help_panel=DATA_PANEL,
    ),
]
Identity = Annotated[
    str | None,
    typer.Option(
        help="Column naming the person (default: identity, if there; '' for none).",
        rich_help_panel=DATA_PANEL,
    ),
]
Group = Annotated[
    list[str] | None,
    typer.Option(
        "--group", help="Column that results are broken down by. Repeatable.", rich_help_panel=DATA_PANEL
    ),
]
Bins = Annotated[
    str | None,
    typer.Option(
        help="Lower edges that cut a number into classes: 0,13,20,40 for ages.", rich_help_panel=DATA_PANEL
    ),
]
Targets = Annotated[
    str | None,
    typer.Option(
        help="Several attributes, or columns with labels, with commas between, or all: each is repaired in turn.",
        rich_help_panel=DATA_PANEL,
    ),
]
Votes = Annotated[
    list[str] | None,
    typer.Option(
        "--votes",
        help="Column of votes by class as lists; or one column a class, called as it is. Repeatable.",
        rich_help_panel=DATA_PANEL,
    ),
]
Annotator = Annotated[
    list[str] | None,
    typer.Option(
        "--annotator",
        help="Column with what one of several annotators said. Repeatable.",
        rich_help_panel=DATA_PANEL,
    ),
]
Order = Annotated[
    str | None,
    typer.Option(
        help="All classes from low to high with commas between, where they are ordered.",
        rich_help_panel=DATA_PANEL,
    ),
]
NormaliseLabels = Annotated[
    bool | None,
    typer.Option(
        "--normalise-labels/--no-normalise-labels",
        help="Take spellings of a class that differ in case or blanks for one.",
        rich_help_panel=DATA_PANEL,
    ),
]
Icc = Annotated[
    bool | None,
    typer.Option("--icc/--no-icc", help="Convert colours by their profiles.", rich_help_panel=DATA_PANEL),
]
Link = Annotated[
    str | None,
    typer.Option(
        help="Untouched files of the refined dataset: copy, or hard links.", rich_help_panel=DATA_PANEL
    ),
]
Truth = Annotated[
    list[str] | None,
    typer.Option(
        help="Column with the truth, read only to evaluate. Repeatable.", rich_help_panel=DATA_PANEL
    ),
]
Limit = Annotated[int | None, typer.Option(help="Use about so many samples.", rich_help_panel=DATA_PANEL)]
Classifier = Annotated[
    str | None,
    typer.Option(
        help="Your own classifier instead of the baseline: NAME:FILE.safetensors with a timm NAME, or a "
        "folder with model.safetensors and config.json.",
        rich_help_panel=DATA_PANEL,
    ),
]
Flags = Annotated[
    Path | None,
    typer.Option(help="Ids to repair, found elsewhere: text, CSV or Parquet.", rich_help_panel=DATA_PANEL),
]
Policy = Annotated[
    PolicyName | None,
    typer.Option(
        help="What becomes of a face whose edit is refused, if its label is probably wrong: edit (it is kept), "
        "edit-or-relabel, edit-or-drop (default edit)."
    ),
]
Seed = Annotated[int | None, typer.Option(help="Every random draw is a function of it (default 0).")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps (default auto).")]
Out = Annotated[Path | None, typer.Option(help="The run's directory (default runs/NAME-KEY).")]
Config = Annotated[Path | None, typer.Option(help="YAML file of settings, as config.yaml of a run.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="stage.field=value, such as classifier.steps=2000. Repeatable."),
]
Preset = Annotated[
    str | None,
    typer.Option(
        help="cpu, cpu-small, gpu, gpu-48, gpu-128 or tiny, a matter of seconds whose figures mean nothing "
        "(default: gpu where there is one, else cpu)."
    ),
]
Estimate = Annotated[bool, typer.Option("--estimate", help="Print what it will cost, and stop.")]

_for_machines = False  # whether the command under way was asked for JSON


def _note_json(value: bool) -> bool:
    global _for_machines
    _for_machines = value
    return value


Json = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on stdout.", callback=_note_json)
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing.")]
FromScratch = Annotated[
    bool,
    typer.Option("--from-scratch", help="Train the diffusion autoencoder instead of taking shipped weights."),
]


def _version(value: bool) -> None:
    if value:
        print(f"diffinf {__version__}")
        raise typer.Exit


def say_loading() -> None:
    """Say on stderr, once, that PyTorch is loaded: call it right before what imports it, which takes seconds.

    Not with --json or --quiet, and of several processes of `torchrun` only the first one says it.
    """
    if "torch" in sys.modules or _for_machines or os.environ.get("RANK", "0") != "0":
        return
    from diffinf.progress import note

    note("loading PyTorch and what builds on it: some seconds")


def _wait_idly() -> None:
    """Let threads of GNU's OpenMP, PyTorch's on Linux, wait for each other in short loops rather than in long ones.

    On cores that others use too, a thread is often waited for that has no core, and loops keep the cores from it
    (docs/guide.md has figures).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _use_threads(count: int) -> None:
    """Limit the threads of PyTorch and numpy, here and in processes that are started from here."""
    os.environ.update(
        dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(count))
    )
    if "torch" in sys.modules:  # it reads the environment when it is imported
        import torch

        torch.set_num_threads(count)


@app.callback()
def _options(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of PyTorch (default: as PyTorch has it, one a core).")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Repair face-attribute datasets: find the faces that disagree with their label, and edit the image."""
    _wait_idly()
    if threads is not None:
        _use_threads(threads)
    if quiet:
        from diffinf.progress import set_quiet

        set_quiet(True)
