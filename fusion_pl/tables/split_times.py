"""Splits by time: the earliest rows are train, the next ones val, and the latest ones test."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from fusion_pl.tables.checks import parse_number, row_problems
from fusion_pl.tables.splits import NO_SPLIT, SPLITS, TEST, TRAIN, VAL, Split
from fusion_pl.tables.table import Problem, Table


def read_times(table: Table, column: str) -> NDArray[np.float64]:
    """Return the time of each row: its number, or the seconds of its ISO date since 1970; NaN if it has none.

    All cells are numbers, or all are dates such as ``2024-01-31`` or ``2024-01-31T12:30:00+01:00``; a date without a
    time zone is in UTC.
    """
    codes, texts = table.factorize(column)
    numbers = [parse_number(text) for text in texts]
    times = numbers if any(map(math.isfinite, numbers)) else [_parse_date(text) for text in texts]
    return np.array([*times, math.nan])[codes]


def _parse_date(text: str) -> float:
    try:
        date = datetime.fromisoformat(text.strip())
    except ValueError:
        return math.nan
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


def check_times(table: Table, column: str) -> Iterator[Problem]:
    """Find cells of the time column that are empty, or neither a number nor a date as the other cells."""

    def describe(row: int) -> str:
        cell = table.cell(column, row)
        problem = f"{cell!r} is not a time like those of other rows" if cell else "the time is empty"
        return f"{problem}: expected a number in every row, or an ISO date such as 2024-01-31 in every row"

    return row_problems(table, np.flatnonzero(np.isnan(read_times(table, column))), column, describe)


def split_by_time(
    times: NDArray[np.float64], fractions: Mapping[Split, float], known_splits: NDArray[np.int8] | None = None
) -> NDArray[np.int8]:
    """Assign rows to splits in the order of time; rows of the same time share a split.

    The sizes are those nearest to the fractions. If there are as many different times as splits, no split is empty.
    Unlike drawn splits, splits by time cannot promise that a row keeps its split when others are added, nor that every
    class has a training row.

    Args:
        times: time of each row.
        fractions: fractions of val and test, if they are wanted.
        known_splits: split of each row in an earlier run, or ``NO_SPLIT``. If any are known, these rows keep their
            split, and the others get the one of their time between them.

    Returns:
        Split of each row.

    Example:
        >>> split_by_time(np.array([3.0, 1.0, 2.0, 2.0]), {"val": 0.5, "test": 0.25}).tolist()
        [2, 0, 1, 1]
    """
    known = np.full(len(times), NO_SPLIT, np.int8) if known_splits is None else known_splits
    if (known != NO_SPLIT).any():
        test_start = times[known == TEST].min(initial=math.inf)
        val_start = min(times[known == VAL].min(initial=math.inf), test_start)
    else:
        val_start, test_start = _find_starts(times, fractions)
    splits = np.select([times >= test_start, times >= val_start], [np.int8(TEST), np.int8(VAL)], np.int8(TRAIN))
    return np.where(known == NO_SPLIT, splits, known)


def _find_starts(times: NDArray[np.float64], fractions: Mapping[Split, float]) -> tuple[float, float]:
    """Return the first times of val and of test."""
    different, counts = np.unique(times, return_counts=True)
    earlier = np.cumsum(counts) - counts  # number of rows before each of the different times
    end = len(different)
    test_size = len(times) * fractions.get("test", 0.0)
    if test_size and end > 2:  # train and val need a time each
        end = 2 + int(np.abs(earlier[2:] - (len(times) - test_size)).argmin())
    if end < 2:
        return math.inf, math.inf
    train_size = len(times) - test_size - len(times) * fractions.get("val", 0.0)
    start = 1 + int(np.abs(earlier[1:end] - train_size).argmin())
    return float(different[start]), float(different[end]) if end < len(different) else math.inf


def check_time_order(
    table: Table, column: str, times: NDArray[np.float64], rows: Mapping[Split, NDArray[np.int64]]
) -> Iterator[Problem]:
    """Find splits that are not later than the splits before them, which a split column or an earlier run may have."""
    for split, later_split in combinations(SPLITS, 2):
        before, after = rows[split], rows[later_split]
        if before.size and after.size and times[before].max() >= times[after].min():
            last, first = int(before[times[before].argmax()]), int(after[times[after].argmin()])
            yield Problem(
                f"{split} is not earlier than {later_split}: the {split} row {table.row_numbers[last]} has the time "
                f"{table.cell(column, last)}, and the {later_split} row {table.row_numbers[first]} has "
                f"{table.cell(column, first)}: correct the times or the splits, or leave out data.time",
                column=column,
            )
