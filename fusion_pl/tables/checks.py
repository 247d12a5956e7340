"""Checks of a manifest. Each check yields all problems that it finds."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from rich import get_console
from rich.progress import track

from fusion_pl.messages import did_you_mean, join_names
from fusion_pl.tables.remote import RemoteFiles, is_inside, is_url
from fusion_pl.tables.splits import NO_SPLIT, column_splits
from fusion_pl.tables.table import Problem, Table, describe_outside, resolve_path

Rows = NDArray[np.int64]

# Only such a path can lie outside the root: an absolute one, a URL, one with "..", or the root itself.
MAY_LIE_OUTSIDE = r"^/|://|\.\.|^[./]*$" + (r"|\\|:" if os.name == "nt" else "")
NUM_TEXTS = 1000  # texts that are compared with files, before all are
BAR_MIN_FILES = 1000
FILES_PER_TASK = 500
MAX_THREADS = 32


def check_column(table: Table, column: str, purpose: str, advice: str = "") -> Iterator[Problem]:
    """Check that a column exists; the message contains the purpose of the column and the advice."""
    if column not in table.columns:
        known, fix = join_names(map(repr, table.columns)), f": {advice}" if advice else ""
        near = did_you_mean(column, table.columns)
        yield Problem(f"there is no column {column!r} for {purpose}; the columns are {known}{fix}{near}")


def check_text_column(table: Table, column: str, purpose: str, advice: str = "") -> Iterator[Problem]:
    """Check that a column exists and holds text or numbers; the message of a missing column contains the advice."""
    yield from check_column(table, column, purpose, advice)
    if column in table.columns and not table.is_text(column):
        kind = table.data[column].type
        yield Problem(f"it holds {kind}, expected text or numbers for {purpose}", column=column)


def row_problems(
    table: Table, rows: Rows, column: str | None, describe: Callable[[int], str], cells: Rows | None = None
) -> Iterator[Problem]:
    """Yield one problem per row, whose text is only made when it is shown.

    Args:
        table: the table.
        rows: rows with a problem.
        column: column of the problem.
        describe: function that returns the text for a row.
        cells: index of the cell of each row of the table among the distinct cells, if the text depends on it alone.
    """
    for row in rows.tolist():
        cell = None if cells is None else int(cells[row])
        yield Problem(partial(describe, row), int(table.row_numbers[row]), column, cell)


def check_splits(table: Table, column: str) -> Iterator[Problem]:
    """Find cells of the split column that are not the name of a split."""

    def describe(row: int) -> str:
        cell = table.cell(column, row)
        problem = f"{cell!r} is not a split" if cell else "the split is empty"
        return f"{problem}: expected train, val (or valid, validation, dev) or test"

    splits = column_splits(table, column)
    assert splits is not None
    rows = np.flatnonzero(splits == NO_SPLIT)
    yield from row_problems(table, rows, column, describe, table.factorize(column)[0] if rows.size else None)


def check_ids(table: Table) -> Iterator[Problem]:
    """Find duplicate ids; a row without an id has its row number as id."""
    if "id" not in table.columns or table.is_unique("id"):
        return
    codes, ids = table.factorize("id")
    has_id = np.array([*map(bool, ids), False])[codes]
    if not has_id.all():
        index = {name: code for code, name in enumerate(ids)}
        for row in np.flatnonzero(~has_id):
            codes[row] = index.setdefault(str(table.row_numbers[row]), len(index))
    rows = np.arange(len(codes))
    first = np.empty(len(codes) + 1, np.int64)
    first[codes[::-1]] = rows[::-1]  # of repeated indices the last assignment remains

    def describe(row: int) -> str:
        return f"the id {table.sample_id(row)!r} was already used in row {table.row_numbers[first[codes[row]]]}"

    yield from row_problems(table, np.flatnonzero(first[codes] != rows), "id", describe)


def parse_number(text: str) -> float:
    """Return a finite number, NaN for another text."""
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def check_empty_rows(table: Table, columns: Sequence[str], empty: NDArray[np.bool_]) -> Iterator[Problem]:
    """Yield a problem for each empty row, in which all inputs are missing."""
    fix = "remove the row, or set data.drop_empty: true"

    def describe(row: int) -> str:
        sample, empty = table.sample_id(row), [column for column in columns if table.cell(column, row) is None]
        if len(empty) == len(columns):
            return f"all inputs of the sample {sample!r} are empty ({join_names(columns)}): fill one in, {fix}"
        reason = f"empty: {join_names(empty)}" if empty else f"{join_names(columns)} lacks a number"
        flag = "set missing_numbers: flag of the encoder"
        return f"the sample {sample!r} has no complete input ({reason}): fill it in, {flag}, {fix}"

    yield from row_problems(table, np.flatnonzero(empty), None, describe)


def find_outside_paths(table: Table, column: str, folder: str) -> dict[int, str]:
    """Return a dictionary from row to message for the paths that lie outside the absolute folder, as other URLs do."""
    outside = {}
    for row in table.matching_rows(column, MAY_LIE_OUTSIDE).tolist():
        path = resolve_path(table.cell(column, row), folder)
        if not is_inside(path, folder):
            outside[row] = describe_outside(path, folder)
    return outside


def check_files(table: Table, column: str, folder: str, rows: Rows, remote: RemoteFiles) -> Iterator[Problem]:
    """Find files of the given rows that do not exist, in parallel threads; paths are relative to the folder.

    Raises:
        UserError: if a server refuses access or cannot be reached.
    """

    def is_file(path: str) -> bool:
        return remote.exists(path) if is_url(path) else os.path.isfile(path)

    codes, cells = table.factorize(column)
    used = np.setdiff1d(codes[rows], [-1])
    paths = [resolve_path(cells[code], folder) for code in used]
    exists = np.array(map_in_threads(is_file, paths, "Looking for files"), bool)
    missing_rows = np.sort(rows[np.isin(codes[rows], used[~exists])])

    def describe(row: int) -> str:
        cell = cells[codes[row]]
        path = resolve_path(cell, folder)
        if is_url(path):
            return f"the file {cell!r} does not exist (looked for {path})"
        if os.path.isdir(path):
            return f"{cell!r} is a folder, expected a file ({path})"
        hint = "; separate folders by /" if "\\" in cell else ""
        return f"the file {cell!r} does not exist (looked for {path}){hint}"

    yield from row_problems(table, missing_rows, column, describe)


def map_in_threads(function: Callable[[Any], Any], items: Sequence[Any], description: str) -> list[Any]:
    """Return the result of a function for each item, in parallel threads; show a progress bar if there are many."""
    size = min(FILES_PER_TASK, len(items) // MAX_THREADS + 1)
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    is_hidden = len(items) < BAR_MIN_FILES or getattr(rank_zero_only, "rank", 0) > 0
    with ThreadPoolExecutor(MAX_THREADS) as threads:
        results = threads.map(lambda part: list(map(function, part)), parts)
        bar = track(results, description, len(parts), console=get_console(), transient=True, disable=is_hidden)
        return [result for part in bar for result in part]


def count_text_paths(texts: Sequence[str], root: str) -> int:
    """Return how many texts are paths of existing files; 0 if it is not most of the first ones, or not most of all."""
    count = 0
    for some in (texts[:NUM_TEXTS], texts):
        count = sum(os.path.isfile(os.path.join(root, text.strip())) for text in some)
        if 2 * count <= len(some):
            return 0
    return count
