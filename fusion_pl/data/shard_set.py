"""Shards: the rows of a table with the content of their files, in a few large Arrow files instead of many small ones.

A folder of shards contains::

    manifest.json          what the files are: rows, sizes, columns, classes (``ShardManifest``)
    index.arrow            the columns of the table; a column of files has the hash of each file instead
    shard-00000.arrow ...  the columns of files, with the content of each file; the rows follow those of the index

All hashes and splits are known from the index, so a shard is only opened, or downloaded, for its files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion_pl.data.rows import LoadError
from fusion_pl.files import sha256
from fusion_pl.messages import error_reason
from fusion_pl.tables.arrow_file import open_arrow
from fusion_pl.tables.read_table import SHARD_INDEX, SHARD_MANIFEST
from fusion_pl.tables.remote import RemoteFiles, is_url
from fusion_pl.tables.table import Cells
from fusion_pl.types import MissingFileError, UserError

FORMAT = 1
MAX_OPEN = 64  # shards that a process keeps memory-mapped


@dataclass(frozen=True)
class ShardManifest:
    """Content of ``manifest.json``.

    Attributes:
        shards: file name -> number of rows, in the order of the rows.
        shard_bytes: size of the largest shard.
        index_hash: ``hash_file`` of the index.
        file_columns: columns whose files the shards contain.
        inputs: name of the input -> its column or columns.
        label: label column, or columns.
        classes: names of the classes.
    """

    shards: Mapping[str, int]
    shard_bytes: int
    index_hash: str
    file_columns: list[str]
    inputs: dict[str, list[str] | str]
    label: list[str] | str
    classes: list[str]

    def to_json(self) -> str:
        """Return the content of the file."""
        return json.dumps({"format": FORMAT} | asdict(self), indent=1)

    @classmethod
    def read(cls, path: str) -> ShardManifest:
        """Read a manifest.

        Raises:
            UserError: if it is damaged, or of another version.
        """
        try:
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
            if content.pop("format") != FORMAT:
                raise UserError(f"{path} was written by another version of fusion-pl: write the shards again")
            manifest = cls(**content)
            sum(manifest.shards.values(), start=manifest.shard_bytes)  # fails if they are no numbers
            return manifest
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} is no manifest of shards ({error_reason(error)}): write them again") from error


class ShardSet:
    """Shards in a folder or at a URL; those at a URL are read from a bounded cache of local copies.

    Args:
        folder: folder, or its URL.
        remote: local copies of files at URLs.

    Raises:
        UserError: if the folder contains no shards, or they are damaged.
    """

    def __init__(self, folder: str, remote: RemoteFiles) -> None:
        self.folder, self.remote = folder.rstrip("/"), remote
        try:
            self.manifest = ShardManifest.read(self._local_path(SHARD_MANIFEST, refresh=True))
        except MissingFileError as error:
            raise UserError(f"{folder} contains no {SHARD_MANIFEST}: write shards with fusion-pl data shard") from error
        self.names = list(self.manifest.shards)
        self.starts = np.cumsum([0, *self.manifest.shards.values()])  # first row of each shard, and the number of rows
        self._opened: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def index_path(self) -> str:
        """Return the local path of the index.

        Raises:
            UserError: if it does not belong to the manifest.
        """
        path = self._local_path(SHARD_INDEX)
        if hash_file(path) != self.manifest.index_hash:
            path = self._local_path(SHARD_INDEX, refresh=True)  # the shards at a URL were written again
            if hash_file(path) != self.manifest.index_hash:
                index = self._path(SHARD_INDEX)
                raise UserError(f"{index} is damaged: its hash is not that in {SHARD_MANIFEST}; copy it again")
        return path

    def shard_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the shard of each row."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def read(self, column: str, row: int, content_hash: str) -> bytes:
        """Return the content of a file.

        Raises:
            LoadError: if the shard is missing or damaged, or the content has another hash.
        """
        shard = int(np.searchsorted(self.starts, row, side="right")) - 1
        path, index = self._path(self.names[shard]), row - int(self.starts[shard])
        try:
            try:
                return self._read(shard, column, index, content_hash)
            except UserError:
                if not is_url(path):
                    raise
                self.remote.fetch(path, refresh=True)  # the copy may be one of former shards
                self._opened.pop(shard, None)
                return self._read(shard, column, index, content_hash)
        except UserError as error:
            raise LoadError(str(error)) from error

    def _read(self, shard: int, column: str, index: int, content_hash: str) -> bytes:
        content: bytes | None = self._open(shard)[column][index].as_py()
        if content is None or hash_bytes(content) != content_hash:
            text = f"the file in column {column!r} of its row {index + 1} has another content"
            raise UserError(f"{self._path(self.names[shard])} is damaged ({text}): copy it again")
        return content

    def _open(self, shard: int) -> Any:
        """Return the Arrow table of a shard, which is memory-mapped; several threads may call this method."""
        if (table := self._opened.pop(shard, None)) is None:
            path, rows = self._path(self.names[shard]), int(self.starts[shard + 1] - self.starts[shard])

            def open_copy(local: str) -> Any:
                return open_shard(local, self.manifest.file_columns, rows)

            table = self.remote.open(path, open_copy) if is_url(path) else open_copy(path)
        self._opened[shard] = table
        if len(self._opened) > MAX_OPEN:
            with suppress(KeyError):
                self._opened.popitem(last=False)
        return table

    def _path(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def _local_path(self, name: str, refresh: bool = False) -> str:
        path = self._path(name)
        if is_url(path):
            return self.remote.fetch(path, refresh)
        if not os.path.isfile(path):
            raise MissingFileError(f"{path} does not exist")
        return path

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": OrderedDict()}  # other processes open the shards themselves


def open_shard(path: str, columns: Collection[str], rows: int | None = None) -> Any:
    """Return the Arrow table of a shard, which is memory-mapped.

    Args:
        path: local path.
        columns: columns that it must have.
        rows: number of rows that it must have; None = any.

    Raises:
        MissingFileError: if the shard does not exist.
        UserError: if it cannot be read, is damaged, or belongs to others.
    """
    import pyarrow as pa

    try:
        table = open_arrow(path)[0]
        table.validate(full=True)  # damaged offsets would end the process
    except FileNotFoundError as error:
        raise MissingFileError(f"{path} does not exist: copy the complete folder of shards") from error
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is None:  # an error of Arrow, not of the operating system
            raise UserError(f"{path} is damaged ({error_reason(error)}): copy it again") from error
        raise UserError(f"{path} cannot be read ({error_reason(error)}): check your access and the disk") from error
    if (rows is not None and len(table) != rows) or not set(columns) <= set(table.column_names):
        raise UserError(f"{path} does not belong to these shards: it has other rows or columns; copy it again")
    return table


@dataclass(frozen=True)
class ShardCells(Cells):
    """Cells of a column of files: the content of each file, read from its shard when it is used."""

    shards: ShardSet | None = None

    def __getitem__(self, index: Any) -> Any:
        row = int(self.rows[index])
        content_hash = self.table.cell(self.column, row)
        assert self.shards is not None
        return None if content_hash is None else self.shards.read(self.column, row, content_hash)

    def distinct(self) -> NDArray[np.int64]:
        """Return a number per cell, -1 = missing; equal files have different numbers, as only one may be damaged."""
        return np.where(self.table.is_missing(self.column)[self.rows], -1, np.arange(len(self.rows)))


def hash_bytes(content: bytes) -> str:
    """Return the first 128 bits of the SHA-256 of a file's content, as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()[:32]


def hash_file(path: str) -> str:
    """Return ``hash_bytes`` of the content of a file."""
    return sha256(path)[:32]
