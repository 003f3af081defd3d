"""Decoded pixels kept on disk, so that later stages and runs need not decode the same files again.

A row of the cache is found by the sha256 of the encoded image, in a folder named after everything else that decides
what is decoded: size, channels, colour profiles, the decoding code and the versions of the codecs. So a file that
changed, or another Pillow, finds nothing and is decoded. A file of the cache holds the digests and the values of many
images as plain arrays (.npz, never pickled), each with its CRC-32; one that is damaged is thrown away.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import features

from diffinf.data.images import fast_jpeg, in_threads
from diffinf.errors import UserError
from diffinf.files import atomic_path, stage_key
from diffinf.progress import note

if TYPE_CHECKING:
    from diffinf.config import DataConfig

FOLDER = "diffinf-decoded"  # below the folder of the settings: nothing else is ever removed
FILE_BYTES = 2**25  # of pixels in a file
FEWEST = 64  # images that are worth a file
_CODECS = ("pil", "jpg", "libjpeg_turbo", "zlib", "webp", "libtiff", "jpg_2000", "littlecms2")


def open_cache(config: DataConfig, run: Path | None = None) -> DecodeCache | None:
    """The cache of the settings: the folder `data.cache`, that of the run, or None.

    The cache of a run writes nothing before `DecodeCache.release`: its directory may turn out to be another's.
    """
    most = int(config.cache_gb * 1e9)
    if isinstance(config.cache, Path):
        return DecodeCache(config.cache, most)
    return DecodeCache(run / ".cache", most, held=True) if config.cache == "run" and run is not None else None


def check_place(folder: Path, dataset: Path) -> None:
    """Refuse a cache in `folder` that would mix with the files of the dataset, a folder or file; UserError."""
    place = folder.resolve() / FOLDER
    if dataset.is_dir() and (place.is_relative_to(dataset) or dataset.is_relative_to(place)):
        held = "lies inside" if place.is_relative_to(dataset) else "holds"
        raise UserError(f"data.cache: {place}: {held} the dataset {dataset}; choose a folder outside")


class DecodeCache:
    """A folder of decoded images, which several processes may read and write at once."""

    def __init__(self, folder: Path, most: int, *, held: bool = False) -> None:
        """Keep at most `most` bytes in `folder`; with `held` nothing is written before `release`."""
        self.folder, self.most = folder / FOLDER, most
        self._waiting: list[Callable[[], None]] | None = [] if held else None
        self._own: set[Path] = set()  # what this process used: not removed to make room
        self._shelves: dict[tuple[Any, ...], Shelf] = {}
        self._said: set[str] = set()
        self._writes = True

    def pixels(self, size: int, channels: int, icc: bool) -> Shelf:
        """Squares, uint8 (channels, size, size), as `FaceDataset.images` makes them."""
        return self._shelf(f"{size}x{channels}", (size, channels, icc), (channels, size, size), np.uint8)

    def checks(self, max_pixels: int, icc: bool) -> Shelf:
        """Short side and whether it is grey, uint32 (2,), of images that were decoded as a whole."""
        return self._shelf("checks", (max_pixels, icc), (2,), np.uint32)

    def _shelf(self, kind: str, settings: tuple[Any, ...], shape: tuple[int, ...], values: Any) -> Shelf:
        if (shelf := self._shelves.get((kind, *settings))) is None:
            shelf = Shelf(self, f"{kind}-{_key(*settings)}", shape, values)
            self._shelves[kind, *settings] = shelf
        return shelf

    def release(self) -> None:
        """Write what was held back, and all that follows."""
        waiting, self._waiting = self._waiting or [], None
        for write in waiting:
            write()

    def say(self, sentence: str) -> None:
        """Say it once."""
        if sentence not in self._said:
            self._said.add(sentence)
            note(sentence)

    def use(self, path: Path) -> None:
        """Note that a file is used now: those that were not for longest make room for others."""
        self._own.add(path)
        with suppress(OSError):
            os.utime(path)

    def write(self, path: Path, digests: NDArray[np.uint8], values: NDArray[Any]) -> None:
        """Write a file, whole or not at all; where that cannot be, say so and go on without."""
        if self._waiting is not None:
            self._waiting.append(lambda: self.write(path, digests, values))
        elif self._writes:
            try:
                self._write(path, digests, values)
            except (OSError, UserError) as error:
                self._writes = False
                cause = error.__cause__ or error  # the advice of a UserError is about a run's directory
                self.say(f"{self.folder}: decoded images are not kept ({_reason(cause)})")

    def _write(self, path: Path, digests: NDArray[np.uint8], values: NDArray[Any]) -> None:
        if not self._room(digests.nbytes + values.nbytes):
            self._writes = False
            self.say(
                f"{self.folder}: full with {self.most / 1e9:g} GB of decoded images, the others are decoded each time; "
                "raise data.cache_gb to keep them"
            )
            return
        with atomic_path(path) as temporary, temporary.open("wb") as handle:
            np.savez(handle, sha256=digests, values=values)
        self._own.add(path)
        self.say(f"decoded images are kept in {self.folder} (at most {self.most / 1e9:g} GB)")

    def _room(self, needed: int) -> bool:
        """Whether there is room, made of what was not used for longest if need be."""
        stored = []
        for path in self.folder.glob("*/*"):
            with suppress(FileNotFoundError):  # removed by another process
                stored.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        excess = sum(size for _, size, _ in stored) + needed - self.most
        going = []
        for _, size, path in sorted(stored):
            if excess > 0 and path not in self._own:
                going.append(path)
                excess -= size
        if excess > 0:  # what would go makes too little room: it stays
            return False
        for path in going:
            path.unlink(missing_ok=True)
        return True


class Shelf:
    """Rows of one kind: arrays of one shape and type, found by the sha256 of the image file they were made from."""

    def __init__(self, cache: DecodeCache, name: str, shape: tuple[int, ...], kind: Any) -> None:
        """Rows of `shape` and `kind` in the folder `name` of `cache`."""
        self._cache, self._folder = cache, cache.folder / name
        self._shape, self._kind = shape, np.dtype(kind)
        self._digests: dict[Path, list[bytes]] = {}  # of each file that was seen
        self._places: dict[bytes, tuple[Path, int]] = {}

    def take(self, digests: Sequence[str], out: NDArray[Any]) -> NDArray[np.bool_]:
        """Fill the rows of `out` (N, ...) whose `digests` (N hex sha256) are known; returns which, bool (N,)."""
        self._look()
        wanted: dict[Path, list[tuple[int, int]]] = {}
        for slot, digest in enumerate(digests):
            if (place := self._places.get(bytes.fromhex(digest))) is not None:
                wanted.setdefault(place[0], []).append((slot, place[1]))
        found = np.zeros(len(digests), dtype=bool)

        def work(paths: list[Path]) -> None:
            for path in paths:
                values = self._load(path, "values", (len(self._digests[path]), *self._shape), self._kind)
                if values is not None:
                    self._cache.use(path)
                    slots, rows = np.array(wanted[path]).T
                    out[slots] = values[rows]
                    found[slots] = True

        in_threads(work, list(wanted), chunk=1)
        for path, places in wanted.items():
            if not found[[slot for slot, _ in places]].all():
                self._forget(path)
        return found

    def known(self) -> dict[str, Any]:
        """All rows: hex sha256 -> values. Whose they are is not known yet, so no file counts as used."""
        self._look()
        rows: dict[str, Any] = {}
        for path, digests in list(self._digests.items()):
            values = self._load(path, "values", (len(digests), *self._shape), self._kind)
            if values is None:
                self._forget(path)
            else:
                rows |= {digest.hex(): row for digest, row in zip(digests, values, strict=True)}
        return rows

    def add(self, digests: Sequence[str], values: NDArray[Any]) -> None:
        """Keep rows `values` (N, ...), whose `digests` are hex sha256; a few are not worth a file.

        Files that hold some of them already count as used.
        """
        first = {bytes.fromhex(digest): row for row, digest in enumerate(digests)}
        for path in {self._places[digest][0] for digest in first if digest in self._places}:
            self._cache.use(path)
        new = [digest for digest in sorted(first) if digest not in self._places]
        if len(new) < FEWEST:
            return
        at_once = max(FEWEST, FILE_BYTES // (int(np.prod(self._shape)) * self._kind.itemsize))
        for start in range(0, len(new), at_once):
            part = new[start : start + at_once]
            keys = np.frombuffer(b"".join(part), dtype=np.uint8).reshape(-1, 32)
            # Named after what is in it: of two processes that decoded the same, the second replaces like by like.
            path = self._folder / f"{hashlib.sha256(keys.tobytes()).hexdigest()[:24]}.npz"
            self._cache.write(path, keys, values[[first[digest] for digest in part]])

    def _look(self) -> None:
        """Take notice of files that were written since the last time."""
        for path in sorted(self._folder.glob("*.npz")):
            if path not in self._digests:
                keys = self._load(path, "sha256", (None, 32), np.dtype(np.uint8))
                if keys is not None:
                    self._digests[path] = [key.tobytes() for key in keys]
                    self._places |= {key: (path, row) for row, key in enumerate(self._digests[path])}

    def _forget(self, path: Path) -> None:
        for digest in self._digests.pop(path):
            place = self._places.get(digest)  # equal images lie in several files; one of them has the place
            if place is not None and place[0] == path:
                del self._places[digest]

    def _load(
        self, path: Path, name: str, shape: tuple[int | None, ...], kind: np.dtype[Any]
    ) -> NDArray[Any] | None:
        """An array of a file; None where it is gone, cannot be read, or is damaged, when the file is removed."""
        try:
            with np.load(path, allow_pickle=False) as stored:  # of a zip archive, which checks its sums
                values: NDArray[Any] = stored[name]
            fits = len(values.shape) == len(shape) and all(
                want in (None, is_) for want, is_ in zip(shape, values.shape, strict=True)
            )
            if values.dtype != kind or not fits:
                raise ValueError(f"{name} is {values.dtype} {values.shape}")
        except FileNotFoundError:  # another process made room
            return None
        except (OSError, MemoryError) as error:  # of the machine, and it may pass
            self._cache.say(f"{path}: cannot be read ({_reason(error)}); its images are decoded")
            return None
        except Exception as error:  # of damaged archives nearly anything
            self._cache.say(f"{path}: damaged ({error}); thrown away, its images are decoded again")
            with suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        return values


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _key(*settings: Any) -> str:
    """A name for the settings, the code that decodes and the libraries it calls."""
    code = hashlib.sha256(files("diffinf.data").joinpath("images.py").read_bytes()).hexdigest()
    codecs = {name: features.version(name) for name in _CODECS}
    if (fast := fast_jpeg()) is not None:
        codecs["simplejpeg"] = fast.__version__
    return stage_key(settings, code, codecs, platform.machine())[:16]
