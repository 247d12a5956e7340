"""Read CSV, TSV and JSON Lines in chunks of rows, so that a large file is never in memory as Python objects."""

from __future__ import annotations

import csv
import gc
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from fusion_pl.tables.arrow_file import MAX_MEMORY_BYTES, open_arrow, write_temporary
from fusion_pl.tables.table import Problem, Table, check_column_names
from fusion_pl.types import UserError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
CHUNK_ROWS = 10_000
MAX_EXPONENT = 1023  # a larger integer is no floating-point number

# Kinds of JSON cells: text or number, [], list of numbers, list of lists of numbers, list of texts.
TEXT, EMPTY_LIST, VECTOR, MATRIX, TEXTS = range(5)

Cell = str | list[Any] | None
Chunk = tuple[Sequence[int], Mapping[str, Sequence[Cell]]]  # row numbers, and the cells of each column


def read_text_table(path: str) -> Table:
    """Read a manifest with the suffix .csv, .tsv, .jsonl or .ndjson; rows that cannot be read are problems.

    Raises:
        UserError: if the file is not UTF-8, has no valid header, or has unbalanced quotation marks.
    """
    suffix = os.path.splitext(path)[1].lower()
    problems: list[Problem] = []
    is_json = suffix in JSON_LINES
    # The csv module finds the ends of lines itself; JSON text may contain U+2028 and carriage returns.
    with open(path, encoding="utf-8-sig", newline="\n" if is_json else "") as file:
        try:
            chunks = _read_json(file, problems) if is_json else _read_csv(file, path, DELIMITERS[suffix], problems)
            is_mapped = not is_json and os.path.getsize(path) > MAX_MEMORY_BYTES
            with _paused_garbage_collection():
                return (_map_table if is_mapped else _build_table)(path, chunks, problems)
        except UnicodeDecodeError as error:
            raise _describe_encoding(path) from error
        except UnicodeEncodeError as error:
            raise UserError(
                f"{path} has half a surrogate pair ({error.object[error.start]!a}) in a list, or in the name of a "
                "column: replace it"
            ) from error


@contextmanager
def _paused_garbage_collection() -> Iterator[None]:
    """Pause the search for reference cycles: it would take most of the time, because each chunk has many objects."""
    is_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_enabled:
            gc.enable()


def _build_table(path: str, chunks: Iterator[Chunk], problems: list[Problem]) -> Table:
    import pyarrow as pa

    numbers = [np.empty(0, np.int64)]
    parts: list[dict[str, Any]] = []
    for row_numbers, columns in chunks:
        numbers.append(np.array(row_numbers, np.int64))
        parts.append({name: _column_array(cells) for name, cells in columns.items()})
    columns = {}
    for name in dict.fromkeys(chain.from_iterable(parts)):
        pairs = zip(parts, numbers[1:], strict=True)
        pieces = [pa.table({name: part.pop(name, pa.nulls(len(rows)))}) for part, rows in pairs]
        # One array needs half the memory of its pieces, which were allocated with room to grow.
        column = pa.concat_tables(pieces, promote_options="permissive").combine_chunks()[name]
        columns[name] = column.cast(pa.string()) if pa.types.is_null(column.type) else column
        del pieces
    pa.default_memory_pool().release_unused()
    data = pa.table(columns)
    return Table(path, data, np.concatenate(numbers), problems)


def _map_table(path: str, chunks: Iterator[Chunk], problems: list[Problem]) -> Table:
    """Return a table of texts that is memory-mapped from a temporary file, to which each chunk is written at once."""
    import pyarrow as pa

    numbers = [np.empty(0, np.int64)]

    def read_tables() -> Iterator[Any]:
        for row_numbers, columns in chunks:
            numbers.append(np.array(row_numbers, np.int64))
            yield pa.table({name: _column_array(cells).cast(pa.string()) for name, cells in columns.items()})

    tables = read_tables()
    if (first := next(tables, None)) is None:
        return Table(path, pa.table({}), numbers[0], problems)
    file = write_temporary(first.schema, chain([first], tables))
    return Table(path, open_arrow(file.path)[0], np.concatenate(numbers), problems, files=(file,))


def _column_array(cells: Sequence[Cell]) -> Any:
    """Return an Arrow array of texts, or of the lists that a column of JSON Lines has."""
    import pyarrow as pa

    first = next((cell for cell in cells if cell), None)
    if first is None:  # missing cells, or empty texts or lists
        return pa.array(cells)
    if isinstance(first, list):
        if isinstance(first[0], str):
            return pa.array(cells, pa.list_(pa.string()))
        vector = pa.list_(pa.float64())
        return pa.array(cells, pa.list_(vector) if isinstance(first[0], list) else vector)
    try:
        return pa.array(cells, pa.string())
    except UnicodeEncodeError:  # JSON text may contain half surrogate pairs
        encoded = [None if cell is None else str(cell).encode("utf-8", "surrogatepass") for cell in cells]
        return pa.array(encoded, pa.binary()).view(pa.string())


def _read_csv(file: TextIO, path: str, delimiter: str, problems: list[Problem]) -> Iterator[Chunk]:
    """Yield chunks of rows; blank lines count as rows, and columns without a name are ignored."""
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    limit = csv.field_size_limit(os.path.getsize(path) + 1)  # global limit of the csv module, raised for long texts
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(path, header, delimiter)
        numbers = range(2, 2)
        while rows := list(islice(reader, CHUNK_ROWS)):
            numbers = range(numbers.stop, numbers.stop + len(rows))
            yield _parse_rows(rows, numbers, header, problems)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}: check the quotation marks") from error
    finally:
        csv.field_size_limit(limit)


def _parse_rows(rows: list[list[str]], numbers: range, header: list[str], problems: list[Problem]) -> Chunk:
    valid_numbers: Sequence[int] = numbers
    if set(map(len, rows)) != {len(header)}:
        for number, cells in zip(numbers, rows, strict=True):
            if cells and len(cells) != len(header):
                problems.append(Problem(f"the row has {len(cells)} cells, the header has {len(header)}", number))
        valid_numbers = [number for number, cells in zip(numbers, rows, strict=True) if len(cells) == len(header)]
        rows = [cells for cells in rows if len(cells) == len(header)]
    columns = zip(*rows, strict=True) if rows else [()] * len(header)
    named = {name: cells for name, cells in zip(header, columns, strict=True) if name}
    return valid_numbers, {
        name: [cell or None for cell in cells] if "" in cells else cells for name, cells in named.items()
    }


def _check_header(path: str, header: list[str], delimiter: str) -> None:
    if not any(header):
        raise UserError(f"{path} has no header: its first row must contain the names of the columns")
    check_column_names(f"{path}, row 1", [name for name in header if name])
    other_delimiter = next((mark for mark in ",;\t" if mark != delimiter and mark in header[0]), None)
    if len(header) == 1 and other_delimiter:
        raise UserError(
            f"{path}, row 1: the columns are separated by {other_delimiter!r}, expected {delimiter!r}: "
            f"{_advise_on_delimiter(path, other_delimiter, delimiter)}"
        )


def _advise_on_delimiter(path: str, found: str, expected: str) -> str:
    """Return how to make a table readable whose columns have another separator than its suffix promises."""
    if suffix := next((suffix for suffix, delimiter in DELIMITERS.items() if delimiter == found), None):
        return f"rename the file to {suffix}"
    call = f"pandas.read_csv({path!r}, sep={found!r}, dtype=str, keep_default_na=False)"
    return f"export it from the spreadsheet with this separator, or save it in Python with {call}.to_csv({path!r}, " + (
        "index=False)" if expected == "," else f"sep={expected!r}, index=False)"
    )


def _read_json(file: TextIO, problems: list[Problem]) -> Iterator[Chunk]:
    """Yield chunks of rows; ``""`` is an empty text, and null, NaN or an absent key is a missing input."""
    names: dict[str, None] = {}
    kinds: dict[str, int] = {}  # of the columns
    lines = enumerate(file, start=1)
    while chunk := list(islice(lines, CHUNK_ROWS)):
        parsed = (
            (number, _parse_line(line.removesuffix("\n"), number, problems)) for number, line in chunk if line.strip()
        )
        records = [(number, record) for number, record in parsed if record is not None]
        names |= dict.fromkeys(chain.from_iterable(record for _, record in records))
        columns = {
            name: [_parse_cell(record.get(name), name, number, kinds, problems) for number, record in records]
            for name in names
        }
        yield [number for number, _ in records], columns


def _parse_line(line: str, number: int, problems: list[Problem]) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # also raised for deep nesting and for numbers of 5,000 digits
        problems.append(Problem(f"the line is not valid JSON: {error}", number))
        return None
    if isinstance(record, dict):
        return record
    kind = type(record).__name__
    problems.append(Problem(f"the line is a JSON {kind}, expected an object such as {{…}}", number))
    return None


def _parse_cell(value: Any, name: str, number: int, kinds: dict[str, int], problems: list[Problem]) -> Cell:
    """Return a cell as text or as a list; all cells of a column have the kind of its first one."""
    if value is None or (isinstance(value, str) and kinds.setdefault(name, TEXT) == TEXT):
        return value
    if isinstance(value, float) and math.isnan(value):
        return None
    kind = _cell_kind(value)
    expected = kinds.get(name, TEXT if kind is None else kind)
    if kind and expected and EMPTY_LIST in (kind, expected):  # it may be a list of numbers, of lists or of texts
        kind = expected = max(kind, expected)
    if kind != expected:
        wanted = ("text or a number", "a list", "a list of numbers", "a list of lists of numbers", "a list of texts")
        found = "list" if isinstance(value, list) else type(value).__name__
        problems.append(Problem(f"the cell is a {found}, expected {wanted[expected]}", number, name))
        return None
    kinds[name] = expected
    if kind == TEXTS:
        return list(value)
    return _to_floats(value) if kind else json.dumps(value)  # a number or boolean


def _cell_kind(value: Any) -> int | None:
    """Return the kind of a cell; None for a dictionary, and for other lists."""
    if not isinstance(value, list):
        return None if isinstance(value, dict) else TEXT
    if not value:
        return EMPTY_LIST
    if all(item is None or _is_number(item) for item in value):
        return VECTOR
    if all(isinstance(item, str) for item in value):
        return TEXTS
    return MATRIX if all(_cell_kind(item) in (EMPTY_LIST, VECTOR) for item in value) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**MAX_EXPONENT)


def _to_floats(value: list[Any]) -> list[Any]:
    return [_to_floats(item) if isinstance(item, list) else None if item is None else float(item) for item in value]


def _describe_encoding(path: str) -> UserError:
    """Return the error for a file that is not UTF-8, with the first wrong byte and its line."""
    raw = Path(path).read_bytes()
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line, byte = raw.count(b"\n", 0, error.start) + 1, raw[error.start]
        return UserError(f"{path} is not UTF-8 (byte {byte:#x} in line {line}): save it as UTF-8")
    return UserError(f"{path} was changed while it was read: start again")
