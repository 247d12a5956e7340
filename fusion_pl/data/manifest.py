"""Data module for a table with one row per sample and one column per input (the manifest)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from fusion_pl.data.base import FusionData
from fusion_pl.data.checks import (
    check_column,
    check_empty_rows,
    check_files,
    check_ids,
    check_labels,
    check_splits,
    check_text_column,
    find_empty_rows,
    find_outside_paths,
    find_targets,
)
from fusion_pl.data.read_table import read_table, table_files
from fusion_pl.data.rows import InputColumn, ManifestRows
from fusion_pl.data.split_record import SplitRecord
from fusion_pl.data.splits import SPLITS, Split, splits_to_draw
from fusion_pl.data.table import Cells, Problem, Table, infer_classes, raise_problems
from fusion_pl.data.table_splits import TableSplits, column_splits
from fusion_pl.messages import join_names
from fusion_pl.types import UserError

REQUIRED_SPLITS: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
DEFAULT_SPLIT = "split"


class ManifestData(FusionData):
    """Load text, images and audio listed in a table, and check the table before training.

    An empty cell is a missing input. If there is no split column, a hash of each row's ``id`` or content assigns the
    row to train, val or test, so that the row keeps its split when the table changes. If the split column has no val
    rows, some train rows become val rows. Samples without an ``id`` are identified by row number. Checkpoints record
    the splits.

    Args:
        manifest: path of the table: .csv, .tsv, .jsonl, .ndjson, .parquet, .arrow, .feather, or a folder of Parquet
            files.
        inputs: dictionary from input name to column of the manifest; by default the column has the name of the input.
        label: column with the class names.
        split: column with train, val or test; if the default column does not exist, a hash assigns rows to splits.
        classes: names of the classes; by default all labels, in numeric order if all are integers, else in
            alphabetical order.
        root: folder of relative paths; by default the folder of the manifest, or the manifest if it is a folder.
        val_fraction: expected fraction of val rows if the manifest has no val rows, in (0, 1).
        test_fraction: expected fraction of test rows if there is no split column, in [0, 1).
        check_files: whether to check before training that the files exist.
        kwargs: arguments of ``FusionData``.

    Raises:
        UserError: if an argument is out of range.
    """

    def __init__(  # noqa: PLR0913 - the options of one class in a configuration
        self,
        manifest: str,
        inputs: dict[str, str] | None = None,
        label: str = "label",
        split: str = DEFAULT_SPLIT,
        classes: list[str] | None = None,
        root: str | None = None,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        *,
        check_files: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not (0 < val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
            raise UserError(
                "val_fraction must lie in (0, 1), test_fraction in [0, 1), and their sum below 1, got "
                f"{val_fraction} and {test_fraction}"
            )
        if classes is not None and len(set(classes)) != len(classes):
            raise UserError(f"classes contains {Counter(classes).most_common(1)[0][0]!r} more than once")
        self.manifest = os.fspath(manifest)
        self.inputs = inputs or {}
        self.label = label
        self.split = split
        self.configured_classes = classes
        folder = self.manifest if os.path.isdir(self.manifest) else os.path.dirname(self.manifest)
        self.root = root or folder or os.curdir
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.check_files = check_files
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
            raise_problems(self.manifest, check_text_column(self.table, self.label, "the label"))
        if not self._classes:
            raise_problems(self.manifest, [Problem("every label is empty", column=self.label)])
        return list(self._classes)

    @cached_property
    def class_counts(self) -> list[int]:
        """Number of training samples per class, in the order of ``classes``."""
        targets = self.targets[self._splits.used_rows["train"]]
        counts: list[int] = np.bincount(targets, minlength=len(self._classes)).tolist()
        return counts

    @property
    def columns(self) -> dict[str, str]:
        """Dictionary from input name to its column, in the order of the model's inputs."""
        return {name: self.inputs.get(name, name) for name in self.processors}

    def setup(self, stage: str) -> None:
        """Check the manifest, and that the files in its cells exist.

        Args:
            stage: ``fit`` checks the files of all splits, ``validate`` and ``test`` the files of one split. ``predict``
                checks only the columns: an unusable row gets an error instead of a prediction.

        Raises:
            UserError: lists the first ten problems with row and column.
        """
        if stage == "predict":
            self._check_prediction_columns(self._find_unknown_inputs())
            return
        raise_problems(self.manifest, self.find_problems(stage))
        for message in self._splits.messages():
            rank_zero_info(message)
        self._stage = stage

    def find_problems(self, stage: str) -> list[Problem]:
        """Return all problems of the manifest; the files of its cells are not opened.

        Args:
            stage: ``fit``, ``validate`` or ``test``, see ``setup``.
        """
        problems = [*self._find_unknown_inputs(), *self._check_rows()]
        if self._has_labels:
            required = REQUIRED_SPLITS[stage]
            problems += self._check_classes(required)
            problems += self._splits.check_leakage(SPLITS[1:] if stage == "fit" else required)
            problems += self._check_paths(SPLITS if stage == "fit" else required)
        return problems

    def _find_unknown_inputs(self) -> list[Problem]:
        model_inputs = join_names(self.processors)
        return self.table.problems + [
            Problem(f"data.inputs has the input {name!r}, but the model's inputs are {model_inputs}")
            for name in sorted(self.inputs.keys() - self.processors.keys())
        ]

    def _check_prediction_columns(self, problems: list[Problem]) -> None:
        missing = [column for column in self.columns.values() if column not in self.table.columns]
        if len(missing) == len(self.columns):
            problems += [problem for column in missing for problem in check_column(self.table, column, "an input")]
        raise_problems(self.manifest, problems)
        if missing:
            names = join_names(map(repr, missing))
            rank_zero_info(f"{self.manifest} has no column {names}: predicting without this input")

    def state_dict(self) -> dict[str, Any]:
        """Return the split record, which Lightning saves in the checkpoint."""
        return self._splits.record.state_dict() if self._stage else {}

    def load_state_dict(self, state_dict: Any) -> None:
        """Restore the splits from a checkpoint; ``state_dict`` is empty if the checkpoint has no split record.

        Raises:
            UserError: if the record is damaged, or if the rows to evaluate include training rows.
        """
        if not state_dict:
            if drawn := splits_to_draw(column_splits(self.table, self.split)):
                rank_zero_info(
                    f"{self.manifest}: the checkpoint does not record which rows it was trained on, so the rows drawn "
                    f"for {' and '.join(drawn)} may include training rows: train again with this table"
                )
            return
        record = SplitRecord.from_state(state_dict)
        if self._stage and any(map(record.has_same_content, (self._checkpoint_record, self._splits.record))):
            return
        self._checkpoint_record = record
        for name in ("_splits", "class_counts"):
            self.__dict__.pop(name, None)
        if self._stage:  # the Trainer restores the checkpoint after setup
            self.setup(self._stage)

    @property
    def row_splits(self) -> NDArray[np.int8]:
        """Index of the split of each row in ``SPLITS``; -1 for rows that are not used."""
        return self._splits.row_splits

    def write_splits(self, path: str | Path) -> None:
        """Write a CSV file with the row number, id and split of each used row, in the order of the table."""
        self._splits.write_csv(path)

    def _check_rows(self) -> Iterator[Problem]:
        yield from check_text_column(self.table, self.label, "the label")
        for name, column in self.columns.items():
            fix = f"give another column with --data.inputs.{name}, or leave {name} out of model.encoders"
            yield from check_column(self.table, column, f"the input {name!r}", fix)
        if self._has_labels:
            yield from check_labels(self.table, self.label, self._classes)
        if self.split in self.table.columns or self.split != DEFAULT_SPLIT:
            yield from check_text_column(self.table, self.split, "the split")
        if self.split in self.table.columns:
            yield from check_splits(self.table, self.split)
        if "id" in self.table.columns:
            yield from check_text_column(self.table, "id", "the id")
            yield from check_ids(self.table)
        if not self.drop_empty and all(column in self.table.columns for column in self.columns.values()):
            yield from check_empty_rows(self.table, list(self.columns.values()), self._empty_rows)

    def _check_classes(self, required_splits: Sequence[Split]) -> list[Problem]:
        problems = [
            Problem(f"there is no {split} row: the splits have {self._splits.sizes_text} rows")
            for split in required_splits
            if not self._splits.used_rows[split].size
        ]
        if "train" in required_splits:
            problems += [
                Problem(f"the class {name!r} has no training sample", column=self.label)
                for name, count in zip(self._classes, self.class_counts, strict=True)
                if not count
            ]
        if problems and self.configured_classes is None and len(self._classes) * 2 > len(self.table):
            others = join_names(repr(name) for name in self.table.columns if name != self.label)
            text = (
                f"the label column {self.label!r} has {len(self._classes)} different values in {len(self.table)} rows, "
                f"like ids or numbers: give a column of classes with data.label (the other columns are {others})"
            )
            return [Problem(text)]
        return problems

    def _check_paths(self, splits: Sequence[Split]) -> Iterator[Problem]:
        rows = np.concatenate([self._splits.used_rows[split] for split in splits])
        for column in self._path_columns.values():
            outside = self._find_outside_paths(column)
            yield from (Problem(text, int(self.table.row_numbers[row]), column) for row, text in outside.items())
            if self.check_files:
                yield from check_files(self.table, column, self._folder, np.setdiff1d(rows, list(outside)))

    def samples(self, split: Split | Literal["predict"]) -> ManifestRows:
        """Return the data set of a split; ``predict`` returns all rows, without targets."""
        predicting, training = split == "predict", split == "train"
        rows = np.arange(len(self.table)) if split == "predict" else self._splits.used_rows[split]
        errors: dict[int, str] = {}
        if predicting:
            for column in self._path_columns.values():
                errors |= self._find_outside_paths(column)
        columns = []
        for name, column in self.columns.items():
            if column in self.table.columns:
                cells = Cells(self._input_table, column, rows, self._folder if name in self._path_columns else None)
                augment = self.augment.get(name) if training else None
                columns.append(InputColumn(name, column, self.processors[name], cells, training, augment))
        return ManifestRows(
            manifest=self.manifest,
            columns=columns,
            table=self._input_table,
            rows=rows,
            targets=None if predicting else self.targets[rows],
            on_bad_file=self.on_bad_file,
            return_errors=predicting,
            errors=errors,
        )

    @cached_property
    def _input_table(self) -> Table:
        """The columns that loader workers need."""
        return self.table.select(name for name in ("id", *self.columns.values()) if name in self.table.columns)

    @cached_property
    def _classes(self) -> list[str]:
        if self.configured_classes is not None:
            return self.configured_classes
        return infer_classes(self.table.factorize(self.label)[1] if self._has_labels else [])

    @property
    def _has_labels(self) -> bool:
        return self.label in self.table.columns and self.table.is_text(self.label)

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """Class index of each row; -1 if it has no class."""
        return find_targets(self.table, self.label, self._classes)

    @cached_property
    def _splits(self) -> TableSplits:
        fractions: dict[Split, float] = {"val": self.val_fraction, "test": self.test_fraction}
        dropped = self._empty_rows if self.drop_empty else np.zeros(len(self.table), bool)
        record = self._checkpoint_record
        return TableSplits(self.table, self.targets, self.label, self.split, fractions, self.seed, dropped, record)

    @cached_property
    def _empty_rows(self) -> NDArray[np.bool_]:
        """Whether all inputs of each row are missing."""
        return find_empty_rows(self.table, [name for name in self.columns.values() if name in self.table.columns])

    @property
    def _path_columns(self) -> dict[str, str]:
        """Dictionary from input name to its column, for inputs that are files."""
        columns = {name: column for name, column in self.columns.items() if column in self.table.columns}
        return {name: column for name, column in columns.items() if self.processors[name].reads_files}

    @cached_property
    def _folder(self) -> str:
        """Absolute folder of relative paths."""
        return os.path.abspath(self.root)

    def _find_outside_paths(self, column: str) -> dict[int, str]:
        return {} if self.allow_outside else find_outside_paths(self.table, column, self._folder)
