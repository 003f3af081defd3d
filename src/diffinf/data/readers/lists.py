"""Annotation files of plain text, one line a sample, as CelebA, RAF-DB and LFW have them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from diffinf.data.images import UnreadableImageError
from diffinf.data.readers.base import Edits, relative_inside, resolve_inside
from diffinf.errors import UserError

_WORD = re.compile(r"[^\s,]+")


def words(line: str) -> list[str]:
    """The words of a line, separated by blanks or commas."""
    return _WORD.findall(line)


def annotation_file(root: Path, *names: str) -> Path | None:
    """The first of these files that is there, by path relative to `root`.

    Raises:
        UserError: it is a link that leads out of `root`, or no regular file.
    """
    for name in names:
        if (root / name).is_symlink() or (root / name).exists():
            try:
                resolve_inside(root.resolve(), name)
            except UnreadableImageError as error:
                raise UserError(f"{root / name}: {error}") from error
            return root.resolve() / name
    return None


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file without their ends; a mark at its beginning does not count.

    Raises:
        UserError: it cannot be read, or a line is no UTF-8; the line is named.
    """
    lines = []
    for number, raw in enumerate(_raw_lines(path), 1):
        try:
            lines.append(raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n"))
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}: line {number} is not UTF-8 ({error.reason}); save it as UTF-8"
            ) from error
    return lines


def _raw_lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def listed_name(path: Path, line: int, root: Path, folder: str, name: str) -> str:
    """The path of a listed image relative to `root`; names start from `folder`, see `first_of`.

    Raises:
        UserError: it leads out.
    """
    inside = None if name.startswith("/") else relative_inside(root, folder + name)
    if inside is None:
        raise UserError(f"{path}: line {line}: image {name!r} leads out of {root}; expected a name below it")
    return inside


def first_of(root: Path, candidates: list[str], name: str) -> str:
    """The first folder below `root` that holds the file `name`, else the first that is there, else "".

    A path with "/" at its end, "" for `root` itself.
    """
    there = [folder for folder in candidates if (root / folder).is_dir()]
    holding = (folder for folder in there if (root / folder / name).is_file())
    found = next(holding, there[0] if there else "")
    return f"{found}/" if found not in ("", ".") else ""


@dataclass(frozen=True)
class ListFile:
    """A text file with a line for each sample, written anew line by line.

    Attributes:
        path: where it lies.
        position: (line number from 0, line) -> the position it speaks of, None for a header or a stranger.
        edit: (line, old text -> text of the new class) -> the line relabelled; none: no labels are here.

    A first line that is a single number is the number of rows, and follows them.
    """

    path: Path
    position: Callable[[int, str], int | None]
    edit: Callable[[str, Callable[[str], str]], str] | None = None

    def write(self, target: Path, edits: Edits) -> None:
        """Write it to `target`, the lines of rows that left missing."""
        written, dropped = [], 0
        for number, raw in enumerate(_raw_lines(self.path)):
            line = raw.decode("utf-8", "surrogateescape")
            position = self.position(number, line)
            if position is not None and position not in edits.ids:
                dropped += 1
                continue
            if position is not None and self.edit is not None and position in edits.labels:
                line = self.edit(line, partial(edits.coding.written, edits.labels[position]))
            written.append(line)
        if dropped and written and written[0].strip().isdigit():
            written[0] = _WORD.sub(lambda found: str(int(found[0]) - dropped), written[0], count=1)
        target.write_bytes("".join(written).encode("utf-8", "surrogateescape"))


def replace_word(index: int, line: str, new: Callable[[str], str]) -> str:
    """The line with its word number `index` put anew, blanks and line end as they are."""
    found = list(_WORD.finditer(line))[index]
    return line[: found.start()] + new(found[0]) + line[found.end() :]


def values_by_name(path: Path) -> dict[str, str]:
    """Second word by first word of each line; lines of fewer words do not count."""
    rows = (words(line) for line in read_lines(path))
    return {row[0]: row[1] for row in rows if len(row) > 1}


def by_first_word(positions: dict[str, int]) -> Callable[[int, str], int | None]:
    """For `ListFile.position`: lines that begin with the name of a sample."""

    def position(_number: int, line: str) -> int | None:
        found = _WORD.search(line)
        return None if found is None else positions.get(found[0])

    return position
