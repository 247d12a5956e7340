"""Write the rows of a table, with the content of their files, to shards."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich import get_console
from rich.progress import track

from fusion_pl.data.arrow_cells import is_media, is_string
from fusion_pl.data.arrow_file import open_arrow, write_arrow
from fusion_pl.data.checks import MAX_THREADS
from fusion_pl.data.hashes import row_hashes
from fusion_pl.data.manifest import ManifestData
from fusion_pl.data.rows import InputColumn
from fusion_pl.data.shard_set import INDEX, MANIFEST, ShardManifest, hash_bytes, hash_file
from fusion_pl.data.splits import NO_SPLIT, SPLITS
from fusion_pl.data.table import Table
from fusion_pl.data.table_data import DEFAULT_SPLIT
from fusion_pl.files import atomic_path, atomic_write
from fusion_pl.processors.base import OPEN_ERRORS
from fusion_pl.types import UserError

READ_AHEAD = 256  # rows whose files are read at the same time
PLAN = b"fusion_pl.plan"  # key of a shard's metadata
Contents = dict[str, bytes | None]  # column -> content of the file of one row; None = missing


class ShardWriter:
    """Write the rows of a table that belong to a split to a folder of shards, see ``shard_set``.

    A writer that is killed goes on with the next shard when it is started again with the same table and options.

    Args:
        data: data module of the table, with its processors; ``setup("fit")`` has checked it.
        folder: folder of the shards.
        shard_bytes: size in bytes above which the next shard begins, at least 1.
        shuffle: whether the rows are written in random order, by the seed of the data, one split after the other. If
            not, they keep the order of the table.

    Raises:
        UserError: if the folder contains something else.
    """

    def __init__(self, data: ManifestData, folder: Path, shard_bytes: int, shuffle: bool) -> None:
        self.data, self.folder, self.shard_bytes = data, folder, shard_bytes
        self.rows = _order_rows(data.row_splits, data.seed if shuffle else None)
        columns = data.samples("predict").columns  # all rows
        self.columns = {one.column: one for one in columns if one.reads_paths and _has_files(data.table, one.column)}
        self.plan = self._describe_plan()
        self.hashes = {name: np.full(len(self.rows), None, object) for name in self.columns}
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / MANIFEST).exists():
            raise UserError(f"{folder} contains shards already: give another folder, or remove it")

    def write(self) -> ShardManifest:
        """Write the shards, then the index and the manifest.

        Raises:
            UserError: if a file cannot be read, or the disk is full; shards that are complete are kept.
        """
        shards, start = self._find_complete()
        try:
            shards |= self._write_shards(len(shards), start)
            return self._write_index(shards)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"the disk of {self.folder} is full: make room there, and repeat the command, which goes on after the "
                "shards that are complete"
            ) from error

    def _describe_plan(self) -> bytes:
        """Return a hash of what decides the content of the shards: rows, their order, columns and options."""
        digest = hashlib.sha256(row_hashes(self.data.table, ignored_columns=())[self.rows].tobytes())
        for column in self.columns:
            codes, texts = self.data.table.factorize(column)
            digest.update(codes.tobytes() + json.dumps([column, texts]).encode())
        digest.update(json.dumps([self.shard_bytes, self.data.root]).encode())
        return digest.hexdigest().encode()

    def _find_complete(self) -> tuple[dict[str, int], int]:
        """Return the name and number of rows of each shard that an earlier writer completed, and their sum."""
        shards: dict[str, int] = {}
        start = 0
        while (path := self.folder / _shard_name(len(shards))).exists():
            table = open_arrow(str(path))[0]
            if (table.schema.metadata or {}).get(PLAN) != self.plan:
                raise UserError(
                    f"{path} was written for another table or with other options: give another folder, or remove it"
                )
            for name in self.columns:
                for row, content in enumerate(table[name]):
                    self._keep_hash(name, start + row, content.as_py())
            shards[path.name] = len(table)
            start += len(table)
        return shards, start

    def _write_shards(self, number: int, start: int) -> dict[str, int]:
        shards: dict[str, int] = {}
        contents: list[Contents] = []
        size = 0
        for content in self._read_files(start):
            contents.append(content)
            size += sum(len(value) for value in content.values() if value is not None)
            if size >= self.shard_bytes:
                name = _shard_name(number + len(shards))
                shards[name], start = self._write_shard(name, contents, start), start + len(contents)
                contents, size = [], 0
        if contents:
            name = _shard_name(number + len(shards))
            shards[name] = self._write_shard(name, contents, start)
        return shards

    def _write_shard(self, name: str, contents: Sequence[Contents], start: int) -> int:
        import pyarrow as pa

        schema = pa.schema([(column, pa.large_binary()) for column in self.columns], metadata={PLAN: self.plan})
        for column in self.columns:
            for row, content in enumerate(contents, start):
                self._keep_hash(column, row, content[column])
        with atomic_path(self.folder / name) as partial:
            write_arrow(str(partial), schema, [pa.Table.from_pylist(contents, schema=schema)])
        return len(contents)

    def _keep_hash(self, column: str, row: int, content: bytes | None) -> None:
        if content is not None:
            self.hashes[column][row] = hash_bytes(content)

    def _read_files(self, start: int) -> Iterator[Contents]:
        """Yield the content of the files of each row from ``start`` on, read in parallel threads."""
        parts = [self.rows[first : first + READ_AHEAD] for first in range(start, len(self.rows), READ_AHEAD)]
        with ThreadPoolExecutor(MAX_THREADS) as threads:
            for part in track(parts, "Writing shards", console=get_console(), transient=True):
                yield from threads.map(self._read_row, part.tolist())

    def _read_row(self, row: int) -> Contents:
        return {name: self._read_file(column, row) for name, column in self.columns.items()}

    def _read_file(self, column: InputColumn, row: int) -> bytes | None:
        cell = column.cells[row]
        if cell is None or isinstance(cell, bytes):
            return cell
        try:
            return column.open_local(cell, _read_bytes)
        except OPEN_ERRORS as error:
            place = f"{self.data.manifest}, row {self.data.table.row_numbers[row]}, column {column.column!r}"
            raise UserError(f"{place}: {error}: correct or empty the cell") from error

    def _write_index(self, shards: Mapping[str, int]) -> ShardManifest:
        import pyarrow as pa

        table = self.data.table
        columns = {name: table.data[name].take(pa.array(self.rows)) for name in table.columns}
        columns |= {name: pa.array(hashes, pa.string()) for name, hashes in self.hashes.items()}
        columns["id"] = pa.array([table.sample_id(row) for row in self.rows.tolist()])
        columns[DEFAULT_SPLIT] = pa.array(np.array(SPLITS)[self.data.row_splits[self.rows]])
        index = pa.table(columns)
        with atomic_path(self.folder / INDEX) as partial:
            write_arrow(str(partial), index.schema, [index])
        manifest = ShardManifest(
            shards=shards,
            shard_bytes=max((self.folder / name).stat().st_size for name in shards),
            index_hash=hash_file(str(self.folder / INDEX)),
            file_columns=list(self.columns),
            inputs=dict(self.data.columns),
            label=self.data.label,
            classes=self.data.classes,
        )
        with atomic_write(self.folder / MANIFEST) as file:
            file.write(manifest.to_json())
        return manifest


def _order_rows(splits: NDArray[np.int8], seed: int | None) -> NDArray[np.int64]:
    """Return the rows that belong to a split: in random order, one split after the other, or unchanged without seed."""
    if seed is None:
        return np.flatnonzero(splits != NO_SPLIT)
    rng = np.random.default_rng([seed])
    return np.concatenate([rng.permutation(np.flatnonzero(splits == index)) for index in range(len(SPLITS))])


def _has_files(table: Table, column: str) -> bool:
    """Return whether the cells of a column are paths or contents of files; those of others may be lists of numbers."""
    from pyarrow import types

    kind = table.data[column].type
    return is_string(kind) or is_media(kind) or types.is_binary(kind) or types.is_large_binary(kind)


def _shard_name(number: int) -> str:
    return f"shard-{number:05}.arrow"


def _read_bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
