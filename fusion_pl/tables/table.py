"""Table of a manifest: Arrow columns in their own types, and the row numbers for messages."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusion_pl.messages import join_lines
from fusion_pl.tables.arrow_cells import cell_converter, convert_array, is_media, is_string, is_text
from fusion_pl.tables.arrow_file import MappedFile, check_unchanged, open_columns, write_arrow, write_temporary
from fusion_pl.tables.remote import is_inside, is_url, join_url
from fusion_pl.types import MAX_PIPED_BYTES, UserError

MAX_SHOWN = 10
MAX_STRING_BYTES = 2**31  # of an Arrow array of the type ``string``


class Problem(NamedTuple):
    """Problem in a manifest, such as a missing column or an invalid cell."""

    text: str | Callable[[], str]  # what is wrong, and what is expected; a function if there may be very many problems
    row: int = 0  # row number in a spreadsheet (header = 1), line of a JSON Lines file, or row from 1; 0 = all rows
    column: str | None = None
    cell: int | None = None  # index among the distinct cells of the column; problems of one cell have the same text

    def __str__(self) -> str:
        return self.locate()

    def locate(self, others: int = 0) -> str:
        """Return the problem with row and column, and with the number of other rows that have the same cell."""
        rows = f"row {self.row}" + (f" and {others:,} other {'row' if others == 1 else 'rows'}" if others else "")
        location = [rows] * bool(self.row) + [f"column {self.column!r}"] * (self.column is not None)
        return f"{', '.join(location)}: {self.describe()}" if location else self.describe()

    def describe(self) -> str:
        """Return what is wrong and what is expected, without the row and the column."""
        return self.text if isinstance(self.text, str) else self.text()


def raise_problems(path: str, problems: Iterable[Problem]) -> None:
    """Raise one error that lists the first ten problems; do nothing if there are no problems.

    Rows with the same cell are one problem.

    Raises:
        UserError: if there are problems; the message starts with the path and the number of problems.
    """
    if every := sorted(problems, key=lambda problem: problem.row):
        groups: dict[Any, list[Problem]] = {}
        for index, problem in enumerate(every):
            groups.setdefault(-index if problem.cell is None else (problem.column, problem.cell), []).append(problem)
        ordered = list(groups.values())
        count = "1 problem" if len(ordered) == 1 else f"{len(ordered)} problems"
        shown = [first.locate(len(others)) for first, *others in ordered[:MAX_SHOWN]]
        shown += [""] * len(ordered[MAX_SHOWN:])
        raise UserError(f"{path} has {count}:\n  {join_lines(shown, MAX_SHOWN)}")


def check_column_names(place: str, names: Sequence[str]) -> None:
    """Check that no column appears more than once; ``place`` is the start of the message.

    Raises:
        UserError: if there is one.
    """
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise UserError(f"{place}: the column {duplicates[0]!r} appears more than once: rename one of them")


@dataclass(frozen=True, eq=False)
class Table:
    """Content of a manifest. A pickled table is small: other processes memory-map the columns from a file."""

    path: str
    data: Any  # pyarrow.Table; pyarrow is imported only when a table is read
    row_numbers: NDArray[np.int64]  # one per row, see ``Problem.row``
    problems: list[Problem] = field(default_factory=list)  # rows that cannot be read and are left out
    files: tuple[
        MappedFile, ...
    ] = ()  # Arrow files whose memory maps hold the columns, one after the other, if there are any
    computed: frozenset[str] = frozenset()  # columns that are not those of the files

    def __len__(self) -> int:
        return len(self.row_numbers)

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self.data.column_names)

    def cell(self, column: str, row: int) -> Any:
        """Return a cell in constant time.

        Returns:
            ``str`` for text, numbers (``"3"``), booleans (``"true"``) and dates; ``bytes``; a list or dictionary for
            other nested types; None if the cell is empty or NaN. A struct of ``bytes`` and ``path``, as Hugging Face
            datasets have for media, is its bytes, or its path if it has no bytes.
        """
        array, convert = self._converters[column]
        scalar = array[row]
        return convert(scalar) if scalar.is_valid else None

    def cells(self, column: str, start: int = 0, stop: int | None = None) -> list[Any]:
        """Return the cells of a range of rows, see ``cell``."""
        return convert_array(self.data[column][start:stop])

    def sample_id(self, row: int) -> str:
        """Return the id of a row: its cell in the column ``id``, or its row number if the cell is empty."""
        value = self.cell("id", row) if "id" in self._converters else None
        return value if value and isinstance(value, str) else str(self.row_numbers[row])

    def is_text(self, column: str) -> bool:
        """Return whether all cells of a column are text, numbers, booleans or dates."""
        return is_text(self.data[column].type)

    def factorize(self, column: str) -> tuple[NDArray[np.int64], list[str]]:
        """Return the index of each cell's text in a list of distinct texts (-1 = no text), and the list."""
        array = self.texts(column)
        if is_string(array.type) and array.nbytes >= MAX_STRING_BYTES:
            array = array.cast("large_string")
        encoded = array.combine_chunks().dictionary_encode()
        texts = convert_array(encoded.dictionary)
        codes = encoded.indices.fill_null(-1).to_numpy().astype(np.int64)
        nan = [code for code, text in enumerate(texts) if text is None]
        if nan:
            codes[np.isin(codes, nan)] = -1
        return codes, [text or "" for text in texts]

    def is_unique(self, column: str) -> bool:
        """Return whether the cells of a column are different texts, none of them empty."""
        import pyarrow as pa
        import pyarrow.compute as pc

        texts = self.texts(column)
        if not is_string(texts.type) or texts.null_count or self.matching_rows(column, "^$").size:
            return False
        count = pc.count_distinct(texts, mode="all").as_py()
        pa.default_memory_pool().release_unused()  # 70 bytes per text
        return bool(count == len(self))

    def is_missing(self, column: str) -> NDArray[np.bool_]:
        """Return for each row whether its cell is missing."""
        import pyarrow.compute as pc

        array = self.data[column]
        if is_media(array.type):
            parts = [pc.is_null(pc.struct_field(array, name)) for name in ("bytes", "path")]
            return np.asarray(pc.and_(*parts), bool)
        return np.asarray(pc.is_null(array, nan_is_null=True), bool)

    def matching_rows(self, column: str, pattern: str) -> NDArray[np.int64]:
        """Return the rows whose cell is a text that contains a match of a regular expression."""
        import pyarrow.compute as pc

        texts = self.texts(column)
        if not is_string(texts.type):
            return np.empty(0, np.int64)
        return np.flatnonzero(np.asarray(pc.match_substring_regex(texts, pattern).fill_null(False), bool))

    def select(self, columns: Iterable[str]) -> Table:
        """Return a table with some of the columns."""
        data = self.data.select(list(dict.fromkeys(columns)))
        return Table(self.path, data, self.row_numbers, files=self.files, computed=self.computed)

    def slice(self, start: int, stop: int) -> Table:
        """Return a table with a range of the rows."""
        return Table(self.path, self.data.slice(start, stop - start), self.row_numbers[start:stop])

    def append(self, columns: Mapping[str, Any]) -> Table:
        """Return a table with further Arrow columns, which the files lack."""
        data = self.data
        for name, array in columns.items():
            data = data.append_column(name, array)
        computed = self.computed.union(columns)
        return Table(self.path, data, self.row_numbers, files=self.files, computed=computed)

    def texts(self, column: str) -> Any:
        """Return an Arrow array of the cells that are text or can be written as text; the others are null."""
        import pyarrow as pa
        import pyarrow.compute as pc

        array = self.data[column]
        if is_media(array.type):
            has_bytes = pc.is_valid(pc.struct_field(array, "bytes"))
            path = pc.struct_field(array, "path")
            return pc.if_else(has_bytes, pa.scalar(None, path.type), path)
        if pa.types.is_union(array.type):  # each cell has its own type
            texts = [cell if isinstance(cell, str) else None for cell in self.cells(column)]
            return pa.chunked_array([texts], pa.string())
        return array if self.is_text(column) else pa.chunked_array([pa.nulls(len(array), pa.string())])

    @cached_property
    def _converters(self) -> dict[str, tuple[Any, Callable[[Any], Any]]]:
        """Dictionary from column name to its Arrow array and the function that converts a scalar of the array."""
        return {name: (self.data[name], cell_converter(self.data[name].type)) for name in self.data.column_names}

    @cached_property
    def _sources(self) -> list[tuple[tuple[MappedFile, ...], list[str]]]:
        """Arrow files, and the columns that other processes memory-map; a temporary file is removed at exit."""
        computed = [name for name in self.columns if name in self.computed or not self.files]
        sources = [(self.files, [name for name in self.columns if name not in computed])] if self.files else []
        if computed:
            data = self.data.select(computed)
            sources.append(((write_temporary(data.schema, [data]),), computed))
        return sources

    def __getstate__(self) -> dict[str, Any]:
        content: bytes | list[tuple[tuple[MappedFile, ...], list[str]]]
        if self.data.nbytes <= MAX_PIPED_BYTES:
            buffer = io.BytesIO()
            write_arrow(buffer, self.data.schema, [self.data])
            content = buffer.getvalue()
        else:
            content = self._sources
            for files, _ in content:
                check_unchanged(files)  # an error in a worker that is being started would have a traceback
        return {"path": self.path, "row_numbers": self.row_numbers, "columns": self.columns, "content": content}

    def __setstate__(self, state: dict[str, Any]) -> None:
        import pyarrow as pa

        columns, content = state.pop("columns"), state.pop("content")
        self.__dict__.update(state, problems=[], files=(), computed=frozenset())
        if isinstance(content, bytes):
            self.__dict__["data"] = open_columns([content], columns)
            return
        arrays: dict[str, Any] = {}
        for files, names in content:
            check_unchanged(files)
            arrays |= dict(zip(names, open_columns([file.path for file in files], names).columns, strict=True))
        data = pa.table({name: arrays[name] for name in columns})
        computed = frozenset(name for _, names in content[1:] for name in names)
        self.__dict__.update(data=data, files=content[0][0], computed=computed, _sources=content)


@dataclass(frozen=True)
class Cells(Sequence[Any]):
    """Cells of a column in some rows of a table, each read when it is used.

    A text of a column of paths is converted to an absolute path without ``..``, or to a URL; symbolic links are not
    resolved.
    """

    table: Table
    column: str
    rows: NDArray[np.int64]
    root: str | None = None  # absolute folder or URL of the paths; None if the texts are not paths
    allow_outside: bool = False  # whether a path may lie outside the root

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        cell = self.table.cell(self.column, int(self.rows[index]))
        return resolve_path(cell, self.root) if self.root is not None and isinstance(cell, str) else cell

    def check_path(self, path: str) -> None:
        """Raise an error for a path that lies outside the root, unless it may.

        Raises:
            UserError: if it does.
        """
        if self.root is not None and not self.allow_outside and not is_inside(path, self.root):
            raise UserError(describe_outside(path, self.root))

    def distinct(self) -> NDArray[np.int64]:
        """Return a number per cell, which is equal for equal texts and unique for other cells; -1 = missing."""
        codes = self.table.factorize(self.column)[0][self.rows]
        others = (codes < 0) & ~self.table.is_missing(self.column)[self.rows]
        codes[others] = codes.max(initial=-1) + 1 + np.arange(others.sum())
        return codes


def resolve_path(cell: str, folder: str) -> str:
    """Return the absolute path, without ``..``, of a cell relative to an absolute folder; a URL stays as it is."""
    if is_url(cell) or (is_url(folder) and os.path.isabs(cell)):
        return cell
    if is_url(folder):
        return join_url(folder, cell)
    return os.path.normpath(os.path.join(folder, cell))


def describe_outside(path: str, folder: str) -> str:
    """Return the message about a path or URL that lies outside an absolute folder or URL."""
    fix = "set data.root to the beginning of the URLs" if is_url(path) else "move it there, set data.root"
    return f"{path} lies outside the root {folder}: {fix}, or data.allow_outside: true"
