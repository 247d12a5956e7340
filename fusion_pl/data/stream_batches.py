"""Open and collate the rows of a stream, in the workers of the data loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import Dataset

from fusion_pl.data.collate import Collate
from fusion_pl.data.order import temporary_seed
from fusion_pl.data.row_stream import StreamRow
from fusion_pl.data.rows import InputColumn, LoadError, ManifestRows, OnBadFile
from fusion_pl.processors import Processor
from fusion_pl.tables.columns import Columns, TableInputs
from fusion_pl.tables.hashes import stable_hash
from fusion_pl.tables.labels import check_labels, read_label_column
from fusion_pl.tables.remote import RemoteFiles
from fusion_pl.tables.table import Table
from fusion_pl.tasks import Task
from fusion_pl.tasks.base import Targets
from fusion_pl.types import Batch, Sample


@dataclass(frozen=True)
class StreamedRows(ManifestRows):
    """Rows of a stream that are opened together; ids and messages tell their places in the stream."""

    places: Sequence[str] = ()
    ids: Sequence[str] = ()

    def _row(self, index: int) -> str:
        return self.places[index]

    def sample_id(self, index: int) -> str:
        """Return the id of a sample."""
        return self.ids[index]


@dataclass(frozen=True)
class RowOpener:
    """Convert rows of a stream to samples.

    Attributes:
        name: data set and split, for messages.
        schema: Arrow schema of the rows.
        labels: columns of the labels.
        classes: names of the classes.
        task: how labels are read.
        columns: dictionary from input name to its column or columns.
        processors: dictionary from input name to its processor.
        folder: absolute folder of relative paths.
        remote: local copies of files at URLs.
        allow_outside: whether paths may lie outside the folder.
        on_bad_file: handling of a file that cannot be decoded.
        training: whether the samples are for training.
        augment: dictionary from input name to its transform.
        joint_augment: dictionary from the names of several inputs to a transform of all of them.
        predicting: whether labels are not read, and a row that cannot be used becomes a sample with a message.
        id_prefix: beginning of the ids of samples without a cell in the column ``id``.
    """

    name: str
    schema: Any
    labels: Sequence[str]
    classes: Sequence[str]
    task: Task
    columns: Mapping[str, Columns]
    processors: Mapping[str, Processor]
    folder: str
    remote: RemoteFiles
    allow_outside: bool
    on_bad_file: OnBadFile
    training: bool = False
    augment: Mapping[str, nn.Module] = field(default_factory=dict)
    joint_augment: Mapping[tuple[str, ...], nn.Module] = field(default_factory=dict)
    predicting: bool = False
    id_prefix: str = ""

    def __call__(self, rows: Sequence[StreamRow]) -> StreamedRows:
        """Return the samples of rows, which are not opened yet.

        Raises:
            LoadError: if a label is not one of the classes, or a cell of several columns is not a number.
        """
        import pyarrow as pa

        batches = [pa.ipc.read_record_batch(pa.py_buffer(row.content), self.schema) for row in rows]
        data = pa.Table.from_batches(batches, self.schema).combine_chunks()
        table = Table(self.name, data, np.arange(1, len(rows) + 1))
        places = [f"{self.name}, {row.place}" for row in rows]
        inputs = TableInputs(table, self.columns, self.processors, self.folder, self.remote, self.allow_outside)
        targets = None if self.predicting else self._read_targets(inputs, places)
        indices = np.arange(len(rows))
        columns = [
            InputColumn(
                name,
                column,
                self.processors[name],
                inputs.cells(name, indices),
                self.training,
                self.augment.get(name),
                remote=self.remote,
            )
            for name, column in inputs.names.items()
        ]
        given = table.cells("id") if "id" in table.columns else [None] * len(rows)
        return StreamedRows(
            manifest=self.name,
            columns=columns,
            table=inputs.table,
            rows=indices,
            targets=targets,
            on_bad_file=self.on_bad_file,
            return_errors=self.predicting,
            errors=inputs.find_outside_paths(),
            joint_augment=self.joint_augment,
            places=places,
            ids=[str(cell) if cell else f"{self.id_prefix}{row.id}" for cell, row in zip(given, rows, strict=True)],
        )

    def _read_targets(self, inputs: TableInputs, places: Sequence[str]) -> Targets:
        """Check the cells of rows, and return the targets."""
        labels = [read_label_column(inputs.manifest, name) for name in self.labels]
        for problem in chain(inputs.check_columns(), check_labels(inputs.manifest, labels, self.classes, self.task)):
            raise LoadError(f"{places[problem.row - 1]}, column {problem.column!r}: {problem.describe()}")
        return self.task.read_targets(labels, self.classes)


class StreamBatches(Dataset[Batch]):
    """Data set whose indices are rows of a stream: it returns the batch of a list of rows.

    Args:
        open_rows: function that converts rows to samples.
        collate: function that collates samples.
        seed: seed of the run, from which, with the epoch and the rows, the random generators of a training batch are
            seeded; None = nothing is random.
    """

    def __init__(self, open_rows: RowOpener, collate: Collate, seed: int | None = None) -> None:
        self.open_rows, self.collate, self.seed = open_rows, collate, seed

    def __getitems__(self, rows: Sequence[StreamRow]) -> Batch:
        """Open and collate the rows of one batch, which come from ``StreamSampler``."""
        samples = self.open_rows(rows)
        if self.seed is None:
            return self.collate(samples.__getitems__(range(len(rows))))
        key = f"batch {self.seed} {rows[0].epoch} {[row.id for row in rows]}"
        with temporary_seed(stable_hash(key)):
            return self.collate(samples.__getitems__(range(len(rows))))


class StreamedSamples(Dataset[Sample]):
    """Samples of a split in the stored order, without a length.

    Args:
        read: function that yields the rows of an epoch.
        open_rows: function that converts rows to samples.
    """

    def __init__(self, read: Callable[[], Iterator[StreamRow]], open_rows: RowOpener) -> None:
        self.read, self.open_rows = read, open_rows

    def __iter__(self) -> Iterator[Sample]:
        for row in self.read():
            yield self.open_rows([row])[0]

    def values(self, name: str) -> Iterator[Any]:
        """Yield the opened values of an input, of all samples that have it."""
        for row in self.read():
            samples = self.open_rows([row]).select_input(name)
            for sample in samples.__getitems__(range(len(samples))):
                if name in sample.inputs:
                    yield sample.inputs[name]
