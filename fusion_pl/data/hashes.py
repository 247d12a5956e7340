"""Hashes of rows and tables that are the same in every process, on every machine and in every version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence

from fusion_pl.data.table import Table


def stable_hash(text: str) -> int:
    """Return a 63-bit hash of a string.

    Example:
        >>> stable_hash("s1") == stable_hash("s1") != stable_hash("s2")
        True
    """
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def row_hashes(table: Table, ignored_columns: Collection[str]) -> list[int]:
    """Return one hash per row: of its ``id``, or of its other cells if the ``id`` is empty.

    The hash does not depend on empty cells, on the order of the columns, or on ``ignored_columns``. Rows with the same
    content have the same hash.
    """
    names = sorted(table.columns.keys() - {"id", *ignored_columns})
    ids = table.columns.get("id") or [None] * len(table)
    return [
        stable_hash(json.dumps(["id", ids[row]]) if ids[row] else _row_content(table, row, names))
        for row in range(len(table))
    ]


def table_hash(table: Table) -> str:
    """Return a hash of all cells, as 32 hexadecimal digits; it does not depend on the order of rows and columns."""
    names = sorted(table.columns)
    rows = sorted(stable_hash(_row_content(table, row, names)) for row in range(len(table)))
    return hashlib.blake2b(repr(rows).encode(), digest_size=16).hexdigest()


def _row_content(table: Table, row: int, names: Sequence[str]) -> str:
    cells = ((name, table.columns[name][row]) for name in names)
    return json.dumps([(name, cell) for name, cell in cells if cell is not None])
