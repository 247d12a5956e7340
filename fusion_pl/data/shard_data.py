"""Data module for shards that ``fusion-pl data shard`` wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion_pl.data.manifest import ManifestData
from fusion_pl.data.sampling import Sampling
from fusion_pl.data.shard_set import ShardCells, ShardSet
from fusion_pl.processors import Processor
from fusion_pl.tables.arrow_cells import is_string
from fusion_pl.tables.columns import Columns, TableInputs
from fusion_pl.tables.labels import check_label_option
from fusion_pl.tables.read_table import read_table
from fusion_pl.tables.remote import LOW, is_url
from fusion_pl.tables.table import Cells, Problem, Table
from fusion_pl.types import UserError


class ShardData(ManifestData):
    """Load a table and its files from shards, large files that ``fusion-pl data shard`` writes, also from a URL.

    Everything else is as for the table itself: the same checks, splits and messages. The rows of an epoch are shuffled
    in windows of several shards, so that each shard is opened, or downloaded, once per epoch. With up to
    ``shuffle_window`` shards, the order is that of a table. Files are never skipped: a missing or damaged shard stops
    the run, and each file is compared with its hash.

    Args:
        shards: folder of the shards, or its URL.
        inputs: dictionary from input name to column; by default that with which the shards were written.
        label: column with the class names, or columns with 0 and 1; by default that with which the shards were written.
        classes: names of the classes; by default those of the shards, unless another ``label`` is given.
        shuffle_window: number of shards whose rows are mixed, at least 1.
        kwargs: arguments of ``ManifestData``, except those about paths: ``root``, ``check_files``, ``allow_outside``.

    Raises:
        UserError: if an argument is out of range, or the folder contains no shards.

    Example:
        data:
          class_path: fusion_pl.data.ShardData
          init_args: {shards: s3://bucket/pets, batch_size: 64}
    """

    def __init__(
        self,
        shards: str,
        inputs: dict[str, list[str] | str] | None = None,
        label: list[str] | str | None = None,
        classes: list[str] | None = None,
        shuffle_window: int = 16,
        **kwargs: Any,
    ) -> None:
        if shuffle_window < 1:
            raise UserError(f"data.shuffle_window must be at least 1, not {shuffle_window}")
        # The files lie in the shards, not at paths below a root.
        super().__init__(manifest=shards, root=shards, check_files=False, allow_outside=False, **kwargs)
        self.shards = ShardSet(shards, self.remote)
        written = self.shards.manifest
        self.inputs = dict(inputs or written.inputs)
        self.label = label or written.label
        self.label_columns = self.label if isinstance(self.label, list) else [self.label]
        self.configured_classes = classes or (written.classes if self.label == written.label else None)
        check_label_option(self.label_columns, self.configured_classes, self.task)
        self.shuffle_window = shuffle_window

    @cached_property
    def table(self) -> Table:
        """The index of the shards, read on first use.

        Raises:
            UserError: if it is damaged.
        """
        table = read_table(self.shards.index_path())
        if len(table) != len(self.shards):
            raise UserError(f"{self.manifest} is damaged: its index has other rows than its shards; copy it again")
        files = () if is_url(self.manifest) else table.files  # the cache may remove a copy
        return replace(table, path=self.manifest, files=files)

    @property
    def files(self) -> list[Path]:
        """The index."""
        return [Path(self.shards.index_path())]

    def setup(self, stage: str) -> None:
        """Check the index, the options about windows, and that the cache of files at a URL has room for a window.

        Raises:
            UserError: lists the first ten problems with row and column.
        """
        needed = min(self.shuffle_window, len(self.shards.names)) * self.shards.manifest.shard_bytes
        if is_url(self.manifest) and needed > LOW * self.remote.max_bytes:
            raise UserError(
                f"{self.shuffle_window} shards of {self.manifest} take up to {needed / 2**30:.3g} GiB, more than "
                f"{LOW:.0%} of the cache: raise data.remote_cache_limit, or lower data.shuffle_window"
            )
        super().setup(stage)
        if stage == "fit" and self.bucket_by_length and (shards := self._train_shards) is not None:
            raise UserError(
                f"data.bucket_by_length mixes the rows of all {shards.max() + 1} shards: set data.shuffle_window to at "
                "least as many, or leave it out"
            )

    @cached_property
    def train_sampling(self) -> Sampling | None:
        """How the training samples of an epoch are drawn: in windows, if there are more shards than a window has."""
        sampling, shards = super().train_sampling, self._train_shards
        return (
            sampling if shards is None else replace(sampling or Sampling(), shards=shards, window=self.shuffle_window)
        )

    @property
    def _train_shards(self) -> NDArray[np.int64] | None:
        """Index of the shard of each training sample among those that have any; None if one window has them all."""
        numbers, shards = np.unique(self.shards.shard_of(self._splits.used_rows["train"]), return_inverse=True)
        return shards if len(numbers) > self.shuffle_window else None

    @cached_property
    def _inputs(self) -> TableInputs:
        return ShardInputs(self.shards, self.table, self.columns, self.processors)


class ShardInputs(TableInputs):
    """Columns of the model's inputs in the index of shards."""

    def __init__(
        self, shards: ShardSet, manifest: Table, columns: Mapping[str, Columns], processors: Mapping[str, Processor]
    ) -> None:
        super().__init__(manifest, columns, processors, shards.folder, shards.remote, allow_outside=False)
        self.shards = shards

    def cells(self, name: str, rows: NDArray[np.int64]) -> Cells:
        """Return the cells of an input in some rows; those of a column of files are their contents."""
        column = self.names[name]
        if column in self.shards.manifest.file_columns:
            return ShardCells(self.table, column, rows, shards=self.shards)
        return super().cells(name, rows)

    def check_columns(self) -> Iterator[Problem]:
        """Find columns that do not exist, cells that are not numbers, and columns that are files on one side only."""
        yield from super().check_columns()
        files = self.shards.manifest.file_columns
        for name, column in self.names.items():
            if column in files and not self.processors[name].reads_files:
                yield Problem(f"it holds files, but the input {name!r} reads no files", column=column)
            elif column not in files and self.processors[name].reads_files and is_string(self.table.data[column].type):
                text = f"the shards lack its files for the input {name!r}: write them again with this configuration"
                yield Problem(text, column=column)

    @property
    def _path_columns(self) -> dict[str, str]:
        return {}
