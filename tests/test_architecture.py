"""The order of the rooms: a later one may import an earlier one, never the reverse."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "diffinf"

# A room and those it may import, beside the small modules that everybody may.
SHARED = {"errors", "progress", "config", "files", "run"}
ORDER = (
    "data",
    "training",
    "features",
    "classify",
    "influence",
    "diffusion",
    "repair",
    "compare",
    "generate",
)
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "progress": set(),
    "config": {"errors"},
    "files": {"errors"},
    "run": {"errors", "config", "files"},
    "evaluate": {"errors"},  # arrays in, dataclasses out
    **{
        room: SHARED | set(ORDER[:index]) | ({"evaluate"} if index > ORDER.index("classify") else set())
        for index, room in enumerate(ORDER)
    },
    "report": {"errors", "progress", "files", "run", "evaluate"},  # files in, a page out
}
# What puts the rooms together; in this order too.
TOP = ("stages", "pipeline", "targets", "demo", "estimate", "cli")
HEAVY = (
    "torch",
    "timm",
    "diffusers",
    "datasets",
    "matplotlib",
    "sklearn",
    "pyarrow",
    "pandas",
    "scipy",
    "simplejpeg",
)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms of this package that a file imports anywhere, functions included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names = [f"diffinf.{alias.name}" for alias in node.names] if module == "diffinf" else [module]
        else:
            continue
        parts = [name.split(".") for name in names]
        found |= {part[1] for part in parts if part[0] == "diffinf" and len(part) > 1}
    return found - {"__version__"}


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_a_room_imports_only_earlier_ones(path: Path) -> None:
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    everything = set(ALLOWED)
    allowed = ALLOWED[room] if room in ALLOWED else everything | set(TOP[: TOP.index(room)])
    assert imported_rooms(path) <= allowed | {room}


def test_only_the_command_line_knows_the_terminal() -> None:
    for path in PACKAGE.rglob("*.py"):
        # A worker process answers its caller on stdout: no terminal is there.
        if room_of(path) not in ("cli", "progress") and path.name != "workers.py":
            names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
            assert "print" not in names and "typer" not in names, path


@pytest.mark.parametrize(
    "module", ["diffinf", "diffinf.cli", "diffinf.config", "diffinf.files", "diffinf.run", "diffinf.progress"]
)
def test_importing_is_light(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({set(HEAVY)} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_help_is_light() -> None:
    code = (
        "import sys; sys.argv = ['diffinf', '--help']\n"
        "from diffinf.cli import main\n"
        "try: main()\n"
        f"finally: print(*sorted({set(HEAVY)} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "train-autoencoder" in done.stdout and done.stderr.split() == []
