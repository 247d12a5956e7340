"""Groups of rows: by a column of the table, by the length of a text or sound, and by missing inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion_pl.evaluate.evaluation import Evaluation
from fusion_pl.messages import truncate
from fusion_pl.tables.checks import check_text_column, parse_number
from fusion_pl.tables.table import Table, raise_problems

MAX_NUMBERS = 10  # a column with more distinct numbers is divided into bins
NUM_BINS = 4
EMPTY_GROUP = "(empty)"


@dataclass(frozen=True)
class Grouping:
    """A division of N rows into groups.

    Attributes:
        name: name of the column, or what the groups differ in.
        names: names of the groups.
        codes: group of each row.
    """

    name: str
    names: list[str]
    codes: NDArray[np.int64]


def parse_columns(value: list[str] | str, table: Table) -> list[str]:
    """Return the columns of ``--groups``, a list or names that are separated by commas.

    Raises:
        UserError: if the table lacks a column, or its cells are neither text nor numbers.
    """
    names = value.split(",") if isinstance(value, str) else value
    columns = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    raise_problems(table.path, [problem for name in columns for problem in check_text_column(table, name, "--groups")])
    return columns


def groupings(evaluation: Evaluation, columns: Sequence[str]) -> Iterator[Grouping]:
    """Yield the groupings of the rows: by columns, by lengths and by missing inputs.

    A grouping by lengths or missing inputs is left out if all rows are in one group.
    """
    for column in columns:
        yield group_by_column(evaluation.data.table, column, evaluation.rows)
    for name, lengths in evaluation.lengths.items():
        if len((grouping := group_by_number(f"length of {name}", lengths)).names) > 1:
            yield grouping
    inputs, present = list(evaluation.predictor.processors), evaluation.outputs.present.numpy()
    patterns, codes = np.unique(present, axis=0, return_inverse=True)
    if len(patterns) > 1:
        names = [" + ".join(np.array(inputs)[pattern].tolist()) for pattern in patterns]
        yield Grouping("present inputs", names, codes.reshape(-1).astype(np.int64))


def group_by_column(table: Table, column: str, rows: NDArray[np.int64]) -> Grouping:
    """Return the groups of equal cells; of many distinct numbers, bins with equal numbers of rows."""
    codes, texts = table.factorize(column)
    texts = [text.strip() for text in texts]
    used = codes[rows]
    distinct = {texts[code] for code in np.unique(used[used >= 0])} - {""}
    numbers = {text: parse_number(text) for text in distinct}
    if len(distinct) > MAX_NUMBERS and not np.isnan(list(numbers.values())).any():
        values = np.array([*(numbers.get(text, np.nan) for text in texts), np.nan])
        return group_by_number(column, values[used])
    names = sorted(distinct, key=lambda text: (not np.isfinite(numbers[text]), numbers[text], text))
    index = {name: code for code, name in enumerate(names)}
    new_codes = np.array([*(index.get(text, len(names)) for text in texts), len(names)])[used]
    if (new_codes == len(names)).any():
        names.append(EMPTY_GROUP)
    return Grouping(column, [truncate(name, 60) for name in names], new_codes)


def group_by_number(name: str, values: NDArray[np.float64]) -> Grouping:
    """Return bins between the quartiles of numbers; NaN is a group of its own."""
    finite = values[np.isfinite(values)]
    edges = np.unique(np.quantile(finite, np.arange(1, NUM_BINS) / NUM_BINS)) if finite.size else np.empty(0)
    bins = np.searchsorted(edges, values, side="left")  # edges[i - 1] < value <= edges[i]
    bins[~np.isfinite(values)] = len(edges) + 1
    used = np.unique(bins)
    names = [_bin_name(values[bins == code]) if code <= len(edges) else EMPTY_GROUP for code in used]
    return Grouping(name, names, np.searchsorted(used, bins).astype(np.int64))


def _bin_name(values: NDArray[np.float64]) -> str:
    low, high = values.min(), values.max()
    return f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"
