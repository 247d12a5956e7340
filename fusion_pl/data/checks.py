"""Checks of a manifest. Each check yields all problems that it finds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

from fusion_pl.data.splits import parse_split
from fusion_pl.data.table import Problem, Table
from fusion_pl.messages import did_you_mean, join_names


def check_column(table: Table, column: str, purpose: str, fix: str = "") -> Iterator[Problem]:
    """Check that a column exists; the message contains the purpose of the column and a hint on how to fix the table."""
    if column not in table.columns:
        known = join_names(map(repr, table.columns)) + did_you_mean(column, table.columns)
        hint = f": {fix}" if fix else ""
        yield Problem(f"there is no column {column!r} for {purpose}; the columns are {known}{hint}")


def check_labels(table: Table, column: str, classes: Sequence[str]) -> Iterator[Problem]:
    """Find labels that are empty or not one of the classes."""
    known = set(classes)
    for number, cell in zip(table.row_numbers, table.columns[column], strict=True):
        label = (cell or "").strip()
        if not label:
            yield Problem("the label is empty: give the row a class, or remove it", number, column)
        elif label not in known:
            text = f"{label!r} is not one of the classes {join_names(classes)}{did_you_mean(label, classes)}"
            yield Problem(text, number, column)


def check_splits(table: Table, column: str) -> Iterator[Problem]:
    """Find cells of the split column that are not the name of a split."""
    for number, cell in zip(table.row_numbers, table.columns[column], strict=True):
        if parse_split(cell) is None:
            problem = f"{cell!r} is not a split" if cell else "the split is empty"
            yield Problem(f"{problem}: expected train, val (or valid, validation, dev) or test", number, column)


def check_ids(table: Table) -> Iterator[Problem]:
    """Find duplicate ids."""
    first: dict[str, int] = {}
    for number, name in zip(table.row_numbers, table.ids, strict=True):
        if first.setdefault(name, number) != number:
            yield Problem(f"the id {name!r} was already used in row {first[name]}", number, "id")


def check_empty_rows(table: Table, columns: Sequence[str], rows: Iterable[int]) -> Iterator[Problem]:
    """Yield a problem for each of the given rows, in which all inputs are empty."""
    fix = "fill one in, remove the row, or set data.drop_empty: true"
    for row in rows:
        text = f"all inputs of the sample {table.ids[row]!r} are empty ({join_names(columns)}): {fix}"
        yield Problem(text, table.row_numbers[row])


def resolve_paths(cells: Sequence[str | None], root: str) -> list[str | None]:
    """Return absolute paths without ``..``, relative to ``root``; symbolic links are not resolved."""
    folder = os.path.abspath(root)
    return [None if cell is None else os.path.normpath(os.path.join(folder, cell)) for cell in cells]


def find_outside_paths(paths: Sequence[str | None], root: str) -> dict[int, str]:
    """Return a dictionary from row to message for the resolved paths that lie outside ``root``."""
    folder = os.path.abspath(root)
    prefix = os.path.join(folder, "")
    return {
        row: f"{path} lies outside the root {folder}: move it there, set data.root, or data.allow_outside: true"
        for row, path in enumerate(paths)
        if path is not None and not path.startswith(prefix)
    }


def check_files(table: Table, column: str, paths: Sequence[str | None], rows: Iterable[int]) -> Iterator[Problem]:
    """Find files that do not exist in the given rows; ``paths`` are the resolved cells of the column."""
    for row in rows:
        path, cell = paths[row], table.columns[column][row] or ""
        if path is None or os.path.isfile(path):
            continue
        if os.path.isdir(path):
            text = f"{cell!r} is a folder, expected a file ({path})"
        else:
            hint = "; separate folders by /" if "\\" in cell else ""
            text = f"the file {cell!r} does not exist (looked for {path}){hint}"
        yield Problem(text, table.row_numbers[row], column)
