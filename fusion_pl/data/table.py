"""Read a manifest (CSV, TSV or JSON Lines) as columns of text, with row numbers as a spreadsheet shows them."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from fusion_pl.messages import join_lines
from fusion_pl.types import MissingFileError, UserError

MAX_SHOWN = 10
DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")


class Problem(NamedTuple):
    """Problem in a manifest, such as a missing column or an invalid cell."""

    text: str  # what is wrong, and what is expected
    row: int = 0  # row number in a spreadsheet (header = 1) or line of a JSON Lines file; 0 = all rows
    column: str | None = None

    def __str__(self) -> str:
        location = [f"row {self.row}"] * bool(self.row) + [f"column {self.column!r}"] * (self.column is not None)
        return f"{', '.join(location)}: {self.text}" if location else self.text


def raise_problems(path: str, problems: Iterable[Problem]) -> None:
    """Raise one error that lists the first ten problems; do nothing if there are no problems.

    Raises:
        UserError: if there are problems; the message starts with the path and the number of problems.
    """
    if ordered := sorted(problems, key=lambda problem: problem.row):
        count = "1 problem" if len(ordered) == 1 else f"{len(ordered)} problems"
        raise UserError(f"{path} has {count}:\n  {join_lines(list(map(str, ordered)), MAX_SHOWN)}")


@dataclass(frozen=True)
class Table:
    """Content of a manifest, as columns of text."""

    path: str
    columns: dict[str, list[str | None]]  # column name -> one cell per row; None if the cell is empty
    row_numbers: list[int]  # one per row, see ``Problem.row``
    problems: list[Problem] = field(default_factory=list)  # rows that cannot be read and are left out

    def __len__(self) -> int:
        return len(self.row_numbers)

    @cached_property
    def ids(self) -> list[str]:
        """Id of each row: its cell in the column ``id``, or its row number if the cell is empty."""
        cells = self.columns.get("id", [None] * len(self))
        return [cell or str(number) for cell, number in zip(cells, self.row_numbers, strict=True)]


def read_table(path: str) -> Table:
    """Read a manifest with the suffix .csv, .tsv, .jsonl or .ndjson.

    In JSON Lines ``""`` is an empty text and null or an absent key is a missing input. In CSV and TSV every empty cell
    is missing.

    Raises:
        UserError: if the file is missing, has another suffix, is not UTF-8, or has no header or no rows.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in (*DELIMITERS, *JSON_LINES):
        raise UserError(f"{path} ends in {suffix!r}: a manifest is a .csv, .tsv, .jsonl or .ndjson file")
    if not os.path.isfile(path):
        raise MissingFileError(f"the manifest {path} does not exist (looked for {os.path.abspath(path)})")
    with open(path, "rb") as file:
        raw = file.read()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} is not UTF-8 (byte {raw[error.start]:#x} in line {line}): save it as UTF-8") from error
    table = _read_json_lines(path, text) if suffix in JSON_LINES else _read_delimited(path, text, DELIMITERS[suffix])
    if not len(table):
        raise_problems(path, table.problems)
        raise UserError(f"{path} has no rows: a manifest needs one row per sample")
    return table


def _read_delimited(path: str, text: str, delimiter: str) -> Table:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    problems: list[Problem] = []
    records: list[tuple[int, list[str]]] = []
    limit = csv.field_size_limit(len(text) + 1)  # global limit of the csv module, raised for long texts
    try:
        header = [name.strip() for name in next(reader, [])]
        for number, cells in enumerate(reader, start=2):
            if cells and len(cells) != len(header):
                problems.append(Problem(f"the row has {len(cells)} cells, the header has {len(header)}", number))
            elif cells:  # a blank line is no record, but has a row number
                records.append((number, cells))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}: check the quotation marks") from error
    finally:
        csv.field_size_limit(limit)
    _check_header(path, header, delimiter)
    # Columns without a name, such as the index of a saved data frame, are ignored.
    columns = {name: [cells[index] or None for _, cells in records] for index, name in enumerate(header) if name}
    return Table(path, columns, [number for number, _ in records], problems)


def _check_header(path: str, header: list[str], delimiter: str) -> None:
    if not any(header):
        raise UserError(f"{path} has no header: its first row must contain the names of the columns")
    duplicates = sorted({name for name in header if name and header.count(name) > 1})
    if duplicates:
        raise UserError(f"{path}, row 1: the column {duplicates[0]!r} appears more than once: rename one of them")
    other_delimiter = next((mark for mark in ",;\t" if mark != delimiter and mark in header[0]), None)
    if len(header) == 1 and other_delimiter:
        raise UserError(
            f"{path}, row 1: the columns are separated by {other_delimiter!r}, expected {delimiter!r}: save the table "
            "with this separator, or rename the file"
        )


def _read_json_lines(path: str, text: str) -> Table:
    problems: list[Problem] = []
    columns: dict[str, list[str | None]] = {}
    row_numbers: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: JSON text may contain U+2028
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:  # also raised for deep nesting and for numbers of 5,000 digits
            problems.append(Problem(f"the line is not valid JSON: {error}", number))
            continue
        if not isinstance(record, dict):
            kind = type(record).__name__
            problems.append(Problem(f"the line is a JSON {kind}, expected an object such as {{…}}", number))
            continue
        for name in record:
            columns.setdefault(name, [None] * len(row_numbers))
        for name, cells in columns.items():
            cells.append(_parse_cell(record.get(name), name, number, problems))
        row_numbers.append(number)
    return Table(path, columns, row_numbers, problems)


def _parse_cell(value: Any, name: str, number: int, problems: list[Problem]) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (list, dict)):
        problems.append(Problem(f"the cell is a {type(value).__name__}, expected text or a number", number, name))
        return None
    return json.dumps(value)  # numbers and booleans


def infer_classes(labels: Iterable[str | None]) -> list[str]:
    """Return the distinct labels, in numeric order if all are integers, else in alphabetical order.

    Example:
        >>> infer_classes(["10", " 9", None, "10"])
        ['9', '10']
    """
    names = {(label or "").strip() for label in labels} - {""}
    if all(name.removeprefix("-").isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)
