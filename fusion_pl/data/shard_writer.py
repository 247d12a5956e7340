"""Write the rows of a table, with the content of their files, to shards."""

from __future__ import annotations

import errno
import hashlib
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from rich import get_console
from rich.progress import Progress

from fusion_pl.data.manifest import ManifestData
from fusion_pl.data.rows import InputColumn
from fusion_pl.data.shard_set import ShardManifest, hash_bytes, hash_file, open_shard
from fusion_pl.files import atomic_path, atomic_write
from fusion_pl.messages import error_reason
from fusion_pl.processors.base import OPEN_ERRORS
from fusion_pl.tables.arrow_cells import is_media, is_string
from fusion_pl.tables.arrow_file import write_arrow
from fusion_pl.tables.hashes import ROW_HASH, table_hash
from fusion_pl.tables.read_table import SHARD_INDEX, SHARD_MANIFEST
from fusion_pl.tables.splits import DEFAULT_SPLIT, NO_SPLIT, SPLITS
from fusion_pl.tables.table import Table
from fusion_pl.types import UserError

LOCK = ".lock"
READ_AHEAD = 32  # rows whose files are read at the same time
# Keys of a shard's metadata: what decides its content, and the hash of each file.
PLAN, HASHES = b"fusion_pl.plan", b"fusion_pl.hashes"
Contents = dict[str, bytes | None]  # column -> content of the file of one row; None = missing


class ShardWriter:
    """Write the rows of a table that belong to a split to a folder of shards, see ``shard_set``.

    A writer that was killed continues after the last complete shard when it is started again with the same table and
    options; the files must not change in between. The memory that it needs is that of a shard and of the files of
    ``READ_AHEAD`` rows.

    Args:
        data: data module of the table, with its processors; ``setup("fit")`` has checked it.
        folder: folder of the shards.
        shard_bytes: size in bytes above which the next shard begins, at least 1.
        shuffle: whether the rows are written in random order, by the seed of the data, one split after the other. If
            not, they keep the order of the table.

    Raises:
        UserError: if no input reads files, or the folder contains shards already.
    """

    def __init__(self, data: ManifestData, folder: Path, shard_bytes: int, shuffle: bool) -> None:
        self.data, self.folder, self.shard_bytes = data, folder, shard_bytes
        self.rows = _order_rows(data.row_splits, data.seed if shuffle else None)
        columns = data.samples("predict").columns  # all rows
        self.columns = {one.column: one for one in columns if one.reads_paths and _has_files(data.table, one.column)}
        if not self.columns:
            raise UserError(f"no input of {data.manifest} reads files: train with the table itself")
        self.hashes: dict[str, list[str | None]] = {name: [] for name in self.columns}
        if (folder / SHARD_MANIFEST).exists():
            raise UserError(f"{folder} contains shards already: give another folder, or remove it")
        folder.mkdir(parents=True, exist_ok=True)

    def write(self) -> ShardManifest:
        """Write the shards, then the index and the manifest.

        Raises:
            UserError: if a file cannot be read, the disk is full, or another process writes to the folder; shards that
                are complete are kept.
        """
        for column in self.columns.values():
            self._check_processor(column)
        self._check_texts()
        try:
            with FileLock(self.folder / LOCK, timeout=0):
                shards = self._find_complete()
                self._write_shards(shards)
                return self._write_index(shards)
        except Timeout as error:
            raise UserError(f"another process writes shards to {self.folder}: start only one") from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"the disk of {self.folder} is full: make room there, and repeat the command, which continues after "
                "the shards that are complete"
            ) from error

    def _index_columns(self) -> list[str]:
        """Return the columns of the table that are in the index as they are."""
        table = self.data.table
        left_out = {"id", *self.columns}
        return [name for name in table.columns if name not in left_out and not _has_bytes(table, name)]

    def _check_texts(self) -> None:
        """Raise an error for texts of the table that the index cannot hold."""
        import pyarrow as pa

        for name in self._index_columns():
            try:
                self.data.table.data[name].validate(full=True)
            except pa.ArrowInvalid as error:
                raise UserError(
                    f"{self.data.manifest}, column {name!r} has half a surrogate pair, which shards cannot hold "
                    f"({error_reason(error)}): correct the text"
                ) from error

    def _check_processor(self, column: InputColumn) -> None:
        """Raise an error if a processor opens the path of the first file, but not its content."""
        present = ~self.data.input_table.is_missing(column.column)[self.rows]
        if not present.any():
            return
        cell = column.cells[row := int(self.rows[present][0])]
        content = self._read_file(column, row)
        try:
            column.open_local(cell, column.processor.open)
        except OPEN_ERRORS:
            return  # the file is damaged
        try:
            column.processor.open(content)
        except OPEN_ERRORS as error:
            name = type(column.processor).__name__
            raise UserError(
                f"{name}.open, of the input {column.input!r}, opens paths but not the content of files as bytes "
                f"({error}), which shards contain: extend it"
            ) from error

    @cached_property
    def _plan(self) -> bytes:
        """Hash of what decides the content of the shards: cells, rows, columns and options."""
        options = [table_hash(self.data.table), sorted(self.columns), self.shard_bytes, self.data.root]
        return hashlib.sha256(json.dumps(options).encode() + self.rows.tobytes()).hexdigest().encode()

    def _find_complete(self) -> dict[str, int]:
        """Return name and number of rows of the shards that an earlier writer completed, and keep their hashes."""
        shards: dict[str, int] = {}
        while (path := self.folder / _shard_name(len(shards))).exists():
            try:
                table = open_shard(str(path), self.columns)
            except UserError:
                break  # damaged: it is written again
            metadata = table.schema.metadata or {}
            if metadata.get(PLAN) != self._plan:
                raise UserError(
                    f"{path} was written for another table or with other options: give another folder, or remove it"
                )
            hashes = json.loads(metadata[HASHES])
            found = {name: [_hash(content.as_py()) for content in table[name]] for name in self.columns}
            if found != hashes:
                break
            for name in self.columns:
                self.hashes[name] += hashes[name]
            shards[path.name] = len(table)
        return shards

    def _write_shards(self, shards: dict[str, int]) -> None:
        contents: list[Contents] = []
        size = 0
        for content in self._read_files(sum(shards.values())):
            contents.append(content)
            size += sum(len(value) for value in content.values() if value is not None)
            if size >= self.shard_bytes:
                self._write_shard(shards, contents)
                contents, size = [], 0
        if contents:
            self._write_shard(shards, contents)

    def _write_shard(self, shards: dict[str, int], contents: Sequence[Contents]) -> None:
        import pyarrow as pa

        hashes = {name: [_hash(content[name]) for content in contents] for name in self.columns}
        metadata = {PLAN: self._plan, HASHES: json.dumps(hashes).encode()}
        schema = pa.schema([(name, pa.large_binary()) for name in self.columns], metadata=metadata)
        name = _shard_name(len(shards))
        with atomic_path(self.folder / name) as partial:
            write_arrow(str(partial), schema, [pa.Table.from_pylist(contents, schema=schema)])
        shards[name] = len(contents)
        for column, found in hashes.items():
            self.hashes[column] += found

    def _read_files(self, start: int) -> Iterator[Contents]:
        """Yield the content of the files of each row from ``start`` on, read in parallel threads."""
        rows, pending = iter(self.rows[start:].tolist()), deque[Future[Contents]]()
        with ThreadPoolExecutor(READ_AHEAD) as threads, Progress(console=get_console(), transient=True) as bar:
            task = bar.add_task("Writing shards", total=len(self.rows), completed=start)
            try:
                pending.extend(threads.submit(self._read_row, row) for row in islice(rows, READ_AHEAD))
                while pending:
                    yield pending.popleft().result()
                    bar.advance(task)
                    pending.extend(threads.submit(self._read_row, row) for row in islice(rows, 1))
            finally:
                threads.shutdown(cancel_futures=True)

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

        data, table, rows = self.data, self.data.table, pa.array(self.rows)
        index = {name: _large(table.data[name]).take(rows) for name in self._index_columns()}
        index |= {name: pa.array(hashes, pa.string()) for name, hashes in self.hashes.items()}
        # Half a surrogate pair, which the index cannot hold, is an escape sequence as in the output of predict.
        ids = (table.sample_id(row).encode("utf-8", "backslashreplace") for row in self.rows.tolist())
        index["id"] = pa.array([sample_id.decode() for sample_id in ids])
        index[DEFAULT_SPLIT] = pa.array(np.array(SPLITS)[data.row_splits[self.rows]])
        index[ROW_HASH] = pa.array(data.row_hashes[self.rows])
        content = pa.table(index)
        with atomic_path(self.folder / SHARD_INDEX) as partial:
            write_arrow(str(partial), content.schema, [content])
        manifest = ShardManifest(
            shards=shards,
            shard_bytes=max((self.folder / name).stat().st_size for name in shards),
            index_hash=hash_file(str(self.folder / SHARD_INDEX)),
            file_columns=list(self.columns),
            inputs=dict(data.columns),
            label=data.label,
            classes=data.classes,
        )
        with atomic_write(self.folder / SHARD_MANIFEST) as file:
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
    return is_string(table.data[column].type) or _has_bytes(table, column)


def _has_bytes(table: Table, column: str) -> bool:
    """Return whether the cells of a column are contents of files."""
    from pyarrow import types

    kind = table.data[column].type
    return is_media(kind) or types.is_binary(kind) or types.is_large_binary(kind)


def _large(column: Any) -> Any:
    """Return a column of texts with 64-bit offsets, since ``take`` makes one array of 2 GiB at most without them."""
    from pyarrow import types

    return column.cast("large_string") if types.is_string(column.type) else column


def _hash(content: bytes | None) -> str | None:
    return None if content is None else hash_bytes(content)


def _shard_name(number: int) -> str:
    return f"shard-{number:05}.arrow"


def _read_bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
