"""File with the split of each row of a table: ``splits.csv`` of a run, or a table that a user writes."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusion_pl.files import atomic_write
from fusion_pl.tables.checks import check_splits, check_text_column
from fusion_pl.tables.hashes import id_hashes
from fusion_pl.tables.read_table import read_table
from fusion_pl.tables.splits import NO_SPLIT, SPLITS, column_splits
from fusion_pl.tables.table import Problem, Table, raise_problems

HASH_DIGITS = 16
HASH = re.compile(rf"[0-7][0-9a-f]{{{HASH_DIGITS - 1}}}")


@dataclass(frozen=True)
class FileSplits:
    """Splits of the rows of a table that a file contains.

    Attributes:
        splits: split of each row of the table, ``NO_SPLIT`` for rows that are not in the file.
        num_unknown: number of rows of the file that are not in the table.
    """

    splits: NDArray[np.int8]
    num_unknown: int


def read_split_file(path: str, table: Table, row_hashes: NDArray[np.int64]) -> FileSplits:
    """Find the rows of a table in a file of splits: by hash if the file has a column ``hash``, else by id.

    The id of a table row without an id is its row number.

    Raises:
        UserError: if the file cannot be read, has invalid cells or two splits for one row, or has no row of the table.
    """
    file = read_table(path)
    key_column = "hash" if "hash" in file.columns else "id"
    raise_problems(
        path, [*file.problems, *check_text_column(file, "split", "the split"), *_check_keys(file, key_column)]
    )
    raise_problems(path, check_splits(file, "split"))
    keys = file.cells(key_column)
    hashes = id_hashes(keys) if key_column == "id" else np.array([int(key, 16) for key in keys], np.int64)
    splits = column_splits(file, "split")
    assert splits is not None
    known, first, indices = np.unique(hashes, return_index=True, return_inverse=True)
    raise_problems(path, _check_conflicts(file, key_column, splits, first[indices]))
    wanted = row_hashes if key_column == "hash" else id_hashes(map(table.sample_id, range(len(table))))
    positions = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    found = known[positions] == wanted
    if not found.any():
        problem = (
            f"none of its rows is in {table.path}: give the splits of this table, whose rows have the same {key_column}"
        )
        raise_problems(path, [Problem(problem, column=key_column)])
    num_unknown = len(known) - len(np.unique(positions[found]))
    return FileSplits(np.where(found, splits[first[positions]], np.int8(NO_SPLIT)), num_unknown)


def _check_keys(file: Table, column: str) -> Iterator[Problem]:
    """Find cells of the column that identifies the rows that are empty or not a hash."""
    yield from check_text_column(file, column, "the id of each row (or its hash)")
    if column not in file.columns:
        return
    codes, texts = file.factorize(column)
    is_valid = HASH.fullmatch if column == "hash" else bool
    for row in np.flatnonzero(~np.array([*(bool(is_valid(text)) for text in texts), False])[codes]).tolist():
        expected = f"{HASH_DIGITS} hexadecimal digits" if column == "hash" else "the id of a row of the table"
        yield Problem(f"{file.cell(column, row)!r} is not {expected}", int(file.row_numbers[row]), column)


def _check_conflicts(
    file: Table, key_column: str, splits: NDArray[np.int8], first: NDArray[np.int64]
) -> Iterator[Problem]:
    """Find rows with another split than the first row with the same id or hash."""
    for row in np.flatnonzero(splits != splits[first]).tolist():
        split, earlier_split = SPLITS[splits[row]], SPLITS[splits[first[row]]]
        text = (
            f"the {key_column} {file.cell(key_column, row)!r} is {split} here and {earlier_split} in row "
            f"{file.row_numbers[first[row]]}: remove one of the rows"
        )
        yield Problem(text, int(file.row_numbers[row]), key_column)


def write_split_file(
    path: str | Path, table: Table, row_hashes: NDArray[np.int64], row_splits: NDArray[np.int8]
) -> None:
    """Write a CSV file with the row number, id, hash and split of each row, in the order of the table."""
    with atomic_write(path) as file:
        writer = csv.writer(file)
        writer.writerow(["row", "id", "hash", "split"])
        for row in np.flatnonzero(row_splits != NO_SPLIT).tolist():
            digits = f"{row_hashes[row]:0{HASH_DIGITS}x}"
            writer.writerow((table.row_numbers[row], table.sample_id(row), digits, SPLITS[row_splits[row]]))
