"""Data module that streams a data set of the Hugging Face ``datasets`` library."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from itertools import islice
from operator import itemgetter
from typing import Any, ClassVar, Literal

import numpy as np
from huggingface_hub.constants import HF_HOME
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from fusion_pl.data.base import FusionData
from fusion_pl.data.collate import Collate
from fusion_pl.data.hub_splits import (
    check_split_names,
    find_class_names,
    load_splits,
    select_splits,
    to_stream,
    write_class_names,
)
from fusion_pl.data.manifest import REQUIRED_SPLITS
from fusion_pl.data.order import EpochLoader, global_seed, identity_collate, world_size_and_rank
from fusion_pl.data.row_stream import RowStream, StreamRow, StreamSampler
from fusion_pl.data.stream_batches import RowOpener, StreamBatches, StreamedSamples
from fusion_pl.messages import join_names
from fusion_pl.tables.arrow_file import simplify
from fusion_pl.tables.columns import Columns, TableInputs, check_input_names, check_prediction_columns, column_names
from fusion_pl.tables.hashes import stable_hash
from fusion_pl.tables.labels import check_label_columns, check_label_option
from fusion_pl.tables.remote import RemoteFiles
from fusion_pl.tables.splits import Split
from fusion_pl.tables.table import Table, raise_problems
from fusion_pl.tasks import LabelColumn
from fusion_pl.types import Batch, Sample, UserError


class HubStream(FusionData):
    """Train on a data set of the Hugging Face hub while it is downloaded: its rows are never all on disk or in memory.

    The main process reads the rows one after another, ahead of the training; the loader's workers open and augment
    them. Training rows come in the order of a shuffle buffer, which seed and epoch determine. An epoch is one pass over
    the split, whose length is unknown: ``WarmupCosine`` needs ``trainer.max_steps``. Each of several processes reads
    the whole stream and uses every n-th row. Images and audio are opened by the model's processors, as in ``HubData``,
    which stores the rows first and has all options of a table. Needs ``pip install 'fusion-pl[hub]'``.

    Args:
        dataset: name of the data set on the hub, folder that ``save_to_disk`` wrote, folder of data files, or a format
            such as ``parquet`` for ``data_files``.
        configuration: name of the configuration (subset), if the data set has several.
        revision: commit, tag or branch of the data set on the hub; by default the newest.
        data_files: dictionary from the name of a split to its files, which are paths or URLs.
        split_names: dictionary from train, val and test to the name of the data set's split; by default those with
            usual names, such as ``validation``. Rows of a stream are not drawn: validation needs its own split.
        label: column with the class names, or with a ``ClassLabel``; or several columns, if the task reads them.
        classes: names of the classes; by default those of the ``ClassLabel``, in numeric order if all are integers,
            else in alphabetical order.
        inputs: dictionary from input name to column, or to a list of columns of numbers; by default the column has the
            name of the input.
        root: folder of relative paths, outside of which no file is read; by default the folder of the data set, or the
            folder of all downloads (``HF_HOME``) for a data set of the hub.
        shuffle_buffer: number of rows, 1 or more, among which the next training row is drawn. Their content, unopened,
            is in the memory of each process: 1,000 rows with images of 100 kB need 100 MB.
        remote_cache: folder of the copies of files at URLs; by default ``remote`` in the folder of all caches.
        remote_cache_limit: maximum size of these copies in GiB, above 0.
        kwargs: arguments of ``FusionData``.

    Raises:
        UserError: if an argument is out of range.

    Example:
        data:
          class_path: fusion_pl.data.HubStream
          init_args: {dataset: AI-Lab-Makerere/beans, label: labels, inputs: {photo: image}}
    """

    is_stream: ClassVar[bool] = True

    def __init__(  # noqa: PLR0913 - the options of one class in a configuration
        self,
        dataset: str,
        configuration: str | None = None,
        revision: str | None = None,
        data_files: dict[str, list[str] | str] | None = None,
        split_names: dict[str, str] | None = None,
        label: list[str] | str = "label",
        classes: list[str] | None = None,
        inputs: dict[str, list[str] | str] | None = None,
        *,
        root: str | None = None,
        shuffle_buffer: int = 1000,
        remote_cache: str | None = None,
        remote_cache_limit: float = 10.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if shuffle_buffer < 1:
            raise UserError(f"shuffle_buffer must be 1 or more rows, got {shuffle_buffer}")
        check_split_names(split_names)
        self.dataset, self.configuration, self.revision = dataset, configuration, revision
        self.data_files, self.split_names = data_files, split_names
        self.label, self.label_columns = label, label if isinstance(label, list) else [label]
        check_label_option(self.label_columns, classes, self.task)
        self.configured_classes, self.inputs = classes, dict(inputs or {})
        self.root = os.path.abspath(root or (dataset if os.path.isdir(dataset) else HF_HOME))
        self.shuffle_buffer = shuffle_buffer
        self.remote = RemoteFiles.from_options(remote_cache, remote_cache_limit)

    @cached_property
    def _parts(self) -> dict[Split, Any]:
        """The ``datasets.IterableDataset`` of each split, with known features; no row is read for most formats."""
        options = {"data_files": self.data_files} if self.data_files else {}
        loaded = load_splits(self.dataset, self.configuration, self.revision, streaming=True, **options)
        selected = select_splits(self.dataset, loaded, self.split_names)
        return {split: to_stream(part, self._name(split)) for split, part in selected.items()}

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the targets.

        Raises:
            UserError: if the label column is no ``ClassLabel``, and no classes are configured.
        """
        if self.configured_classes is not None:
            return self.configured_classes
        split, part = next(iter(self._parts.items()))
        raise_problems(self._name(split), check_label_columns(_empty_table(part), self.label_columns, self.task))
        names, codes = find_class_names(part.features), np.arange(0)
        columns = [LabelColumn(name, codes, [*names.get(name, [])]) for name in self.label_columns]
        if not (classes := self.task.infer_classes(columns)):
            raise UserError(
                f"{self.dataset}, column {join_names(map(repr, self.label_columns))}: the classes are unknown before "
                "all rows are read, because it is no ClassLabel: give data.classes"
            )
        return classes

    @property
    def class_counts(self) -> None:
        """None: the number of training samples is unknown."""

    @property
    def columns(self) -> dict[str, Columns]:
        """Dictionary from input name to its column or columns, in the order of the model's inputs."""
        return {name: self.inputs.get(name, name) for name in self.processors}

    def setup(self, stage: str) -> None:
        """Check the splits and the columns; rows are checked when they are read.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``, which uses all splits and needs no label.

        Raises:
            UserError: if a split or a column is missing.
        """
        if stage == "predict":
            for split, part in self._parts.items():
                inputs = self._table_inputs(_empty_table(part))
                check_prediction_columns(self._name(split), inputs, check_input_names(self.inputs, self.processors))
        if self.trainer and self.trainer.overfit_batches:  # type: ignore[attr-defined]
            raise UserError("trainer.overfit_batches needs samples that are stored: use HubData instead of HubStream")
        for split in REQUIRED_SPLITS.get(stage, ()):
            if split not in self._parts:
                raise UserError(
                    f"{self.dataset} has no {split} split, and rows of a stream are not drawn: select one with "
                    "data.split_names, such as {train: train, val: test}, or use HubData, which stores the rows"
                )
            table = _empty_table(self._parts[split])
            problems = [
                *check_input_names(self.inputs, self.processors),
                *check_label_columns(table, self.label_columns, self.task),
            ]
            raise_problems(self._name(split), [*problems, *self._table_inputs(table).check_columns()])

    def samples(self, split: Split | Literal["predict"]) -> StreamedSamples:
        """Return the samples of a split in the stored order, as an iterable without a length.

        Raises:
            UserError: if there is no such split.
        """
        stream = self._stream(split)
        return StreamedSamples(stream.read, self._opener(stream))

    def training_values(self, name: str) -> Iterator[Any]:
        """Yield the opened values of an input in all training samples, for statistics: one pass over the stream."""
        yield from self.samples("train").values(name)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return a loader of the training samples; order, augmentation and random crops differ in each epoch.

        Lightning sets the epoch. A training loop without Lightning must call ``loader.sampler.set_epoch(epoch)``.
        """
        stream, seed = self._stream("train"), global_seed()
        read = partial(stream.read_shuffled, seed=stable_hash(f"order {seed}"), buffer_size=self.shuffle_buffer)
        sampler = StreamSampler(read, stream.name, *world_size_and_rank(), self._count_trained)
        if self.trainer:  # which reads the first batch of a stream before it sets the epoch
            sampler.set_epoch(self.trainer.current_epoch)
        collate = Collate(self.processors, True, self.input_dropout)
        batches = StreamBatches(self._opener(stream, training=True), collate, seed)
        return self._build_loader(batches, sampler, identity_collate, self.num_loader_workers, EpochLoader)

    def statistics_loader(self, max_samples: int) -> Iterable[Batch]:
        """Return batches of training rows, the first ones of a shuffled order, opened as in validation.

        Each process has a share of them.
        """
        stream = self._stream("train")
        read = partial(stream.read_shuffled, seed=0, buffer_size=self.shuffle_buffer)
        sampler = StreamSampler(
            lambda epoch: islice(read(epoch), max_samples), stream.name, *world_size_and_rank(), repeats=False
        )
        batches = StreamBatches(self._opener(stream), Collate(self.processors))
        return self._build_loader(batches, sampler, identity_collate, self.num_loader_workers)

    def predict_dataloader(self, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Yield batches of the rows of all splits in the stored order, without targets, and without the first rows.

        Args:
            start: number of rows that are read, but left out.
            stop: None, because the number of rows is unknown.
        """
        assert stop is None
        for split in self._parts:
            stream, counter = self._stream(split), itertools.count()
            read = partial(_count_rows, stream, counter)
            sampler = StreamSampler(read, stream.name, count_trained=partial(int, start), repeats=False)
            prefix = f"{split}-" if len(self._parts) > 1 else ""
            batches = StreamBatches(self._opener(stream, predicting=True, id_prefix=prefix), Collate(self.processors))
            yield from self._build_loader(batches, sampler, identity_collate, self.num_loader_workers)
            start = max(0, start - next(counter))

    def _build_sequential_loader(self, split: Literal["val", "test", "predict"]) -> DataLoader[Sample]:
        stream = self._stream(split)
        sampler = StreamSampler(stream.read, stream.name, *world_size_and_rank(), repeats=False)
        batches = StreamBatches(self._opener(stream), Collate(self.processors))
        return self._build_loader(batches, sampler, identity_collate, self.num_loader_workers)

    def _stream(self, split: Split | Literal["predict"]) -> RowStream:
        if split == "predict" or split not in self._parts:
            raise UserError(f"{self.dataset} has the splits {join_names(self._parts)}, and no {split}")
        part = self._parts[split]
        columns = {name for columns in self.columns.values() for name in column_names(columns)}
        columns |= {*self.label_columns, "id"}
        used = [name for name in part.features if name in columns]
        return RowStream(self._name(split), part, used, self._has_input if self.drop_empty else None)

    def _has_input(self, table: Table) -> NDArray[np.bool_]:
        return ~self._table_inputs(table).find_empty_rows()

    def _opener(
        self, stream: RowStream, training: bool = False, predicting: bool = False, id_prefix: str = ""
    ) -> RowOpener:
        return RowOpener(
            name=stream.name,
            schema=stream.schema,
            labels=self.label_columns,
            classes=[] if predicting else self.classes,
            task=self.task,
            columns=self.columns,
            processors=self.processors,
            folder=self.root,
            remote=self.remote,
            allow_outside=self.allow_outside,
            on_bad_file=self.on_bad_file,
            training=training,
            augment=self.augment if training else {},
            joint_augment=self.joint_augment if training else {},
            predicting=predicting,
            id_prefix=id_prefix,
        )

    def _table_inputs(self, table: Table) -> TableInputs:
        return TableInputs(table, self.columns, self.processors, self.root, self.remote, self.allow_outside)

    def _name(self, split: str) -> str:
        return f"{self.dataset}, split {split}"


def _count_rows(stream: RowStream, counter: Iterator[int], epoch: int) -> Iterator[StreamRow]:
    """Yield the rows of a stream, and count them."""
    yield from map(itemgetter(0), zip(stream.read(epoch), counter, strict=False))


def _empty_table(part: Any) -> Table:
    """Return a table with the columns of a split, and without rows."""
    schema = part.features.arrow_schema
    data = write_class_names(simplify(schema.empty_table(), schema.names), find_class_names(part.features))
    return Table("", data, np.arange(0))
