"""What can be wrong with a manifest: each check returns all the problems it finds."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Sequence

from fusion_pl.data.splits import split_of
from fusion_pl.data.table import Problem, Table

SHOWN = 10


def listed(names: Iterable[str]) -> str:
    """Join names for a message, the first ten of them."""
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" … ({len(names)} in all)" if len(names) > SHOWN else "")


def _guess(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_column(table: Table, column: str, purpose: str, fix: str = "") -> Iterator[Problem]:
    """Find out whether a column exists.

    Args:
        table: the manifest.
        column: its name.
        purpose: what needs it, for the message.
        fix: what else to do about it than to rename the column.
    """
    if column not in table.columns:
        known = listed(map(repr, table.columns)) + _guess(column, table.columns)
        yield Problem(f"there is no column {column!r} for {purpose}; it has {known}" + (f": {fix}" if fix else ""))


def check_labels(table: Table, column: str, classes: Sequence[str]) -> Iterator[Problem]:
    """Find labels that are absent or are none of the classes."""
    known = set(classes)
    for number, cell in zip(table.numbers, table.columns[column], strict=True):
        label = (cell or "").strip()
        if not label:
            yield Problem("the label is empty: give the row a class, or remove it", number, column)
        elif label not in known:
            yield Problem(
                f"{label!r} is not one of the classes {listed(classes)}{_guess(label, classes)}", number, column
            )


def check_splits(table: Table, column: str) -> Iterator[Problem]:
    """Find cells of the split column that name no split."""
    for number, cell in zip(table.numbers, table.columns[column], strict=True):
        if split_of(cell) is None:
            named = f"{cell!r} is no split" if cell else "the split is empty"
            yield Problem(f"{named}: expected train, val (or valid, validation, dev) or test", number, column)


def check_ids(table: Table, ids: Sequence[str]) -> Iterator[Problem]:
    """Find names that two rows share."""
    first: dict[str, int] = {}
    for number, name in zip(table.numbers, ids, strict=True):
        if first.setdefault(name, number) != number:
            yield Problem(f"the id {name!r} was already used in row {first[name]}", number, "id")


def check_inputs(table: Table, columns: Sequence[str], ids: Sequence[str]) -> Iterator[Problem]:
    """Find rows without any input."""
    for number, name, *cells in zip(table.numbers, ids, *(table.columns[column] for column in columns), strict=True):
        if all(cell is None for cell in cells):
            fix = "fill one in, remove the row, or set data.drop_empty: true"
            yield Problem(f"all inputs of the sample {name!r} are empty ({listed(columns)}): {fix}", number)


def resolve(cells: Sequence[str | None], root: str) -> list[str | None]:
    """Return each path without ``..``, as seen from ``root``; links stay, since whoever owns the disk placed them."""
    start = os.path.abspath(root)
    return [None if cell is None else os.path.normpath(os.path.join(start, cell)) for cell in cells]


def outside(paths: Sequence[str | None], root: str) -> dict[int, str]:
    """Return which paths leave ``root``: row -> what is wrong.

    Args:
        paths: as ``resolve`` returns them.
        root: the folder.
    """
    start = os.path.abspath(root)
    inside = os.path.join(start, "")
    return {
        row: f"{path} lies outside the root {start}: move it there, set data.root, or data.allow_outside: true"
        for row, path in enumerate(paths)
        if path is not None and not path.startswith(inside)
    }


def check_files(table: Table, column: str, paths: Sequence[str | None], rows: Iterable[int]) -> Iterator[Problem]:
    """Find files that do not exist.

    Args:
        table: the manifest.
        column: that holds the paths.
        paths: as ``resolve`` returns them.
        rows: the ones to look at.
    """
    for row in rows:
        path = paths[row]
        if path is not None and not os.path.isfile(path):
            cell = table.columns[column][row] or ""
            if os.path.isdir(path):
                yield Problem(f"{cell!r} is a folder, expected a file ({path})", table.numbers[row], column)
                continue
            hint = "; write / between folders" if "\\" in cell else ""
            yield Problem(f"the file {cell!r} does not exist (looked for {path}){hint}", table.numbers[row], column)
