"""Damaged and hostile datasets: every file is read or refused with a reason, quickly, and nothing else happens.

    python benchmarks/fuzz_data.py [--images 9000] [--tables 900] [--folders 100] [--seed 0] [--keep FOLDER]

Image files of every format are cut short, flipped, overwritten, spliced, given lying headers or made into bombs;
tables and annotation files of every layout of tests/data/miniatures.py get broken bytes, line ends, quotes, cells,
types; folders get names with newlines and bytes that are no UTF-8, links out of the root, loops, pipes. Each dataset
is opened, and of those that open, many are inspected and written again. It ends with exit code 1 if

- anything but `UserError` (a dataset) or `UnreadableImageError` (an image) is raised,
- a file takes more than 5 seconds,
- read + not usable is not what there is,
- a file appears, changes or goes anywhere but in the output.

`--keep` keeps the cases that failed.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "data"))
from miniatures import PUBLIC, picture

from diffinf.config import DataConfig
from diffinf.data import open_dataset, write_refined
from diffinf.data.images import UnreadableImageError, decode_image
from diffinf.data.inspect import inspect_dataset
from diffinf.errors import UserError
from diffinf.progress import set_quiet
from fuzz_cases import Random, broken_images, broken_text, damaged, odd_parquet

LIMIT_SECONDS = 5.0
MAX_PIXELS = DataConfig().max_pixels


@dataclass
class Account:
    """What happened."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")

    def timed(self, what: str, seconds: float) -> None:
        """Note how long a file took."""
        self.slowest = max(self.slowest, (seconds, what))
        if seconds > LIMIT_SECONDS:
            self.failures.append(f"{what}: {seconds:.1f} s")


def snapshot(root: Path) -> dict[bytes, tuple[int, ...]]:
    """Everything below a folder with kind, size and time of change."""
    found = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        for name in folders + files:
            place = os.path.join(folder, name)  # noqa: PTH118 (names that are no UTF-8)
            status = os.lstat(place)
            if name not in folders:
                found[place] = (status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino)
            else:
                found[place] = (status.st_mode,)
    return found


class Fuzz:
    """One run of the fuzzer in a folder of its own."""

    def __init__(self, folder: Path, keep: Path | None) -> None:
        """Everything happens below `folder`: datasets in data/, output three levels down in out/."""
        self.account, self.keep = Account(), keep
        self.data, self.out = folder / "data", folder / "out" / "a" / "b"
        self.data.mkdir(parents=True)
        self.out.mkdir(parents=True)
        self.root = folder

    def images(self, n: int, seed: int, *, batch: int = 300, with_bombs: bool = True) -> None:
        """Decode each damaged image by itself, then open datasets of them."""
        root, files = self.data / "images", 0
        for number, (what, data) in enumerate(broken_images(n, seed, with_bombs=with_bombs)):
            start = time.perf_counter()
            try:
                decode_image(data, max_pixels=MAX_PIXELS)
                outcome = "decoded"
            except UnreadableImageError:
                outcome = "refused"
            except Exception as error:
                outcome = "failed"
                self._failed(f"image {number} ({what})", error, data)
            self.account.outcomes[f"image, {what}: {outcome}"] += 1
            self.account.timed(f"image {number} ({what})", time.perf_counter() - start)
            place = root / f"class{number % 3}" / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
            files += 1
            if files == batch or number == n - 1:
                for index in range(60):
                    (root / f"class{index % 3}" / f"sound{index}.png").write_bytes(picture(index))
                self.open(root, {}, f"images up to {number}", files + 60, always=True)
                shutil.rmtree(root)
                files = 0

    def tables(self, n: int, seed: int) -> None:
        """Damage one table or annotation file of a public layout at a time."""
        places = {}
        for name, layout in PUBLIC.items():
            opened = layout.make(self.data / name.replace(" ", "-"))
            folder = opened if opened.is_dir() else opened.parent
            files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not _is_image(file)]
            if files:
                places[name] = (opened, files)
        for number in range(n):
            rng = np.random.default_rng([seed, number, 1])
            name = list(places)[number % len(places)]
            opened, files = places[name]
            file = files[rng.integers(len(files))]
            before = file.read_bytes()
            if file.suffix in (".parquet", ".arrow", ".npy"):
                what, data = "damaged", damaged(before, rng)
                if name == "parquet" and rng.integers(2):
                    what, data = "odd", odd_parquet(rng)
            else:
                what, data = broken_text(before, rng)
            file.write_bytes(data)
            title = f"table {number} ({name}, {file.name}: {what})"
            self.open(opened, PUBLIC[name].config, title, None, always=number % 8 == 0, case=data)
            file.write_bytes(before)

    def folders(self, n: int, seed: int) -> None:
        """Folders with hostile names, links, pipes."""
        (self.data / "secret.png").write_bytes(picture(1))
        for number in range(n):
            rng = np.random.default_rng([seed, number, 2])
            root = self.data / "folders"
            for index in range(36):
                place = root / f"class{index % 3}" / f"{index}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(picture(index))
            for index in range(12):
                _hostile_entry(os.fsencode(root / f"class{rng.integers(3)}"), index, rng)
            self.open(root, {}, f"folder {number}", None, always=number % 4 == 0)
            shutil.rmtree(root)

    def open(
        self,
        path: Path,
        config: dict[str, Any],
        what: str,
        total: int | None,
        *,
        always: bool,
        case: bytes = b"",
    ) -> None:
        """Open a dataset; account for its rows; `always`: inspect it and write it again."""
        before = snapshot(self.data)
        kind = what.split()[0]
        start = time.perf_counter()
        try:
            dataset = open_dataset(path, DataConfig(**config))
            self.account.timed(what, time.perf_counter() - start)
            rows = len(dataset) + len(dataset.quarantine)
            if rows != dataset.source.rows or total not in (None, rows):
                self.account.failures.append(
                    f"{what}: {rows} of {total or dataset.source.rows} accounted for"
                )
            outcome = "read" if not dataset.quarantine else "read, some rows in quarantine"
            self.account.outcomes[f"{kind}: {outcome}"] += 1
            self.account.outcomes[f"{kind}: rows read"] += len(dataset)
            self.account.outcomes[f"{kind}: rows in quarantine"] += len(dataset.quarantine)
            if always:
                inspect_dataset(dataset, self.out / "inspect")
                write_refined(dataset, {}, set(), {}, self.out / "refined")
        except UserError as error:
            self.account.timed(what, time.perf_counter() - start)
            self.account.outcomes[f"{kind}: refused"] += 1
            if "\n" in str(error):
                self.account.failures.append(f"{what}: a message of several lines, {str(error)[:200]!r}")
        except Exception as error:
            self.account.outcomes[f"{kind}: failed"] += 1
            self._failed(what, error, case)
        shutil.rmtree(self.out)
        self.out.mkdir()
        self._nothing_changed(what, before)

    def _nothing_changed(self, what: str, before: dict[bytes, tuple[int, ...]]) -> None:
        after = snapshot(self.data)
        changed = [place for place in before.keys() | after.keys() if before.get(place) != after.get(place)]
        strays = [
            place for place in (self.root / "out").rglob("*") if place not in (self.out, self.out.parent)
        ]
        strays += [place for place in self.root.iterdir() if place.name not in ("data", "out")]
        if changed or strays:
            self.account.failures.append(f"{what}: changed {changed[:3]}, new {strays[:3]}")

    def _failed(self, what: str, error: Exception, case: bytes) -> None:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "diffinf" in frame.filename]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        self.account.failures.append(f"{what}: {type(error).__name__} in {where}: {str(error)[:200]!r}")
        if self.keep is not None and case:
            self.keep.mkdir(parents=True, exist_ok=True)
            (self.keep / f"{what.split(' (')[0].replace(' ', '-')}").write_bytes(case)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in (".png", ".jpg", ".jpeg")


def _hostile_entry(folder: bytes, index: int, rng: Random) -> None:
    names = (
        b"a\nb%d.png", b"\xff\xfe%d.png", b"caf\xe9%d.png", b"%d\x1b[31m.png", b"%d" + b"x" * 200 + b".png",
        b"-rf%d.png",
        b"%d .png", "💥%d.png".encode(), b"..%d.png", b"%d~from~class9.png", b"%d\xe2\x80\xae.png", b"%d.PNG",
    )  # fmt: skip
    place = os.path.join(folder, names[rng.integers(len(names))] % index)  # noqa: PTH118
    targets = (b"../../secret.png", b"/etc/passwd", b"/dev/zero", b"nowhere", place, b"..", b"0.png")
    how = rng.integers(8)
    if how < 3:
        with open(place, "wb") as handle:  # noqa: PTH123
            handle.write(picture(index) if how else damaged(picture(index), rng))
    elif how < 6:
        os.symlink(targets[rng.integers(len(targets))], place)  # noqa: PTH211
    elif how == 6:
        os.mkfifo(place)
    else:
        os.mkdir(place)  # noqa: PTH102


def main() -> None:
    """Run it and print the account."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=9000)
    parser.add_argument("--tables", type=int, default=900)
    parser.add_argument("--folders", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the cases that failed")
    parser.add_argument("--json", type=Path, help="write the account there as well")
    given = parser.parse_args()
    faulthandler.enable()
    set_quiet(True)
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(Path(folder), given.keep)
        fuzz.images(given.images, given.seed)
        fuzz.tables(given.tables, given.seed)
        fuzz.folders(given.folders, given.seed)
    account = fuzz.account
    for outcome, n in sorted(account.outcomes.items()):
        print(f"{n:8,}  {outcome}")
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        f"slowest: {account.slowest[0]:.2f} s, {account.slowest[1]}; peak memory {usage.ru_maxrss / 2**20:.1f} GiB"
    )
    clock, cpu = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
    print(f"{clock:.0f} s, {cpu:.0f} s of CPU time; {len(account.failures)} failures")
    for failure in account.failures:
        print(f"  {failure}")
    if given.json:
        given.json.write_text(
            json.dumps({"outcomes": account.outcomes, "failures": account.failures}, indent=2)
        )
    sys.exit(1 if account.failures else 0)


if __name__ == "__main__":
    main()
