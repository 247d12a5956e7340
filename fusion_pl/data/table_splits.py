"""The splits of one table, and how they compare with those of a checkpoint."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fusion_pl.data.keys import row_keys, table_hash
from fusion_pl.data.split_record import SplitRecord
from fusion_pl.data.splits import Split, assign_splits, undefined_splits
from fusion_pl.data.table import Problem, Table
from fusion_pl.files import atomic_write


@dataclass(frozen=True)
class TableSplits:
    """The split of each row of a table."""

    table: Table
    targets: Mapping[int, int]  # row -> class index, for the rows that have a class
    label: str  # column of the class
    column: str  # column of the split; without it all splits are drawn
    fractions: Mapping[Split, float]  # of val and test, if they are drawn
    seed: int
    dropped: Collection[int] = ()  # rows without an input, which have a split but are not used
    recorded: SplitRecord | None = None  # the splits of a checkpoint; drawn rows keep them

    @cached_property
    def keys(self) -> list[int]:
        """Key of each row; label and split do not count, so that a row with a corrected label keeps its split."""
        return row_keys(self.table, ignored=(self.label, self.column))

    @cached_property
    def rows(self) -> dict[Split, list[int]]:
        """Split -> its rows; rows without a class or a split are in none."""
        known = self.recorded.known_splits(self.keys) if self.recorded else None
        return assign_splits(self.targets, self.keys, self._cells, self.fractions, self.seed, known)

    @cached_property
    def used(self) -> dict[Split, list[int]]:
        """Split -> its rows without those that are dropped."""
        return {split: [row for row in rows if row not in self.dropped] for split, rows in self.rows.items()}

    @property
    def sizes(self) -> str:
        """Number of used rows per split, for messages."""
        return ", ".join(f"{len(rows)} {split}" for split, rows in self.used.items())

    @cached_property
    def record(self) -> SplitRecord:
        """The splits for a checkpoint."""
        keys = {split: frozenset(self.keys[row] for row in rows) for split, rows in self.rows.items()}
        return SplitRecord(table_hash(self.table), keys).with_removed_rows(self.recorded)

    @property
    def _cells(self) -> Sequence[str | None] | None:
        return self.table.columns.get(self.column)

    def check(self, splits: Sequence[Split]) -> Iterator[Problem]:
        """Find splits to evaluate with rows that the checkpoint was trained on."""
        if self.recorded is None:
            return
        for split in splits:
            if trained := self.recorded.trained_rows(self.keys, self.rows[split], split):
                first = f"first row {self.table.row_numbers[trained[0]]}, {self.table.ids[trained[0]]!r}"
                yield Problem(
                    f"the checkpoint was trained on {len(trained)} of the {len(self.rows[split])} {split} rows "
                    f"({first}), so their score would be meaningless: give them the split they had, or use fusion-pl "
                    "predict for them",
                    column=self.column,
                )

    def notes(self) -> Iterator[str]:
        """Describe what the table itself does not show."""
        path, drawn = self.table.path, undefined_splits(self._cells)
        if self.dropped:
            yield f"{path}: left out {len(self.dropped)} of {len(self.table)} rows without any input"
        if self.recorded and (difference := self.recorded.table_difference(self.record.table_hash, self.keys)):
            yield f"{path} {difference}" + ("; the others keep their split" if drawn else "")
        method = f"by {'id' if 'id' in self.table.columns else 'content'} and seed {self.seed}"
        if self.recorded:
            method = f"as in the training; new rows {method}"
        if self._cells is None:
            yield f"{path} has no column {self.column!r}: drew {self.sizes} ({method})"
        elif drawn:
            yield (
                f"{path} has no validation rows: {len(self.rows['val'])} were taken from train, none from test "
                f"({method}; now {self.sizes})"
            )

    def write(self, path: str | Path) -> None:
        """Write a CSV file with row number, id and split of each used row, in the order of the table."""
        splits = sorted((row, split) for split, rows in self.used.items() for row in rows)
        with atomic_write(path) as file:
            writer = csv.writer(file)
            writer.writerow(["row", "id", "split"])
            writer.writerows((self.table.row_numbers[row], self.table.ids[row], split) for row, split in splits)
