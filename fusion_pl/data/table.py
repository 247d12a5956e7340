"""Read a manifest: CSV, TSV or JSON Lines become columns of text, with the row numbers that a spreadsheet shows."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fusion_pl.types import MissingFileError, UserError

SHOWN = 10
DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")


class Problem(NamedTuple):
    """What is wrong with a manifest.

    Attributes:
        text: what is wrong, and what was expected.
        row: as numbered in a spreadsheet (the header is row 1), or the line of a JSON Lines file; 0 for the whole file.
        column: its name, where it is about one.
    """

    text: str
    row: int = 0
    column: str | None = None

    def __str__(self) -> str:
        places = [f"row {self.row}"] * bool(self.row) + [f"column {self.column!r}"] * (self.column is not None)
        return f"{', '.join(places)}: {self.text}" if places else self.text


def refuse(path: str, problems: Iterable[Problem]) -> None:
    """Raise one error that names all problems, the first ten of them in full; do nothing where there is none.

    Raises:
        UserError: starts with the path and the number of problems.
    """
    ordered = sorted(problems, key=lambda problem: problem.row)
    if not ordered:
        return
    lines = [str(problem) for problem in ordered[:SHOWN]]
    if len(ordered) > SHOWN:
        lines.append(f"… and {len(ordered) - SHOWN} more")
    count = "1 problem" if len(ordered) == 1 else f"{len(ordered)} problems"
    raise UserError(f"{path} has {count}:\n  " + "\n  ".join(lines))


@dataclass(frozen=True)
class Table:
    """A manifest as read.

    Attributes:
        path: of the file.
        columns: name -> one cell a row; None where the cell is empty.
        numbers: of the rows, as in ``Problem.row``.
        problems: rows that could not be read and are left out.
    """

    path: str
    columns: dict[str, list[str | None]]
    numbers: list[int]
    problems: list[Problem] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.numbers)


def read_table(path: str) -> Table:
    """Read a manifest; its suffix says how: .csv, .tsv, .jsonl or .ndjson.

    A JSON Lines file tells an empty text ("", present) from a missing one (null, or no key). CSV and TSV cannot: there
    every empty cell is missing.

    Raises:
        UserError: where the file is missing, of another kind, not UTF-8, or without a header or rows.
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
        refuse(path, table.problems)
        raise UserError(f"{path} has no rows: a manifest needs one row a sample")
    return table


def _read_delimited(path: str, text: str, delimiter: str) -> Table:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    problems: list[Problem] = []
    records: list[tuple[int, list[str]]] = []
    limit = csv.field_size_limit(len(text) + 1)  # a long text is no error; the module's limit is for all its readers
    try:
        header = [name.strip() for name in next(reader, [])]
        for number, cells in enumerate(reader, start=2):
            if cells and len(cells) != len(header):
                problems.append(Problem(f"it has {len(cells)} cells, the header has {len(header)}", number))
            elif cells:  # a blank line is no row, but it counts: a spreadsheet shows it
                records.append((number, cells))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}: check the quotation marks") from error
    finally:
        csv.field_size_limit(limit)
    _check_header(path, header, delimiter)
    # A saved data frame has a first column without a name, a spreadsheet often some last ones: nobody can ask for them.
    columns = {name: [cells[at] or None for _, cells in records] for at, name in enumerate(header) if name}
    return Table(path, columns, [number for number, _ in records], problems)


def _check_header(path: str, header: list[str], delimiter: str) -> None:
    if not any(header):
        raise UserError(f"{path} has no header: its first row must name the columns")
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise UserError(f"{path}, row 1: the column {twice[0]!r} is there more than once: rename one of them")
    other = next((mark for mark in ",;\t" if mark != delimiter and mark in header[0]), None)
    if len(header) == 1 and other:
        raise UserError(
            f"{path}, row 1: the columns are separated by {other!r}, expected {delimiter!r}: save it anew, or rename it"
        )


def _read_json_lines(path: str, text: str) -> Table:
    problems: list[Problem] = []
    columns: dict[str, list[str | None]] = {}
    numbers: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 may stand inside a JSON text
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(Problem(f"it is not JSON: {error.msg} at character {error.pos + 1}", number))
            continue
        except (RecursionError, ValueError) as error:  # brackets in brackets without end; numbers of 5,000 digits
            problems.append(Problem(f"it cannot be read as JSON: {error}", number))
            continue
        if not isinstance(record, dict):
            problems.append(Problem(f"it is a JSON {type(record).__name__}, expected an object such as {{…}}", number))
            continue
        for name in record:
            columns.setdefault(name, [None] * len(numbers))
        for name, cells in columns.items():
            cells.append(_cell(record.get(name), name, number, problems))
        numbers.append(number)
    return Table(path, columns, numbers, problems)


def _cell(value: Any, name: str, number: int, problems: list[Problem]) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (list, dict)):
        problems.append(Problem(f"it holds a {type(value).__name__}, expected text or a number", number, name))
        return None
    return json.dumps(value)  # numbers and true/false, as written


def infer_classes(labels: Iterable[str | None]) -> list[str]:
    """Return the names that occur, in numeric order where all are integers, else sorted.

    Example:
        >>> infer_classes(["10", " 9", None, "10"])
        ['9', '10']
    """
    names = {(label or "").strip() for label in labels} - {""}
    if all(name.removeprefix("-").isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)
