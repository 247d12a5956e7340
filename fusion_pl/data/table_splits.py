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
    """The split of each row of a table.

    Attributes:
        table: the manifest.
        targets: row -> class index, for the rows that have a class.
        label: column of the class.
        column: column of the split; without it all splits are drawn.
        fractions: of val and test, if they are drawn.
        seed: of the draw.
        recorded: the splits of a checkpoint; drawn rows keep them.
    """

    table: Table
    targets: Mapping[int, int]
    label: str
    column: str
    fractions: Mapping[Split, float]
    seed: int
    recorded: SplitRecord | None = None

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
    def record(self) -> SplitRecord:
        """The splits for a checkpoint."""
        keys = {split: frozenset(self.keys[row] for row in rows) for split, rows in self.rows.items()}
        return SplitRecord(self._hash, keys).with_removed_rows(self.recorded)

    @property
    def drawn(self) -> tuple[Split, ...]:
        """The splits that the table does not define."""
        return undefined_splits(self._cells)

    @cached_property
    def _hash(self) -> str:
        return table_hash(self.table)

    @property
    def _cells(self) -> Sequence[str | None] | None:
        return self.table.columns.get(self.column)

    def check(self, splits: Sequence[Split], ids: Sequence[str]) -> Iterator[Problem]:
        """Find splits with rows that the checkpoint was trained on.

        Args:
            splits: those to evaluate.
            ids: one per row.
        """
        if self.recorded is None:
            return
        for split in splits:
            if trained := self.recorded.trained_rows(self.keys, self.rows[split], split):
                yield Problem(
                    f"the checkpoint was trained on {len(trained)} of the {len(self.rows[split])} {split} rows (first "
                    f"row {self.table.row_numbers[trained[0]]}, {ids[trained[0]]!r}), so their score would be "
                    "meaningless: give them the split they had, or use fusion-pl predict for them",
                    column=self.column,
                )

    def notes(self, sizes: str, num_dropped: int = 0) -> Iterator[str]:
        """Describe what the table itself does not show.

        Args:
            sizes: of the splits.
            num_dropped: number of rows that were left out because they have no input.
        """
        path, drawn = self.table.path, " and ".join(self.drawn)
        if num_dropped:
            yield f"{path}: left out {num_dropped} of {len(self.table)} rows without any input"
        if self.recorded and (difference := self.recorded.table_difference(self._hash, self.keys)):
            yield f"{path} {difference}" + ("; the others keep their split" if drawn else "")
        method = f"by {'id' if 'id' in self.table.columns else 'content'} and seed {self.seed}"
        if self.recorded:
            method = f"as in the training; new rows {method}"
        if self._cells is None:
            yield f"{path} has no column {self.column!r}: drew {sizes} ({method})"
        elif drawn:
            yield (
                f"{path} has no validation rows: {len(self.rows['val'])} were taken from train, none from test "
                f"({method}; now {sizes})"
            )

    def write(self, path: str | Path, ids: Sequence[str], dropped: Collection[int] = ()) -> None:
        """Write row number, id and split of each row with a split, in the order of the table.

        Args:
            path: of the CSV file.
            ids: one per row.
            dropped: rows to leave out.
        """
        splits = sorted((row, split) for split, rows in self.rows.items() for row in rows if row not in dropped)
        with atomic_write(path) as file:
            writer = csv.writer(file)
            writer.writerow(["row", "id", "split"])
            writer.writerows((self.table.row_numbers[row], ids[row], split) for row, split in splits)
