"""Open all distinct cells of the inputs of a table in parallel, and keep what was found out in arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from fusion_pl.data.rows import InputColumn
from fusion_pl.data.workers import iterate_in_workers
from fusion_pl.data_check.findings import Kind
from fusion_pl.data_check.values import GREY_SIZE, Flaw, Inspection, inspect_cell
from fusion_pl.tables.table import Cells
from fusion_pl.types import UserError


@dataclass
class InputCheck:
    """What is known of the V distinct values of an input with N rows.

    Attributes:
        column: column of the input.
        codes: for each row the index of its value; -1 if the input is missing or must not be opened.
        rows: for each value the first row that has it.
        content: hash of each value; 0 if it cannot be opened.
        grey: 8 × 9 grey pixels of each image; empty if the values are not images.
        has_grey: whether each value is an image of more than one colour.
        lengths: length of each value; NaN if the encoder does not limit it.
        limit: largest length that the encoder reads, and its unit; None if it does not limit it.
        flaws: (value, what is or may be wrong with it, whether it is an error).
    """

    column: InputColumn
    codes: NDArray[np.int64]
    rows: NDArray[np.int64]
    content: NDArray[np.uint64] = field(init=False)
    grey: NDArray[np.uint8] = field(init=False)
    has_grey: NDArray[np.bool_] = field(init=False)
    lengths: NDArray[np.float32] = field(init=False)
    limit: tuple[float, str] | None = None
    is_text: bool = False
    flaws: list[tuple[int, Flaw, bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        count, (width, height) = len(self.rows), GREY_SIZE
        self.content = np.zeros(count, np.uint64)
        self.grey = np.empty((0, height, width), np.uint8)
        self.has_grey = np.zeros(count, bool)
        self.lengths = np.full(count, np.nan, np.float32)

    @property
    def row_content(self) -> NDArray[np.uint64]:
        """Hash of the value of each row; 0 if it is missing or cannot be opened."""
        return np.append(self.content, np.uint64(0))[self.codes]

    @property
    def row_lengths(self) -> NDArray[np.float32]:
        """Length of the value of each row; NaN if it has none."""
        return np.append(self.lengths, np.float32(np.nan))[self.codes]

    def add(self, value: int, inspection: Inspection) -> None:
        """Keep the result of the inspection of a value."""
        self.content[value] = inspection.content
        self.is_text |= inspection.is_text
        if inspection.grey:
            if not len(self.grey):
                self.grey = np.zeros((len(self.rows), *self.grey.shape[1:]), np.uint8)
            self.grey[value] = np.frombuffer(inspection.grey, np.uint8).reshape(self.grey.shape[1:])
            self.has_grey[value] = True
        if inspection.length is not None:
            self.lengths[value] = inspection.length.value
            self.limit = inspection.length.limit, inspection.length.unit
        if inspection.error is not None:
            self.flaws.append((value, inspection.error, True))
        self.flaws += [(value, flaw, False) for flaw in inspection.warnings]


class DistinctCells(Dataset[Inspection]):
    """Data set of the distinct cells of several columns; an item is the inspection of a cell."""

    def __init__(self, inputs: Sequence[InputCheck]) -> None:
        self.columns = [replace(check.column, augment=None, whole=True) for check in inputs]
        self.rows = [check.rows for check in inputs]
        self.ends = np.cumsum([len(rows) for rows in self.rows])

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def locate(self, index: int) -> tuple[int, int]:
        """Return the index of a cell's column, and the index of the cell among the column's distinct cells."""
        column = int(np.searchsorted(self.ends, index, side="right"))
        return column, index - int(self.ends[column]) + len(self.rows[column])

    def __getitem__(self, index: int) -> Inspection:
        """Open and inspect a cell."""
        part, value = self.locate(index)
        column = self.columns[part]
        try:
            cell = column.cells[int(self.rows[part][value])]
        except UserError as error:  # a damaged shard
            return Inspection(Flaw(Kind.UNREADABLE, str(error)))
        return inspect_cell(column, cell)


def check_inputs(columns: Sequence[InputColumn], unusable: Sequence[set[int]], num_workers: int) -> list[InputCheck]:
    """Open and inspect all distinct cells, in several processes and with a progress bar.

    Args:
        columns: columns of all rows of a table.
        unusable: for each column the rows whose cell must not or cannot be opened, as is already known.
        num_workers: number of processes; 0 = this process.
    """
    inputs = []
    for column, skipped in zip(columns, unusable, strict=True):
        assert isinstance(column.cells, Cells)
        codes = column.cells.distinct()
        if skipped:
            codes[list(skipped)] = -1
        present, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
        num_missing = int(present.size > 0 and present[0] == -1)  # missing cells have one code
        inputs.append(InputCheck(column, inverse.astype(np.int64) - num_missing, first[num_missing:]))
    cells = DistinctCells(inputs)
    for index, inspection in enumerate(iterate_in_workers(cells, num_workers, "Checking files and texts")):
        column_index, value = cells.locate(index)
        inputs[column_index].add(value, inspection)
    return inputs
