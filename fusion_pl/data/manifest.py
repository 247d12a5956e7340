"""Data module for a table with one row per sample and one column per input (the manifest)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from fusion_pl.data.rows import InputColumn, ManifestRows
from fusion_pl.data.sampling import Sampling, check_weights, class_balanced_weights, read_weights, relative_lengths
from fusion_pl.data.table_data import TableData
from fusion_pl.tables.checks import (
    NUM_TEXTS,
    check_empty_rows,
    check_ids,
    check_splits,
    check_text_column,
    count_text_paths,
)
from fusion_pl.tables.columns import (
    Columns,
    TableInputs,
    check_input_columns,
    check_input_names,
    check_prediction_columns,
)
from fusion_pl.tables.labels import (
    check_label_columns,
    check_labels,
    find_untrained_classes,
    replace_label_problems,
    unsuitable_labels,
)
from fusion_pl.tables.read_table import read_table, table_files
from fusion_pl.tables.remote import RemoteFiles, is_url, strip_query
from fusion_pl.tables.splits import DEFAULT_SPLIT, SPLITS, Split
from fusion_pl.tables.table import Problem, Table, raise_problems
from fusion_pl.types import UserError

REQUIRED_SPLITS: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}


class ManifestData(TableData):
    """Load text, images and audio listed in a table, and check the table before training.

    An empty cell is a missing input. If there is no split column, a hash of each row's ``id`` or content assigns the
    row to train, val or test, so that the row keeps its split when the table changes. If the split column has no val
    rows, some train rows become val rows. Samples without an ``id`` are identified by row number. Checkpoints record
    the splits.

    Args:
        manifest: path or URL of the table: .csv, .tsv, .jsonl, .ndjson, .parquet, .arrow, .feather, or a folder of
            Parquet files.
        inputs: dictionary from input name to column of the manifest, or to a list of columns of numbers; by default the
            column has the name of the input.
        root: folder of relative paths, or the beginning of their URLs; by default the folder of the manifest, or the
            manifest if it is a folder.
        check_files: whether to check before training that the files exist.
        sampling: ``class_balanced`` draws the samples of each epoch with replacement, every class with the same
            probability; null = every sample once.
        sample_weight: column of numbers in proportion to which samples are drawn in each epoch, with replacement; 0
            leaves a row out of training.
        bucket_by_length: whether the samples of a training batch have similar lengths (characters of texts, seconds of
            audio), for less padding.
        remote_cache: folder of the copies of files at URLs; by default ``remote`` in the folder of all caches
            (``$FUSION_PL_CACHE``, or ``~/.cache/fusion-pl``).
        remote_cache_limit: maximum size of these copies in GiB, above 0.
        kwargs: arguments of ``TableData`` and ``FusionData``.

    Raises:
        UserError: if two arguments exclude each other, or one is out of range.
    """

    cached_by_processors = ("_inputs", "_empty_rows", "_splits", "class_counts", "train_sampling")

    def __init__(  # noqa: PLR0913 - the options of one class in a configuration
        self,
        manifest: str,
        inputs: dict[str, list[str] | str] | None = None,
        root: str | None = None,
        *,
        check_files: bool = True,
        sampling: Literal["class_balanced"] | None = None,
        sample_weight: str | None = None,
        bucket_by_length: bool = False,
        remote_cache: str | None = None,
        remote_cache_limit: float = 10.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(manifest=manifest, **kwargs)
        self.inputs = dict(inputs or {})
        if sampling is not None and sample_weight is not None:
            raise UserError("data.sampling and data.sample_weight exclude each other: give only one of them")
        if sampling is not None and not self.task.exclusive_classes:
            raise UserError(
                f"data.sampling {sampling} needs classes that exclude each other, which {type(self.task).__name__} "
                "lacks: use data.sample_weight, or the criterion BinaryCrossEntropy with positive_weights: balanced"
            )
        self.sampling, self.sample_weight, self.bucket_by_length = sampling, sample_weight, bucket_by_length
        folder = self.manifest if os.path.isdir(self.manifest) else os.path.dirname(strip_query(self.manifest))
        self.root = root or folder or os.curdir
        self.check_files = check_files
        self.remote = RemoteFiles.from_options(remote_cache, remote_cache_limit)

    @cached_property
    def table(self) -> Table:
        """The manifest, read on first use."""
        if not is_url(self.manifest):
            return super().table
        self.remote.fetch(self.manifest, refresh=True)  # a table may change, unlike other files
        table = self.remote.open(self.manifest, read_table)
        kept = tuple(file for file in table.files if Path(file.path).parent != self.remote.folder)
        return replace(table, path=self.manifest, files=kept)  # a copy of the cache may be removed at any time

    @property
    def files(self) -> list[Path]:
        """Files of the manifest."""
        return table_files(self.remote.fetch(self.manifest) if is_url(self.manifest) else self.manifest)

    @property
    def columns(self) -> dict[str, Columns]:
        """Dictionary from input name to its column or columns, in the order of the model's inputs."""
        return {name: self.inputs.get(name, name) for name in self.processors}

    def check_columns(self, inputs: Iterable[str]) -> None:
        """Check that the table has the columns of the label, the inputs and the splits; needs no processors.

        Args:
            inputs: names of the model's inputs.

        Raises:
            UserError: lists all columns that are missing.
        """
        problems = list(check_label_columns(self.table, self.label_columns, self.task))
        for name in inputs:
            problems += check_input_columns(self.table, name, self.inputs.get(name, name))
        raise_problems(self.manifest, [*problems, *self._check_split_column()])

    def setup(self, stage: str) -> None:
        """Check the manifest, and that the files in its cells exist.

        Args:
            stage: ``fit`` checks the files of all splits, ``validate`` and ``test`` the files of one split. ``predict``
                checks the columns, and that the table can be read: a row with unusable files gets an error instead of a
                prediction.

        Raises:
            UserError: lists the first ten problems with row and column.
        """
        if stage == "predict":
            problems = [*self.table.problems, *check_input_names(self.inputs, self.processors)]
            check_prediction_columns(self.manifest, self._inputs, problems)
            return
        self._check_versions()
        raise_problems(self.manifest, self.find_problems(stage))
        for message in self._splits.messages():
            rank_zero_info(message)
        if stage == "fit":
            for message in [*filter(None, [self.joined_labels]), *self.misspelt_classes.values()]:
                rank_zero_info(f"{self.manifest}: {message}")
            self._warn_of_text_paths()
        self._stage = stage

    def _warn_of_text_paths(self) -> None:
        """Warn of columns whose first texts are paths of files, which were to be read."""
        some = np.arange(min(len(self.table), NUM_TEXTS))
        for name, column in self._inputs.names.items():
            if self.processors[name].reads_files:
                continue
            texts = [cell for cell in self._inputs.cells(name, some) if isinstance(cell, str)]
            if count_text_paths(texts, self.root):
                text = "most texts are the paths of existing files: put the text itself into the cell"
                rank_zero_info(f"{self.manifest}, column {column!r}: {text}")

    def find_problems(self, stage: str) -> list[Problem]:
        """Return all problems of the manifest; the files of its cells are not opened.

        Args:
            stage: ``fit``, ``validate`` or ``test``, see ``setup``.
        """
        names = check_input_names(self.inputs, self.processors)
        problems = [*self.table.problems, *names, *self._check_rows()]
        if self.has_labels:
            if option_problems := list(self._splits.check_options()):
                return problems + option_problems  # the rows cannot be assigned to splits
            required = REQUIRED_SPLITS[stage]
            problems += self._check_classes(required)
            if stage == "fit" and self.joined_labels:
                problems = replace_label_problems(problems, self.label_columns, self.joined_labels)
            problems += self._splits.check_promises()
            problems += self._splits.check_leakage(SPLITS[1:] if stage == "fit" else required)
            if stage == "fit" and self.sample_weight is not None:
                problems += check_weights(self.table, self.sample_weight, self._splits.used_rows["train"])
            problems += self._check_paths(SPLITS if stage == "fit" else required)
        return problems

    def _check_rows(self) -> Iterator[Problem]:
        yield from check_label_columns(self.table, self.label_columns, self.task)
        yield from self._inputs.check_columns()
        if self.has_labels:
            yield from check_labels(self.table, self.labels, self._classes, self.task)
        yield from self._check_split_column()
        if self.split is not None and self.split in self.table.columns:
            yield from check_splits(self.table, self.split)
        if "id" in self.table.columns:
            yield from check_text_column(self.table, "id", "the id")
            yield from check_ids(self.table)
        if not self.drop_empty and not self._inputs.missing_columns:
            yield from check_empty_rows(self.table, self._inputs.all_columns, self._empty_rows)

    def _check_split_column(self) -> Iterator[Problem]:
        if self.split is not None and (self.split in self.table.columns or self.split != DEFAULT_SPLIT):
            yield from check_text_column(self.table, self.split, "the split")

    def _check_classes(self, required_splits: Sequence[Split]) -> list[Problem]:
        problems = [
            Problem(
                f"there is no {split} row: the splits have {self._splits.sizes_text} rows{self._splits.shortage_text}"
            )
            for split in required_splits
            if not self._splits.used_rows[split].size
        ]
        if "train" in required_splits:
            problems += find_untrained_classes(
                self.table,
                self.label_columns[0],
                self.task,
                self.targets,
                dict(zip(self._classes, self.class_counts, strict=True)),
            )
        if self.configured_classes is None and not self.joined_labels:
            return unsuitable_labels(self.table, self.label_columns, self._classes, bool(problems)) or problems
        return problems

    def _check_paths(self, splits: Sequence[Split]) -> Iterator[Problem]:
        rows = np.concatenate([self._splits.used_rows[split] for split in splits])
        yield from self._inputs.check_paths(rows, self.check_files)

    def samples(self, split: Split | Literal["predict"]) -> ManifestRows:
        """Return the data set of a split; ``predict`` returns all rows, without targets."""
        predicting, training = split == "predict", split == "train"
        rows = np.arange(len(self.table)) if split == "predict" else self._splits.used_rows[split]
        inputs = self._inputs
        columns = []
        for name, column in inputs.names.items():
            augment = self.augment.get(name) if training else None
            cells, processor = inputs.cells(name, rows), self.processors[name]
            columns.append(InputColumn(name, column, processor, cells, training, augment, remote=self.remote))
        return ManifestRows(
            manifest=self.manifest,
            columns=columns,
            table=inputs.table,
            rows=rows,
            targets=None if predicting else self.targets[rows],
            on_bad_file=self.on_bad_file,
            return_errors=predicting,
            errors=inputs.find_outside_paths() if predicting else {},
            joint_augment=self.joint_augment if training else {},
        )

    @property
    def input_table(self) -> Table:
        """The columns that loader workers need, with several columns of one input joined to one."""
        return self._inputs.table

    @cached_property
    def train_sampling(self) -> Sampling | None:
        """How the training samples of an epoch are drawn; None = every sample once, in random order."""
        rows, weights, lengths = self._splits.used_rows["train"], None, None
        if self.sampling is not None:
            weights = class_balanced_weights(self.targets[rows])
        elif self.sample_weight is not None:
            weights = read_weights(self.table, self.sample_weight)[rows]
        if self.bucket_by_length:
            lengths = relative_lengths(self.samples("train").columns, len(rows))
        return None if weights is None and lengths is None else Sampling(weights, lengths)

    @cached_property
    def _inputs(self) -> TableInputs:
        folder = self.root.rstrip("/") if is_url(self.root) else os.path.abspath(self.root)
        return TableInputs(self.table, self.columns, self.processors, folder, self.remote, self.allow_outside)

    @cached_property
    def _empty_rows(self) -> NDArray[np.bool_]:
        return self._inputs.find_empty_rows()
