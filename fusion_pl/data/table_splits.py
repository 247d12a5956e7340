"""The splits of a table, and how they differ from the splits that a checkpoint records."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fusion_pl.data.hashes import row_hashes, table_hash
from fusion_pl.data.split_record import SplitRecord
from fusion_pl.data.splits import Split, assign_splits, splits_to_draw
from fusion_pl.data.table import Problem, Table
from fusion_pl.files import atomic_write


@dataclass(frozen=True)
class TableSplits:
    """Assignment of the rows of a table to splits."""

    table: Table
    targets: Mapping[int, int]  # row -> class index, for the rows that have a class
    label: str  # column of the class
    column: str  # split column; if it does not exist, all splits are drawn
    fractions: Mapping[Split, float]  # fractions of val and test rows, if they are drawn
    seed: int
    dropped_rows: Collection[int] = ()  # rows without any input, which have a split but are not used
    checkpoint_record: SplitRecord | None = None  # splits in the checkpoint, which drawn splits must keep

    @cached_property
    def row_hashes(self) -> list[int]:
        """Hash of each row without label and split, so that a row with a corrected label keeps its split."""
        return row_hashes(self.table, ignored_columns=(self.label, self.column))

    @cached_property
    def rows(self) -> dict[Split, list[int]]:
        """Dictionary from split to its rows, without rows that have no class or an invalid split."""
        known = self.checkpoint_record.recorded_splits(self.row_hashes) if self.checkpoint_record else None
        return assign_splits(self.targets, self.row_hashes, self._split_cells, self.fractions, self.seed, known)

    @cached_property
    def used_rows(self) -> dict[Split, list[int]]:
        """Dictionary from split to its rows, without dropped rows."""
        return {split: [row for row in rows if row not in self.dropped_rows] for split, rows in self.rows.items()}

    @property
    def sizes_text(self) -> str:
        """Number of used rows per split, for messages."""
        return ", ".join(f"{len(rows)} {split}" for split, rows in self.used_rows.items())

    @cached_property
    def record(self) -> SplitRecord:
        """Split record to save in a checkpoint."""
        hashes = {split: frozenset(self.row_hashes[row] for row in rows) for split, rows in self.rows.items()}
        return SplitRecord(table_hash(self.table), hashes).merge_removed_rows(self.checkpoint_record)

    @property
    def _split_cells(self) -> Sequence[str | None] | None:
        return self.table.columns.get(self.column)

    def check_leakage(self, splits: Sequence[Split]) -> Iterator[Problem]:
        """Find evaluation splits that contain rows on which the checkpoint was trained (data leakage)."""
        if self.checkpoint_record is None:
            return
        for split in splits:
            if trained := self.checkpoint_record.trained_rows(self.row_hashes, self.rows[split], split):
                first = f"first row {self.table.row_numbers[trained[0]]}, {self.table.ids[trained[0]]!r}"
                yield Problem(
                    f"the checkpoint was trained on {len(trained)} of the {len(self.rows[split])} {split} rows "
                    f"({first}), so metrics of these rows would be meaningless: make them train rows again, or use "
                    "fusion-pl predict for them",
                    column=self.column,
                )

    def messages(self) -> Iterator[str]:
        """Yield messages about dropped rows, changes of the table and drawn splits."""
        path, drawn, previous = self.table.path, splits_to_draw(self._split_cells), self.checkpoint_record
        if self.dropped_rows:
            yield f"{path}: left out {len(self.dropped_rows)} of {len(self.table)} rows, which have no input"
        if previous and (change := previous.describe_table_change(self.record.table_hash, self.row_hashes)):
            yield f"{path} {change}" + ("; the other rows keep their split" if drawn else "")
        method = f"by {'id' if 'id' in self.table.columns else 'content'} and seed {self.seed}"
        if previous:
            method = f"as in the training; new rows {method}"
        if self._split_cells is None:
            yield f"{path} has no column {self.column!r}: drew {self.sizes_text} rows ({method})"
        elif drawn:
            yield (
                f"{path} has no validation rows: drew {len(self.rows['val'])} of the train rows ({method}; now "
                f"{self.sizes_text} rows)"
            )

    def write_csv(self, path: str | Path) -> None:
        """Write a CSV file with the row number, id and split of each used row, in the order of the table."""
        splits = sorted((row, split) for split, rows in self.used_rows.items() for row in rows)
        with atomic_write(path) as file:
            writer = csv.writer(file)
            writer.writerow(["row", "id", "split"])
            writer.writerows((self.table.row_numbers[row], self.table.ids[row], split) for row, split in splits)
