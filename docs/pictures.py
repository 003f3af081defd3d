"""Draw the pictures of the documentation into docs/figures.

    python docs/pictures.py                    # what the renderer can vary
    python docs/pictures.py --run runs/demo    # also random edits, and the arms, of a run that is there

The edits are drawn at random from all accepted ones by --seed; there is no way to choose them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from diffinf.data.rendered import write_contact_sheet
from diffinf.errors import UserError
from diffinf.files import atomic_path, load_tensors, read_json, read_table
from diffinf.run import Run

FIGURES = Path(__file__).parent / "figures"
_COLUMNS = 4
_FACE = 116  # side of a face in pixels: four pairs are as wide as a README
_GAP, _SPACE, _TITLE = 4, 20, 26  # within a pair, between pairs, above a pair
_INK, _MUTED, _OURS = "#22262b", "#6b7178", "#c4722d"


def repairs_sheet(run: Run, out: Path, *, count: int, seed: int) -> bool:
    """Draw `count` random accepted edits as before | after under "appeared → label"; False if there are none."""
    edits = read_table(run.edits).to_pylist()
    pictures = load_tensors(run.repair / "pictures.safetensors")
    accepted = [row for row, edit in enumerate(edits) if edit["status"] == "edited"]
    if not accepted:
        return False
    drawn = np.random.default_rng(seed).permutation(accepted)[:count]
    width, height = 2 * _FACE + _GAP + _SPACE, _TITLE + _FACE + _SPACE // 2
    columns, rows = min(_COLUMNS, len(drawn)), -(-len(drawn) // _COLUMNS)
    sheet = Image.new("RGB", (columns * width - _SPACE, rows * height - _SPACE // 2), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), 15)
    for place, row in enumerate(drawn):
        x, y = place % _COLUMNS * width, place // _COLUMNS * height
        words = (("appears", "original", x), ("label", "edited", x + _FACE + _GAP))
        for name, picture, left in words:
            text = _fitting(str(edits[row][name]), font, _FACE - 24)
            draw.text((left + _FACE / 2, y + _TITLE / 2), text, fill=_INK, font=font, anchor="mm")
            sheet.paste(_face(pictures[picture][row].numpy()), (left, y + _TITLE))
        middle = (x + _FACE + _GAP / 2, y + _TITLE / 2)
        draw.text(middle, "\N{RIGHTWARDS ARROW}", fill=_MUTED, font=font, anchor="mm")
    with atomic_path(out) as partial:
        sheet.save(partial, format="PNG", optimize=True)
    return True


def arms_chart(run: Run, out: Path) -> bool:
    """Draw the arms' balanced accuracy with 95 % intervals; False if nothing has been retrained."""
    arms = read_json(run.summary)["arms"]
    if not arms:
        return False
    figure = Figure(figsize=(7, 0.8 + 0.38 * len(arms)), layout="constrained")
    axes = figure.subplots()
    for row, (name, arm) in enumerate(arms.items()):
        colour = _OURS if name == "diffinf" else _INK
        axes.plot(arm["ci"], (row, row), color=colour, linewidth=2)
        axes.plot(arm["balanced_accuracy"], row, "o", color=colour, markersize=7)
    if "baseline" in arms:
        value = arms["baseline"]["balanced_accuracy"]
        axes.axvline(value, color=_MUTED, linewidth=1, linestyle="--", zorder=0)
    axes.set_yticks(range(len(arms)), list(arms))
    axes.invert_yaxis()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    seeds = sorted({arm["seeds"] for arm in arms.values()})
    trained = f"{' or '.join(map(str, seeds))} seed{'s' if seeds[-1] > 1 else ''}"
    axes.set_xlabel(f"balanced accuracy on the test split, 95 % interval, {trained}")
    with atomic_path(out) as partial:
        figure.savefig(partial, format="png", dpi=140)
    return True


def _face(image: np.ndarray) -> Image.Image:
    """Enlarge a picture, uint8 (C, H, W) with C 1 or 3."""
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    return Image.fromarray(pixels).convert("RGB").resize((_FACE, _FACE), Image.Resampling.LANCZOS)


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Shorten a name until it fits above its face."""
    shown = text
    while font.getlength(shown) > width and len(text) > 1:
        text = text[:-1]
        shown = text + "\N{HORIZONTAL ELLIPSIS}"
    return shown


def main() -> None:
    """Draw what can be drawn, and say what was left as it is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, help="directory of a run, for repairs.png and arms.png")
    parser.add_argument("--count", type=int, default=12, help="edits on the sheet (default 12)")
    parser.add_argument("--seed", type=int, default=0, help="decides which edits (default 0)")
    options = parser.parse_args()
    print(write_contact_sheet(FIGURES / "rendered_factors.png"))
    if options.run is None:
        print("repairs.png and arms.png stay as they are: they need a run (--run runs/demo)")
        return
    run = Run.open(options.run)
    repairs, arms = FIGURES / "repairs.png", FIGURES / "arms.png"
    drawn = repairs_sheet(run, repairs, count=options.count, seed=options.seed)
    print(repairs if drawn else f"{repairs} stays as it is: the run accepted no edit")
    print(arms if arms_chart(run, arms) else f"{arms} stays as it is: the run has not compared yet")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
