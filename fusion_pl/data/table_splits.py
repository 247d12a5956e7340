"""The splits of a table, and how they differ from the splits that a checkpoint records."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusion_pl.data.hashes import row_hashes, table_hash
from fusion_pl.data.split_record import SplitRecord
from fusion_pl.data.splits import NO_SPLIT, SPLITS, Split, assign_splits, parse_split, splits_to_draw
from fusion_pl.data.table import Problem, Table
from fusion_pl.files import atomic_write


def column_splits(table: Table, column: str) -> NDArray[np.int8] | None:
    """Return the split of each row in the split column; None if there is no such column."""
    if column not in table.columns:
        return None
    codes, cells = table.factorize(column)
    splits = [parse_split(cell) for cell in cells]
    return np.array([NO_SPLIT if split is None else SPLITS.index(split) for split in [*splits, None]], np.int8)[codes]


@dataclass(frozen=True)
class TableSplits:
    """Assignment of the rows of a table to splits."""

    table: Table
    targets: NDArray[np.int64]  # class index of each row, -1 if it has no class
    label: str  # column of the class
    column: str  # split column; if it does not exist, all splits are drawn
    fractions: Mapping[Split, float]  # fractions of val and test rows, if they are drawn
    seed: int
    dropped: NDArray[np.bool_]  # whether a row has no input; such rows have a split but are not used
    checkpoint_record: SplitRecord | None = None  # splits in the checkpoint, which drawn splits must keep

    @cached_property
    def row_hashes(self) -> NDArray[np.int64]:
        """Hash of each row without label and split, so that a row with a corrected label keeps its split."""
        return row_hashes(self.table, ignored_columns=(self.label, self.column))

    @cached_property
    def drawn(self) -> tuple[Split, ...]:
        """Splits that are drawn."""
        return splits_to_draw(self._column_splits)

    @cached_property
    def rows(self) -> dict[Split, NDArray[np.int64]]:
        """Dictionary from split to its rows, without rows that have no class or an invalid split."""
        record = self.checkpoint_record
        known = record.recorded_splits(self.row_hashes) if record and self.drawn else None
        hashes = self.row_hashes if self.drawn else None
        splits = assign_splits(self.targets, hashes, self._column_splits, self.fractions, self.seed, known)
        return {split: np.flatnonzero(splits == index) for index, split in enumerate(SPLITS)}

    @cached_property
    def used_rows(self) -> dict[Split, NDArray[np.int64]]:
        """Dictionary from split to its rows, without dropped rows."""
        return {split: rows[~self.dropped[rows]] for split, rows in self.rows.items()}

    @property
    def row_splits(self) -> NDArray[np.int8]:
        """Split of each used row, as its index in ``SPLITS``; ``NO_SPLIT`` for the other rows."""
        splits = np.full(len(self.table), NO_SPLIT, np.int8)
        for index, split in enumerate(SPLITS):
            splits[self.used_rows[split]] = index
        return splits

    @property
    def sizes_text(self) -> str:
        """Number of used rows per split, for messages."""
        return ", ".join(f"{len(rows)} {split}" for split, rows in self.used_rows.items())

    @cached_property
    def record(self) -> SplitRecord:
        """Split record to save in a checkpoint."""
        hashes = {split: np.unique(self.row_hashes[rows]) for split, rows in self.rows.items()}
        return SplitRecord(table_hash(self.table), hashes).merge_removed_rows(self.checkpoint_record)

    @cached_property
    def _column_splits(self) -> NDArray[np.int8] | None:
        return column_splits(self.table, self.column)

    def check_leakage(self, splits: Sequence[Split]) -> Iterator[Problem]:
        """Find evaluation splits that contain rows on which the checkpoint was trained (data leakage)."""
        if self.checkpoint_record is None:
            return
        for split in splits:
            trained = self.checkpoint_record.trained_rows(self.row_hashes, self.rows[split], split)
            if trained.size:
                first = f"first row {self.table.row_numbers[trained[0]]}, {self.table.sample_id(int(trained[0]))!r}"
                yield Problem(
                    f"the checkpoint was trained on {len(trained)} of the {len(self.rows[split])} {split} rows "
                    f"({first}), so metrics of these rows would be meaningless: make them train rows again, or use "
                    "fusion-pl predict for them",
                    column=self.column,
                )

    def messages(self) -> Iterator[str]:
        """Yield messages about dropped rows, changes of the table and drawn splits."""
        path, drawn, previous = self.table.path, self.drawn, self.checkpoint_record
        if self.dropped.any():
            yield f"{path}: left out {self.dropped.sum()} of {len(self.table)} rows, which have no input"
        if previous and (change := previous.describe_table_change(self.record.table_hash, self.row_hashes)):
            yield f"{path} {change}" + ("; the other rows keep their split" if drawn else "")
        method = f"by {'id' if 'id' in self.table.columns else 'content'} and seed {self.seed}"
        if previous:
            method = f"as in the training; new rows {method}"
        if self._column_splits is None:
            yield f"{path} has no column {self.column!r}: drew {self.sizes_text} rows ({method})"
        elif drawn:
            yield (
                f"{path} has no validation rows: drew {len(self.rows['val'])} of the train rows ({method}; now "
                f"{self.sizes_text} rows)"
            )

    def write_csv(self, path: str | Path) -> None:
        """Write a CSV file with the row number, id and split of each used row, in the order of the table."""
        splits = self.row_splits
        with atomic_write(path) as file:
            writer = csv.writer(file)
            writer.writerow(["row", "id", "split"])
            for row in np.flatnonzero(splits != NO_SPLIT).tolist():
                writer.writerow((self.table.row_numbers[row], self.table.sample_id(row), SPLITS[splits[row]]))
