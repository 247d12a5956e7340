"""Hashes of rows and tables that are the same in every process, on every machine and in every version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from json.encoder import encode_basestring_ascii
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion_pl.tables.table import Table

CHUNK_ROWS = 10_000  # number of rows whose cells are Python objects at the same time
ROW_HASH = "fusion_pl.row_hash"  # column of the index of shards


def stable_hash(text: str) -> int:
    """Return a 63-bit hash of a string.

    Example:
        >>> stable_hash("s1") == stable_hash("s1") != stable_hash("s2")
        True
    """
    return int(stable_hashes([text])[0])


def stable_hashes(texts: Iterable[str]) -> NDArray[np.int64]:
    """Return the 63-bit hash of each string, see ``stable_hash``."""
    digests = (hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts)
    return (np.frombuffer(b"".join(digests), ">u8") >> np.uint64(1)).astype(np.int64)


def id_hashes(ids: Iterable[str]) -> NDArray[np.int64]:
    """Return the row hashes of rows with the given ids."""
    return stable_hashes(f'["id", {_encode(text)}]' for text in ids)


def row_hashes(table: Table, ignored_columns: Collection[str]) -> NDArray[np.int64]:
    """Return one hash per row: of its ``id``, or of its other cells if the ``id`` is empty.

    The hash does not depend on empty cells, on the order of the columns, or on ``ignored_columns``. Rows with the same
    content have the same hash. The index of shards contains the hashes of the rows from which it was written.
    """
    if ROW_HASH in table.columns:
        return np.asarray(table.data[ROW_HASH], np.int64)
    names = sorted(set(table.columns) - {"id", *ignored_columns})
    return stable_hashes(_id_or_content(table, names))


def table_hash(table: Table) -> str:
    """Return a hash of all cells, as 32 hexadecimal digits; it does not depend on the order of rows and columns."""
    hashes = np.sort(stable_hashes(_contents(table, sorted(table.columns), range(len(table)))))
    digest = hashlib.blake2b(digest_size=16)
    for start in range(0, len(hashes), CHUNK_ROWS):
        digest.update(("[" if start == 0 else ", ").encode())
        digest.update(", ".join(map(str, hashes[start : start + CHUNK_ROWS].tolist())).encode())
    digest.update(b"]")
    return digest.hexdigest()


def _id_or_content(table: Table, names: Sequence[str]) -> Iterator[str]:
    """Yield the text that identifies each row."""
    for start in range(0, len(table), CHUNK_ROWS):
        rows = range(start, min(start + CHUNK_ROWS, len(table)))
        ids = table.cells("id", rows.start, rows.stop) if "id" in table.columns else [None] * len(rows)
        if all(ids):
            yield from (f'["id", {_encode(cell)}]' for cell in ids)
        else:
            contents = _contents(table, names, rows)
            yield from (
                f'["id", {_encode(cell)}]' if cell else content for cell, content in zip(ids, contents, strict=True)
            )


def _contents(table: Table, names: Sequence[str], rows: range) -> Iterator[str]:
    """Yield the JSON text of the cells of each row, ``[["name", "cell"], …]``, without missing cells."""
    prefixes = [f"[{_encode(name)}, " for name in names]
    for start in range(rows.start, rows.stop, CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, rows.stop)
        columns = [
            [None if cell is None else f"{prefix}{_encode(cell)}]" for cell in table.cells(name, start, stop)]
            for name, prefix in zip(names, prefixes, strict=True)
        ]
        for cells in zip(*columns, strict=True) if columns else [()] * (stop - start):
            yield f"[{', '.join([cell for cell in cells if cell is not None])}]"


def _encode(cell: Any) -> str:
    """Return a cell as JSON; the hash of its content if it is bytes."""
    if isinstance(cell, str):
        return encode_basestring_ascii(cell)
    if isinstance(cell, bytes):
        return f'{{"blake2b": "{hashlib.blake2b(cell, digest_size=16).hexdigest()}"}}'
    return json.dumps(cell, default=str)
