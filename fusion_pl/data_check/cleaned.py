"""Write a copy of a table without its errors."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from fusion_pl.data_check.check import CheckedTable
from fusion_pl.files import atomic_path, atomic_write
from fusion_pl.tables.arrow_cells import convert_array, is_media, is_string, is_text
from fusion_pl.tables.arrow_file import write_arrow
from fusion_pl.tables.columns import column_names
from fusion_pl.tables.table import Table
from fusion_pl.tables.text_table import CHUNK_ROWS, DELIMITERS, JSON_LINES
from fusion_pl.types import UserError

FORMATS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".arrow", ".feather")


def write_cleaned(checked: CheckedTable, path: Path) -> tuple[int, int]:
    """Write the table without the errors: a cell with an error is emptied, a row with another error is left out.

    A row of which no input is left is left out, too. If no row is left, nothing is written.

    Args:
        checked: table with its findings.
        path: file to write, in the format of its suffix.

    Returns:
        Number of rows, and number of cells that were emptied in them.

    Raises:
        UserError: if the format cannot hold a column of the table, such as bytes in a CSV file.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    table, inputs = checked.data.table, checked.data.input_table
    check_columns(table, path)
    keep, has_input = np.ones(len(table), bool), np.zeros(len(table), bool)
    columns = {check.column.input: column_names(checked.data.columns[check.column.input]) for check in checked.inputs}
    is_wrong = {column: np.zeros(len(table), bool) for names in columns.values() for column in names}
    parts: dict[str | None, Sequence[str]] = {column: [column] for column in is_wrong}
    parts |= {check.column.column: columns[check.column.input] for check in checked.inputs}
    for finding in checked.errors:
        if finding.row is not None:
            keep[finding.row] &= finding.column in parts
            for column in parts.get(finding.column, []):
                is_wrong[column][finding.row] = True
    for check in checked.inputs:
        names = columns[check.column.input]
        is_left = [~is_wrong[name] & ~(inputs if name in inputs.columns else table).is_missing(name) for name in names]
        combine = np.any if check.column.processor.columns_needed == "any" else np.all
        has_input |= combine(is_left, axis=0)
    keep &= has_input
    data = table.data
    for column, mask in is_wrong.items():
        index, field = data.column_names.index(column), data.schema.field(column)
        data = data.set_column(index, field, pc.if_else(pa.array(mask), pa.scalar(None, field.type), data[column]))
    if keep.any():
        _write(data.filter(pa.array(keep)), path)
    return int(keep.sum()), int(sum((mask & keep).sum() for mask in is_wrong.values()))


def check_columns(table: Table, path: Path) -> None:
    """Raise a ``UserError`` if the format of a file to be written cannot hold a column of the table."""
    is_csv, is_json = path.suffix.lower() in DELIMITERS, path.suffix.lower() in JSON_LINES
    for field in table.data.schema:
        if (is_csv and not is_text(field.type)) or (is_json and not _is_json(field.type)):
            kind = "media" if is_media(field.type) else field.type
            raise UserError(f"--cleaned {path} cannot hold the column {field.name!r} of {kind}: write a .parquet file")


def _is_json(kind: Any) -> bool:
    """Return whether JSON has the values of an Arrow type, or of all parts of a nested one."""
    from pyarrow import types

    if types.is_nested(kind):
        return all(_is_json(kind.field(index).type) for index in range(kind.num_fields))
    known = (is_string, types.is_integer, types.is_floating, types.is_boolean, types.is_null)
    return any(is_type(kind) for is_type in known)


def _write_csv(data: Any, path: Path, delimiter: str) -> None:
    """Write texts in quotation marks only if they need them, which Arrow cannot; the lines end in a newline."""
    with atomic_write(path) as file:
        # With the line ending of RFC 4180, the csv module quotes carriage returns, too.
        writer = csv.writer(_UnixLines(file), delimiter=delimiter, lineterminator="\r\n")
        writer.writerow(data.column_names)
        for batch in data.to_batches(CHUNK_ROWS):
            writer.writerows(zip(*(convert_array(column) for column in batch.columns), strict=True))


class _UnixLines:
    """A text file to which ``csv.writer`` writes rows with the line ending of RFC 4180, and which has that of Unix."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def write(self, row: str) -> int:
        """Write a row; an error for half a surrogate pair, which the file would contain as an escape sequence."""
        row.encode()
        return self.file.write(row.removesuffix("\r\n") + "\n")


def _write(data: Any, path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    suffix = path.suffix.lower()
    try:
        if suffix in JSON_LINES:
            with atomic_write(path) as file:
                for batch in data.to_batches():
                    file.writelines(json.dumps(row) + "\n" for row in batch.to_pylist())
            return
        if suffix in DELIMITERS:
            _write_csv(data, path, DELIMITERS[suffix])
            return
        with atomic_path(path) as partial:
            if suffix == ".parquet":
                parquet.write_table(data, partial)
            else:
                write_arrow(str(partial), data.schema, [data])
    except (pa.ArrowException, TypeError, UnicodeError) as error:
        raise UserError(
            f"--cleaned {path} cannot hold the columns of the table ({error}): write a .parquet file"
        ) from error
