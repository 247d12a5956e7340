"""Map-style data set of the samples of one split, which opens files in the workers of the data loader."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset

from fusion_pl.processors.base import OPEN_ERRORS, Processor
from fusion_pl.tables.arrow_cells import is_string
from fusion_pl.tables.remote import RemoteFiles, is_url
from fusion_pl.tables.table import Cells, Table
from fusion_pl.types import Sample, UserError

OnBadFile = Literal["raise", "missing"]
Value = TypeVar("Value")

LIST_ERRORS = "fusion-pl data check lists all such rows"


class LoadError(UserError):
    """User error that is raised in a loader worker.

    In the main process, the data loader raises the error again, with the traceback of the worker as its text. The
    constructor therefore extracts the message from a traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


@dataclass(frozen=True)
class InputColumn:
    """Cells of one input, one per row: absolute paths or URLs if its processor reads files; None = missing input."""

    input: str
    column: str
    processor: Processor
    cells: Sequence[Any]
    training: bool = False
    augment: nn.Module | None = None
    whole: bool = False  # whether to open complete files, so that damage in any part of a file is found
    remote: RemoteFiles | None = None  # local copies of the files at URLs

    @property
    def reads_paths(self) -> bool:
        """Whether the cells are paths of files."""
        return isinstance(self.cells, Cells) and self.cells.root is not None

    def read_texts(self, indices: Sequence[int]) -> dict[int, str | None]:
        """Return the cells at some indices if they are texts; otherwise an empty dictionary, as files may be large."""
        is_text = type(self.cells) is Cells and is_string(self.cells.table.data[self.column].type)
        return {index: self.cells[index] for index in indices} if is_text else {}

    def open(self, cell: Any) -> Any:
        """Open a cell."""
        return self.open_local(cell, self._open)

    def open_local(self, cell: Any, open_cell: Callable[[Any], Value]) -> Value:
        """Return ``open_cell(cell)``, with the path of a local copy in place of a URL.

        Raises:
            UserError: if the cell is a path outside the root.
        """
        if isinstance(self.cells, Cells) and self.reads_paths and isinstance(cell, str):
            self.cells.check_path(cell)
            if self.remote and is_url(cell):
                return self.remote.open(cell, open_cell)
        return open_cell(cell)

    def _open(self, cell: Any) -> Any:
        return self.processor.open_whole(cell) if self.whole else self.processor.open(cell, self.training)


@dataclass(frozen=True)
class ManifestRows(Dataset[Sample]):
    """Data set of rows of a manifest. Another row never replaces a row that cannot be read."""

    manifest: str  # path of the manifest, for messages
    columns: Sequence[InputColumn]
    table: Table  # for ids and row numbers
    rows: NDArray[np.int64]  # rows of the table
    targets: NDArray[np.int64] | None = None  # one element or row for each of them
    on_bad_file: OnBadFile = "raise"
    # For prediction: a row without readable inputs becomes a sample without inputs, with the message in ``bad_files``.
    return_errors: bool = False
    joint_augment: Mapping[tuple[str, ...], nn.Module] = field(default_factory=dict)  # names of the inputs -> transform
    errors: Mapping[int, str] = field(default_factory=dict)  # index -> message for rows that must not be read

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def processors(self) -> dict[str, Processor]:
        """Dictionary from input name to the processor of its column."""
        return {column.input: column.processor for column in self.columns}

    def is_augmented(self, column: InputColumn) -> bool:
        """Return whether the input of a column is augmented, alone or together with others."""
        return column.augment is not None or any(column.input in names for names in self.joint_augment)

    def place(self, column: InputColumn, index: int) -> str:
        """Return file, row and column of a cell, for messages."""
        return f"{self._row(index)}, column {column.column!r}"

    def without_augmentation(self) -> ManifestRows:
        """Return the rows with inputs as in validation: not augmented, and not cropped at random."""
        columns = [replace(column, augment=None, training=False) for column in self.columns]
        return replace(self, columns=columns, joint_augment={})

    def select_input(self, name: str) -> ManifestRows:
        """Return the rows that have an input, without their other inputs and without augmentation.

        If unreadable files are missing inputs, their rows have no input.
        """
        (column,) = (column for column in self.columns if column.input == name)
        assert isinstance(column.cells, Cells)
        present = np.flatnonzero(~self.table.is_missing(column.column)[self.rows])
        cells = replace(column.cells, rows=self.rows[present])
        column = replace(column, cells=cells, augment=None, training=False)
        targets = None if self.targets is None else self.targets[present]
        return replace(
            self,
            columns=[column],
            joint_augment={},
            rows=self.rows[present],
            targets=targets,
            return_errors=self.on_bad_file == "missing",
        )

    def __getitem__(self, index: int) -> Sample:
        """Load one row, see ``__getitems__``."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Load rows, one input after the other: alternating between decoders takes 30 % longer for small files.

        For the same reason, the texts of a column, such as paths, are read before a file is opened.

        Raises:
            LoadError: if a file cannot be read (unless ``on_bad_file`` is ``missing``) or no input is left (unless
                ``return_errors`` is set).
        """
        inputs: list[dict[str, Any]] = [{} for _ in indices]
        for column in self.columns:
            texts = column.read_texts(indices)
            for index, values in zip(indices, inputs, strict=True):
                if index not in self.errors and (value := self._open(column, index, texts)) is not None:
                    values[column.input] = value
        return [self._make_sample(index, values) for index, values in zip(indices, inputs, strict=True)]

    def _open(self, column: InputColumn, index: int, texts: Mapping[int, str | None]) -> Any:
        """Open and augment a cell; return None if it is missing, an error if it cannot be opened."""
        try:
            if (cell := texts[index] if texts else column.cells[index]) is None:
                return None
            value = column.open(cell)
        except LoadError:  # not about this value alone
            raise
        except OPEN_ERRORS as error:
            load_error = LoadError(f"{self.place(column, index)}: {error}")
            load_error.__cause__ = error
            return load_error
        if column.augment is None:
            return value
        return _augment(column.augment, value, f"input {column.input!r} of {self._row(index)}")

    def _make_sample(self, index: int, values: dict[str, Any]) -> Sample:
        """Return a sample with the opened values, which may be errors."""
        failed = {name: value for name, value in values.items() if isinstance(value, LoadError)}
        inputs = {name: value for name, value in values.items() if name not in failed} if failed else values
        messages = tuple(map(str, failed.values()))
        if (failed and self.on_bad_file == "raise") or not inputs:
            error = self._row_error(index, list(failed.values()))
            if not self.return_errors:
                raise LoadError(f"{error}; {LIST_ERRORS}") from error
            inputs, messages = {}, (str(error),)
        for names, transform in self.joint_augment.items():
            present = {name: inputs[name] for name in names if name in inputs}
            if present:
                place = f"the inputs {', '.join(present)} of {self._row(index)}"
                inputs = inputs | _augment_jointly(transform, present, place)
        return Sample(self.sample_id(index), inputs, self._target(index), messages)

    def _row_error(self, index: int, errors: Sequence[LoadError]) -> LoadError:
        """Return the error of a row that is not used, which has unreadable files or no inputs."""
        if index in self.errors:
            return LoadError(f"{self._row(index)}: {self.errors[index]}")
        if errors and self.on_bad_file == "raise":
            return errors[0]
        if not errors:
            return LoadError(f"{self._row(index)}: all inputs are empty: fill one in, or remove the row")
        reason = "; ".join(map(str, errors))
        return LoadError(f"{reason}: the sample {self.sample_id(index)!r} has no other input, so remove the row")

    def _row(self, index: int) -> str:
        return f"{self.manifest}, row {self.table.row_numbers[self.rows[index]]}"

    def sample_id(self, index: int) -> str:
        """Return the id of a sample."""
        return self.table.sample_id(int(self.rows[index]))

    def _target(self, index: int) -> int | list[int] | None:
        return None if self.targets is None else self.targets[index].tolist()


def _augment(transform: nn.Module, value: Any, place: str) -> Any:
    try:
        return transform(value)
    except (ValueError, TypeError, RuntimeError) as error:  # from transforms of other libraries
        text = f"{type(transform).__name__} failed on {place} ({error}): check its arguments"
        raise LoadError(f"data.augment: {text}") from error


def _augment_jointly(transform: nn.Module, values: dict[str, Any], place: str) -> dict[str, Any]:
    augmented = _augment(transform, values, place)
    if not isinstance(augmented, dict) or augmented.keys() != values.keys():
        found = f"the keys {', '.join(augmented)}" if isinstance(augmented, dict) else type(augmented).__name__
        raise LoadError(
            f"data.augment: {type(transform).__name__} returned {found} for {place}: a transform of several inputs "
            "gets a dictionary from input name to value, and must return one with the same keys"
        )
    return augmented
