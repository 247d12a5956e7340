"""What a row is, wherever it stands: numbers that are the same in every process, on every machine, in every version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence

from fusion_pl.data.table import Table


def stable_hash(text: str) -> int:
    """Return 63 bits that depend on a text alone.

    Example:
        >>> stable_hash("s1") == stable_hash("s1") != stable_hash("s2")
        True
    """
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def row_keys(table: Table, without: Collection[str]) -> list[int]:
    """Return a key for each row: of its ``id``, or where that is empty or not there, of its other cells.

    Empty cells and the order of the columns do not count; rows of the same content have the same key.

    Args:
        table: the manifest.
        without: columns that do not count, since a row stays the same when they change.
    """
    names = sorted(table.columns.keys() - {"id", *without})
    ids = table.columns.get("id") or [None] * len(table)
    return [
        stable_hash(json.dumps(["id", ids[row]]) if ids[row] else _content(table, row, names))
        for row in range(len(table))
    ]


def table_hash(table: Table) -> str:
    """Return 32 hexadecimal digits that change when a cell does, but not with the order of rows or columns."""
    names = sorted(table.columns)
    rows = sorted(stable_hash(_content(table, row, names)) for row in range(len(table)))
    return hashlib.blake2b(repr(rows).encode(), digest_size=16).hexdigest()


def _content(table: Table, row: int, names: Sequence[str]) -> str:
    cells = ((name, table.columns[name][row]) for name in names)
    return json.dumps([pair for pair in cells if pair[1] is not None])
