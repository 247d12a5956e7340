"""Columns of the model's inputs in a table. Several columns of numbers are joined to one column of lists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from fusion_pl.messages import join_names
from fusion_pl.processors import Processor
from fusion_pl.tables.checks import (
    check_column,
    check_files,
    check_text_column,
    find_outside_paths,
    row_problems,
)
from fusion_pl.tables.remote import RemoteFiles
from fusion_pl.tables.table import Cells, Problem, Table, raise_problems

Columns = str | list[str]  # a column, or several columns of one input
ROWS_AT_ONCE = 10_000  # of lists, in which missing numbers are looked for
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


class TableInputs:
    """The columns of the model's inputs in a table.

    Args:
        manifest: table with all columns.
        columns: dictionary from input name to its column, or to several columns of numbers.
        processors: dictionary from input name to its processor.
        folder: absolute folder, or URL, of relative paths.
        remote: local copies of files at URLs.
        allow_outside: whether paths may lie outside the folder.
    """

    def __init__(
        self,
        manifest: Table,
        columns: Mapping[str, Columns],
        processors: Mapping[str, Processor],
        folder: str,
        remote: RemoteFiles,
        allow_outside: bool,
    ) -> None:
        self.manifest = manifest
        self.columns = columns
        self.processors = processors
        self.folder = folder
        self.remote = remote
        self.allow_outside = allow_outside

    @cached_property
    def table(self) -> Table:
        """The columns that loader workers need, with several columns of one input joined to one.

        A joined cell is a list of texts, None for a missing number. The processor of the input decides whether such a
        cell, or one of a column of lists, is missing if any of its numbers is missing, or only if all are.
        """
        available = set(self.manifest.columns)
        single = {
            column: self.processors[name]
            for name, column in self.columns.items()
            if isinstance(column, str) and column in available
        }
        lists = {column: _empty_lists(self.manifest, column, processor) for column, processor in single.items()}
        changed = {column: array for column, array in lists.items() if array is not None}
        joined = {
            joined_name(columns): _join(self.manifest, columns, self.processors[name].columns_needed == "any")
            for name, columns in self.columns.items()
            if not isinstance(columns, str) and set(columns) <= available
        }
        names = [*(["id"] if "id" in available else []), *(column for column in single if column not in changed)]
        return self.manifest.select(names).append(changed | joined)

    @cached_property
    def names(self) -> dict[str, str]:
        """Dictionary from input name to its column in ``table``, for inputs that the table has."""
        names = {name: joined_name(columns) for name, columns in self.columns.items()}
        return {name: column for name, column in names.items() if column in self.table.columns}

    @property
    def all_columns(self) -> list[str]:
        """Columns of all inputs, whether the table has them or not."""
        return [name for columns in self.columns.values() for name in column_names(columns)]

    @property
    def missing_columns(self) -> list[str]:
        """Columns that the table lacks."""
        return [name for name in self.all_columns if name not in self.manifest.columns]

    def find_empty_rows(self) -> NDArray[np.bool_]:
        """Return for each row whether all inputs are missing."""
        empty = np.ones(len(self.table), bool)
        for column in self.names.values():
            empty &= self.table.is_missing(column)
        return empty

    def cells(self, name: str, rows: NDArray[np.int64]) -> Cells:
        """Return the cells of an input in some rows."""
        root = self.folder if name in self._path_columns else None
        return Cells(self.table, self.names[name], rows, root, self.allow_outside)

    def find_outside_paths(self) -> dict[int, str]:
        """Return a dictionary from row to message for the paths that lie outside the folder."""
        errors: dict[int, str] = {}
        for column in self._path_columns.values():
            errors |= self._find_outside(column)
        return errors

    def check_columns(self) -> Iterator[Problem]:
        """Find columns that do not exist, and cells of several columns that are not numbers."""
        for name, columns in self.columns.items():
            yield from check_input_columns(self.manifest, name, columns)
            if not isinstance(columns, str):
                yield from self._check_several(name, columns)

    def check_paths(self, rows: NDArray[np.int64], with_files: bool) -> Iterator[Problem]:
        """Find paths that lie outside the folder and, in the given rows, files that do not exist."""
        for column in self._path_columns.values():
            outside = self._find_outside(column)
            numbers = self.table.row_numbers
            yield from (Problem(text, int(numbers[row]), column) for row, text in outside.items())
            if with_files:
                yield from check_files(self.table, column, self.folder, np.setdiff1d(rows, list(outside)), self.remote)

    @property
    def _path_columns(self) -> dict[str, str]:
        """Dictionary from input name to its column, for inputs that are files."""
        files = {name for name, processor in self.processors.items() if processor.reads_files}
        return {name: self.names[name] for name in self.names if name in files and isinstance(self.columns[name], str)}

    def _find_outside(self, column: str) -> dict[int, str]:
        return {} if self.allow_outside else find_outside_paths(self.table, column, self.folder)

    def _check_several(self, name: str, columns: Sequence[str]) -> Iterator[Problem]:
        processor = self.processors[name]
        if processor.columns_needed is None or not columns:
            reads = "one column" if processor.columns_needed is None else "at least one column"
            yield Problem(f"data.inputs has {columns} for {name!r}, but its {type(processor).__name__} reads {reads}")
            return
        for column in columns:
            if column in self.manifest.columns:
                yield from check_text_column(self.manifest, column, f"the input {name!r}")
                yield from _check_numbers(self.manifest, column)


def column_names(columns: Columns) -> Sequence[str]:
    """Return the columns of an input in the manifest."""
    return [columns] if isinstance(columns, str) else columns


def check_input_names(inputs: Iterable[str], processors: Iterable[str]) -> Iterator[Problem]:
    """Check that the inputs whose columns are given are inputs of the model."""
    known = set(processors)
    for name in sorted(set(inputs) - known):
        yield Problem(f"data.inputs has the input {name!r}, but the model's inputs are {join_names(processors)}")


def check_input_columns(manifest: Table, name: str, columns: Columns) -> Iterator[Problem]:
    """Check that the columns of an input exist."""
    fix = f"give another column with --data.inputs.{name}, or leave {name} out of model.encoders"
    for column in column_names(columns):
        yield from check_column(manifest, column, f"the input {name!r}", fix)


def check_prediction_columns(place: str, inputs: TableInputs, problems: Iterable[Problem] = ()) -> None:
    """Check that a table has a column of the model's inputs, and log those that it lacks.

    Args:
        place: path of the table, or name of the data set.
        inputs: columns of the inputs.
        problems: problems that were found before.

    Raises:
        UserError: if there are problems, or the table has no column of an input.
    """
    found, missing = list(problems), inputs.missing_columns
    if not inputs.names:
        found += [problem for column in missing for problem in check_column(inputs.manifest, column, "an input")]
    raise_problems(place, found)
    if missing:
        lacking = [name for name in inputs.columns if name not in inputs.names]
        columns = f"column{'s' * (len(missing) > 1)} {join_names(map(repr, missing))}"
        rank_zero_info(f"{place} has no {columns}: predicting without {join_names(lacking)}")


def joined_name(columns: Columns) -> str:
    """Return the name of an input's column in the joined table.

    Example:
        >>> joined_name("photo"), joined_name(["width", "height"])
        ('photo', '[width, height]')
    """
    return columns if isinstance(columns, str) else f"[{', '.join(columns)}]"


def _join(table: Table, columns: Sequence[str], any_is_enough: bool) -> Any:
    """Return an Arrow array of lists with the texts of several columns."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not columns:
        return pa.nulls(len(table), pa.list_(pa.string()))
    is_missing = np.stack([table.is_missing(column) for column in columns])
    chunks = []
    for column, missing in zip(columns, is_missing, strict=True):
        texts = table.texts(column).cast(pa.string())
        chunks += pa.chunked_array(pc.if_else(pa.array(missing), pa.scalar(None, pa.string()), texts)).chunks
    by_row = np.arange(is_missing.size).reshape(is_missing.shape).T.ravel()
    missing = is_missing.all(0) if any_is_enough else is_missing.any(0)
    cells = pa.concat_arrays(chunks).take(pa.array(by_row))
    return pa.FixedSizeListArray.from_arrays(cells, len(columns), mask=pa.array(missing))


def _empty_lists(table: Table, column: str, processor: Processor) -> Any | None:
    """Return a column of lists without those that the processor calls missing; None if there are none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array, missing = table.data[column], np.zeros(len(table), bool)
    for start in range(0, len(table), ROWS_AT_ONCE):
        for row in _incomplete_rows(array.slice(start, ROWS_AT_ONCE)):
            missing[start + row] = processor.is_missing(table.cell(column, start + row))
    return pc.if_else(pa.array(missing), pa.scalar(None, array.type), array) if missing.any() else None


def _incomplete_rows(lists: Any) -> list[int]:
    """Return the rows of an Arrow array of lists that contain null or NaN, at any depth."""
    import pyarrow.compute as pc
    from pyarrow import types

    rows, found = np.arange(len(lists)), [np.empty(0, np.int64)]
    while types.is_list(lists.type) or types.is_large_list(lists.type) or types.is_fixed_size_list(lists.type):
        rows = rows[pc.list_parent_indices(lists).to_numpy()]
        lists = pc.list_flatten(lists)
        found.append(rows[np.asarray(pc.is_null(lists, nan_is_null=True), bool)])
    incomplete: list[int] = np.unique(np.concatenate(found)).tolist()
    return incomplete


def _check_numbers(table: Table, column: str) -> Iterator[Problem]:
    """Find cells that are neither missing nor finite numbers."""
    import pyarrow.compute as pc

    def describe(row: int) -> str:
        return f"{table.cell(column, row)!r} is not a finite number: correct it, or empty the cell"

    if table.is_text(column):
        texts = pc.ascii_trim_whitespace(table.texts(column).cast("string"))
        texts = pc.if_else(pc.match_substring_regex(texts, NUMBER), texts, None)
        is_finite = pc.is_finite(texts.cast("double")).fill_null(False)  # 1e999 is infinite
        rows = np.flatnonzero(~np.asarray(is_finite, bool) & ~table.is_missing(column))
        yield from row_problems(table, rows, column, describe)
