"""Your own files: a table with one row a sample and one column an input."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info

from fusion_pl.data.base import FusionData
from fusion_pl.data.checks import (
    check_column,
    check_files,
    check_ids,
    check_inputs,
    check_labels,
    check_splits,
    listed,
    outside,
    resolve,
)
from fusion_pl.data.media import crop_function
from fusion_pl.data.rows import Column, Rows
from fusion_pl.data.splits import SPLITS, Split, to_draw
from fusion_pl.data.stored import StoredSplits, without_splits
from fusion_pl.data.table import Problem, Table, infer_classes, read_table, refuse
from fusion_pl.data.table_splits import TableSplits, write_splits
from fusion_pl.types import UserError

NEEDED: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
DEFAULT_SPLIT = "split"


class ManifestData(FusionData):
    """Reads text, pictures and sound listed in a CSV, TSV or JSON Lines file, and checks all of it before training.

    An empty cell is a missing input. Without a split column each row is drawn into train, val or test by a hash of its
    ``id``, or of its content, so that it keeps its split when the table changes; without val rows some are taken from
    train, never from test. The optional ``id`` names the samples, else their row does. Checkpoints carry the splits.

    Args:
        manifest: path of the file.
        inputs: name of the input -> its column; an input that is not listed has a column of its own name.
        label: column of the class.
        split: column of train, val or test; if it is not there, and you did not rename it, fractions are drawn.
        classes: their names; by default those of all rows, in numeric order where all are integers, else sorted.
        root: folder against which relative paths resolve; by default the manifest's.
        val_fraction: expected part of the rows that becomes val where the manifest names none, in (0, 1).
        test_fraction: expected part of the rows that becomes test where there is no split column, in [0, 1).
        kwargs: see ``FusionData``.

    Raises:
        UserError: where an argument is out of its range.
    """

    def __init__(
        self,
        manifest: str,
        inputs: dict[str, str] | None = None,
        label: str = "label",
        split: str = DEFAULT_SPLIT,
        classes: list[str] | None = None,
        root: str | None = None,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not (0 < val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
            raise UserError(
                "val_fraction must lie in (0, 1), test_fraction in [0, 1), and their sum below 1, got "
                f"{val_fraction} and {test_fraction}"
            )
        if classes is not None and len(set(classes)) != len(classes):
            raise UserError(f"classes names {Counter(classes).most_common(1)[0][0]!r} more than once")
        self.manifest = os.fspath(manifest)
        self.inputs = inputs or {}
        self.label = label
        self.split = split
        self.given_classes = classes
        self.root = root or os.path.dirname(self.manifest) or os.curdir
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self._stage: str | None = None
        self._stored: StoredSplits | None = None

    @cached_property
    def table(self) -> Table:
        """The manifest, read on first use."""
        return read_table(self.manifest)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the targets.

        Raises:
            UserError: where they are not given and the manifest has no labels.
        """
        if self.given_classes is None:
            refuse(self.manifest, check_column(self.table, self.label, "the label"))
        if not self._classes:
            refuse(self.manifest, [Problem("every label is empty", column=self.label)])
        return list(self._classes)

    @cached_property
    def class_counts(self) -> list[int]:
        """Training samples of each class, in the order of ``classes``."""
        counts = Counter(self._targets[row] for row in self._splits["train"])
        return [counts[target] for target in range(len(self._classes))]

    @property
    def columns(self) -> dict[str, str]:
        """Name of the input -> its column, in the order of the model's inputs."""
        return {name: self.inputs.get(name, name) for name in self.processors}

    def setup(self, stage: str) -> None:
        """Check the manifest and its files, and refuse it with all that is wrong.

        Args:
            stage: ``fit`` looks at the files of every split, ``validate`` and ``test`` at their own; ``predict`` only
                asks for the columns, since there a row that cannot be used is told with its prediction.

        Raises:
            UserError: names the first ten problems by row and column.
        """
        if stage == "predict":
            refuse(self.manifest, [*self.table.problems, *self._check_mapping()])
            absent = [column for column in self.columns.values() if column not in self.table.columns]
            if len(absent) == len(self.columns):
                refuse(
                    self.manifest,
                    [problem for column in absent for problem in check_column(self.table, column, "an input")],
                )
            if absent:
                rank_zero_info(f"{self.manifest} has no column {listed(map(repr, absent))}: predicting without")
            return
        problems = [*self.table.problems, *self._check_mapping(), *self._check_rows()]
        if self.label in self.table.columns:
            problems += self._check_samples(NEEDED[stage])
            problems += self._table_splits.check(SPLITS[1:] if stage == "fit" else NEEDED[stage], self._ids)
            problems += self._check_paths(SPLITS if stage == "fit" else NEEDED[stage])
        refuse(self.manifest, problems)
        for note in self._table_splits.notes(self._sizes(), len(self._dropped)):
            rank_zero_info(note)
        self._stage = stage

    def state_dict(self) -> dict[str, Any]:
        """Return the splits, by what the rows are: a checkpoint carries them."""
        return self._table_splits.to_store.state() if self._stage else {}

    def load_state_dict(self, state_dict: Any) -> None:
        """Take the splits of the rows from the checkpoint that training goes on from, or that is measured.

        Args:
            state_dict: as ``state_dict`` returned it; empty where an older checkpoint has none.

        Raises:
            UserError: where it is something else, or rows that it was trained on are to be measured.
        """
        if not state_dict:
            if drawn := to_draw(self.table.columns.get(self.split)):
                rank_zero_info(f"{self.manifest}: {without_splits(drawn)}")
            return
        stored = StoredSplits.from_state(state_dict)
        if self._stage and stored in (self._stored, self._table_splits.to_store):
            return
        self._stored = stored
        for name in ("_table_splits", "_splits", "class_counts"):
            self.__dict__.pop(name, None)
        if self._stage:  # a Trainer restores after it has set up
            self.setup(self._stage)

    def write_splits(self, path: str | Path) -> None:
        """Write row number, id and split of every row that is used, in the order of the table."""
        write_splits(path, self.table, self._ids, self._splits)

    def _check_mapping(self) -> Iterator[Problem]:
        for name in sorted(self.inputs.keys() - self.processors.keys()):
            yield Problem(f"data.inputs names {name!r}, but the model's inputs are {listed(self.processors)}")

    def _check_rows(self) -> Iterator[Problem]:
        yield from check_column(self.table, self.label, "the label")
        for name, column in self.columns.items():
            fix = f"name another with --data.inputs.{name}, or leave {name} out of model.encoders"
            yield from check_column(self.table, column, f"the input {name!r}", fix)
        if self.label in self.table.columns:
            yield from check_labels(self.table, self.label, self._classes)
        if self.split in self.table.columns:
            yield from check_splits(self.table, self.split)
        elif self.split != DEFAULT_SPLIT:
            yield from check_column(self.table, self.split, "the split")
        yield from check_ids(self.table, self._ids)
        if not self.drop_empty and all(column in self.table.columns for column in self.columns.values()):
            yield from check_inputs(self.table, list(self.columns.values()), self._ids)

    def _check_samples(self, needed: Sequence[Split]) -> Iterator[Problem]:
        problems = [
            Problem(f"no row is left for {split}: the splits have {self._sizes()}")
            for split in needed
            if not self._splits[split]
        ]
        for name, count in zip(self._classes, self.class_counts, strict=True):
            if not count and "train" in needed:
                problems.append(Problem(f"the class {name!r} has no training sample", column=self.label))
        if problems and self.given_classes is None and len(self._classes) * 2 > len(self.table):
            others = listed(repr(name) for name in self.table.columns if name != self.label)
            problems = [
                Problem(
                    f"the label column {self.label!r} has {len(self._classes)} different values in {len(self.table)} "
                    f"rows, as an id or a number has: name a column of classes with data.label (there are {others})"
                )
            ]
        yield from problems

    def _check_paths(self, splits: Sequence[Split]) -> Iterator[Problem]:
        rows = [row for split in splits for row in self._splits[split]]
        for name, paths in self._paths.items():
            column = self.columns[name]
            wrong = {} if self.allow_outside else outside(paths, self.root)
            yield from (Problem(text, self.table.numbers[row], column) for row, text in wrong.items())
            yield from check_files(self.table, column, paths, (row for row in rows if row not in wrong))

    def samples(self, split: Split | Literal["predict"]) -> Rows:
        """Return the rows of a split; for ``predict`` every row, without targets."""
        predicting = split == "predict"
        rows: Sequence[int] = range(len(self.table)) if split == "predict" else self._splits[split]
        faults: dict[int, str] = {}
        if predicting and not self.allow_outside:
            for paths in self._paths.values():
                faults |= outside(paths, self.root)
        columns = []
        for name, column in self.columns.items():
            if column in self.table.columns:
                cells = self._paths[name] if name in self._paths else self.table.columns[column]
                augment = self.augment.get(name) if split == "train" else None
                processor = self.processors[name]
                crop = crop_function(processor, training=split == "train")
                columns.append(Column(name, column, processor.kind, [cells[row] for row in rows], augment, crop))
        return Rows(
            source=self.manifest,
            columns=columns,
            ids=[self._ids[row] for row in rows],
            targets=[None if predicting else self._targets[row] for row in rows],
            numbers=[self.table.numbers[row] for row in rows],
            on_bad_file=self.on_bad_file,
            keep_bad_rows=predicting,
            faults=faults,
        )

    @cached_property
    def _ids(self) -> list[str]:
        names = [str(number) for number in self.table.numbers]
        return [cell or name for cell, name in zip(self.table.columns.get("id", names), names, strict=True)]

    @cached_property
    def _classes(self) -> list[str]:
        if self.given_classes is not None:
            return self.given_classes
        return infer_classes(self.table.columns.get(self.label, []))

    @cached_property
    def _targets(self) -> list[int | None]:
        index = {name: target for target, name in enumerate(self._classes)}
        return [index.get((cell or "").strip()) for cell in self.table.columns[self.label]]

    @cached_property
    def _table_splits(self) -> TableSplits:
        """The split of each row, whether or not it has an input."""
        known = {row: target for row, target in enumerate(self._targets) if target is not None}
        fractions: dict[Split, float] = {"val": self.val_fraction, "test": self.test_fraction}
        return TableSplits(self.table, known, self.label, self.split, fractions, self.seed, self._stored)

    @cached_property
    def _splits(self) -> dict[Split, list[int]]:
        """Rows of each split; those with a problem are in none."""
        found = self._table_splits.rows.items()
        return {split: [row for row in rows if row not in self._dropped] for split, rows in found}

    @cached_property
    def _dropped(self) -> set[int]:
        """Rows to leave out because they have none of the inputs."""
        if not self.drop_empty:
            return set()
        columns = [self.table.columns[column] for column in self.columns.values() if column in self.table.columns]
        return {row for row in range(len(self.table)) if all(cells[row] is None for cells in columns)}

    @cached_property
    def _paths(self) -> dict[str, list[str | None]]:
        """Name of the input -> its resolved paths, for those that are files."""
        files = {name: column for name, column in self.columns.items() if self.processors[name].kind != "text"}
        cells = {name: self.table.columns[column] for name, column in files.items() if column in self.table.columns}
        return {name: resolve(column, self.root) for name, column in cells.items()}

    def _sizes(self) -> str:
        return ", ".join(f"{len(rows)} {split}" for split, rows in self._splits.items())
