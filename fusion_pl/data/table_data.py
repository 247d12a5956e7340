"""Data module whose samples are the rows of a table: its classes, and the assignment of its rows to splits."""

from __future__ import annotations

import os
from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import distributed

from fusion_pl.data.base import FusionData
from fusion_pl.tables.folds import parse_fold
from fusion_pl.tables.labels import (
    check_label_columns,
    check_label_option,
    describe_joined_labels,
    find_misspelt_classes,
    has_label_columns,
    read_label_column,
)
from fusion_pl.tables.read_table import read_table, table_files
from fusion_pl.tables.split_file import write_split_file
from fusion_pl.tables.split_record import SplitRecord
from fusion_pl.tables.splits import DEFAULT_SPLIT, NO_SPLIT, Split, column_splits, splits_to_draw
from fusion_pl.tables.table import Problem, Table, raise_problems
from fusion_pl.tables.table_splits import SplitOptions, TableSplits
from fusion_pl.tasks import LabelColumn
from fusion_pl.types import UserError

DEFAULT_FRACTION = 0.15  # of val and of test rows


class TableData(FusionData):
    """Base class of data modules with one row of a table per sample; subclasses load the inputs of the rows.

    Args:
        manifest: path of the table: .csv, .tsv, .jsonl, .ndjson, .parquet, .arrow, .feather, or a folder of Parquet
            files.
        label: column with the class names; or several columns with 0 and 1, if the task reads them.
        split: column with train, val or test; if the default column does not exist, or null is given, rows are
            assigned to splits by a hash of each row, or as the next options say.
        classes: names of the classes; by default all labels, in numeric order if all are integers, else in
            alphabetical order.
        val_fraction: expected fraction of val rows if the manifest has no val rows, in (0, 1).
        test_fraction: expected fraction of test rows if there is no split column, in [0, 1).
        group: column whose values, such as speakers, are never in two splits; rows are drawn by a hash of the value. A
            row with an empty cell is its own group.
        time: column by whose numbers or ISO dates the earliest rows are train, the next ones val, the latest ones test.
            Rows that are added later move the limits, except in runs that resume or that get data.splits.
        fold: fold of a cross-validation, such as 2/5: fold 2 of 5 is test, fold 3 val, and the others train. Rows, or
            groups, are assigned to folds by a hash. It excludes other fractions than the default.
        splits: CSV file with the columns split and id or hash, such as splits.csv of another run, whose rows keep
            their splits; other rows are drawn.
        kwargs: arguments of ``FusionData``.

    Raises:
        UserError: if an argument is out of range, or two arguments exclude each other.
    """

    def __init__(  # noqa: PLR0913 - the options of one class in a configuration
        self,
        manifest: str,
        label: list[str] | str = "label",
        split: str | None = DEFAULT_SPLIT,
        classes: list[str] | None = None,
        val_fraction: float = DEFAULT_FRACTION,
        test_fraction: float = DEFAULT_FRACTION,
        *,
        group: str | None = None,
        time: str | None = None,
        fold: str | None = None,
        splits: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not (0 < val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
            raise UserError(
                "val_fraction must lie in (0, 1), test_fraction in [0, 1), and their sum below 1, got "
                f"{val_fraction} and {test_fraction}"
            )
        for name, value, other, other_value in (
            ("time", time, "group", group),
            ("fold", fold, "time", time),
            ("fold", fold, "splits", splits),
        ):
            if value is not None and other_value is not None:
                raise UserError(f"data.{name} and data.{other} exclude each other: give only one of them")
        if fold is not None and {val_fraction, test_fraction} != {DEFAULT_FRACTION}:
            raise UserError(
                f"data.fold {fold} is itself the fraction of val and test rows: leave out data.val_fraction and "
                "data.test_fraction"
            )
        self.manifest = os.fspath(manifest)
        self.label = label
        self.label_columns = label if isinstance(label, list) else [label]
        check_label_option(self.label_columns, classes, self.task)
        self.split = split
        self.split_file = splits
        self.configured_classes = classes
        fractions: dict[Split, float] = {"val": val_fraction, "test": test_fraction}
        self._split_options = SplitOptions(
            split, fractions, self.seed, group, time, None if fold is None else parse_fold(fold), splits
        )
        self._stage: str | None = None
        self._checkpoint_record: SplitRecord | None = None

    @cached_property
    def table(self) -> Table:
        """The manifest, read on first use."""
        return read_table(self.manifest)

    @property
    def files(self) -> list[Path]:
        """Files of the manifest."""
        return table_files(self.manifest)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the targets.

        Raises:
            UserError: if no classes are configured and the manifest has no labels.
        """
        if self.configured_classes is None:
            raise_problems(self.manifest, check_label_columns(self.table, self.label_columns, self.task))
        if not self._classes:
            raise_problems(self.manifest, [Problem("every label is empty", column=self.label_columns[0])])
        return list(self._classes)

    @cached_property
    def class_counts(self) -> list[int]:
        """Number of training samples per class, in the order of ``classes``."""
        targets = self.targets[self._splits.used_rows["train"]]
        counts: list[int] = self.task.count_classes(targets, len(self._classes)).tolist()
        return counts

    @property
    def absent_counts(self) -> list[int]:
        """Number of training samples per class that are known not to have it."""
        targets = self.targets[self._splits.used_rows["train"]]
        counts: list[int] = self.task.count_absent(targets, len(self._classes)).tolist()
        return counts

    @cached_property
    def joined_labels(self) -> str:
        """Sentence if the inferred classes of exclusive classes look like several names per cell; else empty."""
        if self.configured_classes is not None or not self.task.exclusive_classes:
            return ""
        return describe_joined_labels(self._classes)

    @property
    def misspelt_classes(self) -> dict[str, str]:
        """Dictionary from each inferred class that may be a typing error to a message; empty if classes are given."""
        if self.configured_classes is not None or self.joined_labels:
            return {}
        counts = self.task.count_classes(self.targets, len(self._classes))
        return find_misspelt_classes(self._classes, counts.tolist())

    @property
    @abstractmethod
    def columns(self) -> dict[str, str | list[str]]:
        """Dictionary from input name to its column or columns, in the order of the model's inputs."""

    def state_dict(self) -> dict[str, Any]:
        """Return the split record, which Lightning saves in the checkpoint."""
        return self._splits.record.state_dict() if self._stage else {}

    def load_state_dict(self, state_dict: Any) -> None:
        """Restore the splits from a checkpoint; ``state_dict`` is empty if the checkpoint has no split record.

        Raises:
            UserError: if the record is damaged, or if the rows to evaluate include training rows.
        """
        if not state_dict:
            drawn = splits_to_draw(column_splits(self.table, self.split))
            if drawn and self._split_options.fold is None and self._split_options.file is None:
                rank_zero_info(
                    f"{self.manifest}: the checkpoint does not record which rows it was trained on, so the rows drawn "
                    f"for {' and '.join(drawn)} may include training rows: train again with this table"
                )
            return
        record = SplitRecord.from_state(state_dict)
        if self._stage and any(map(record.has_same_content, (self._checkpoint_record, self._splits.record))):
            return
        self._checkpoint_record = record
        for name in ("_splits", "class_counts", "train_sampling"):
            self.__dict__.pop(name, None)
        if self._stage:  # the Trainer restores the checkpoint after setup
            self.setup(self._stage)

    @property
    def row_splits(self) -> NDArray[np.int8]:
        """Index of the split of each row in ``SPLITS``; -1 for rows that are not used or with invalid options."""
        if any(True for _ in self._splits.check_options()):
            return np.full(len(self.table), NO_SPLIT, np.int8)
        return self._splits.row_splits

    @property
    def row_hashes(self) -> NDArray[np.int64]:
        """Hash of each row, by which its split is drawn; it does not depend on the label and the split."""
        return self._splits.row_hashes

    def write_splits(self, path: str | Path) -> None:
        """Write a CSV file with the row number, id, hash and split of each used row, in the order of the table."""
        splits = self._splits
        write_split_file(path, self.table, splits.row_hashes, splits.row_splits)

    @cached_property
    def _classes(self) -> list[str]:
        if self.configured_classes is not None:
            return self.configured_classes
        return self.task.infer_classes(self.labels) if self.has_labels else []

    @property
    def has_labels(self) -> bool:
        """Whether the table has the label columns, in types that the task reads."""
        return has_label_columns(self.table, self.label_columns, self.task)

    @cached_property
    def labels(self) -> list[LabelColumn]:
        """The label columns; they must exist."""
        return [read_label_column(self.table, name) for name in self.label_columns]

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """Target of each row; negative if it has none."""
        return self.task.read_targets(self.labels, self._classes)

    @cached_property
    def _splits(self) -> TableSplits:
        dropped = self._empty_rows if self.drop_empty else np.zeros(len(self.table), bool)
        strata = self.task.strata(self.targets)
        return TableSplits(
            self.table, strata, self.label_columns, self._split_options, dropped, self._checkpoint_record
        )

    @property
    @abstractmethod
    def _empty_rows(self) -> NDArray[np.bool_]:
        """Whether all inputs of each row are missing."""

    def _check_versions(self) -> None:
        """Check that all processes of a run have the same table, which may change while they start.

        Raises:
            UserError: if they have different tables.
        """
        if distributed.is_available() and distributed.is_initialized():
            hashes: list[str | None] = [None] * distributed.get_world_size()
            distributed.all_gather_object(hashes, self._splits.table_hash if self.has_labels else None)
            if len(set(hashes)) > 1:
                raise UserError(f"the processes have read different versions of {self.manifest}: start again")
