"""The splits of one table: as its column names them, as a checkpoint knows them, or drawn."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fusion_pl.data.keys import row_keys, table_hash
from fusion_pl.data.splits import Split, assign, to_draw
from fusion_pl.data.stored import StoredSplits
from fusion_pl.data.table import Problem, Table
from fusion_pl.files import atomic_write


@dataclass(frozen=True)
class TableSplits:
    """Which split each row of a table belongs to, and how that compares with the run that a checkpoint is from.

    Attributes:
        table: the manifest.
        targets: row -> its class, of the rows that have one.
        label: column of the class.
        column: of the split; where the table has none, all rows are drawn.
        fractions: of val and test, where they are drawn.
        seed: of the draw.
        stored: what the checkpoint knows, if there is one: drawn rows keep their split.
    """

    table: Table
    targets: Mapping[int, int]
    label: str
    column: str
    fractions: Mapping[Split, float]
    seed: int
    stored: StoredSplits | None = None

    @cached_property
    def keys(self) -> list[int]:
        """What each row is. Label and split do not count: a row whose label is corrected keeps its split."""
        return row_keys(self.table, without=(self.label, self.column))

    @cached_property
    def rows(self) -> dict[Split, list[int]]:
        """The rows of each split; those without a class or a split are in none."""
        kept = self.stored.kept(self.keys) if self.stored else None
        return assign(self.targets, self.keys, self._cells, self.fractions, self.seed, kept)

    @cached_property
    def to_store(self) -> StoredSplits:
        """What a checkpoint is to know of them."""
        return StoredSplits.of(self._hash, self.keys, self.rows).after(self.stored)

    @property
    def drawn(self) -> tuple[Split, ...]:
        """The splits that the table does not name."""
        return to_draw(self._cells)

    @cached_property
    def _hash(self) -> str:
        return table_hash(self.table)

    @property
    def _cells(self) -> Sequence[str | None] | None:
        return self.table.columns.get(self.column)

    def check(self, splits: Sequence[Split], ids: Sequence[str]) -> Iterator[Problem]:
        """Find splits that are measured on what the checkpoint was trained on.

        Args:
            splits: those that will be measured.
            ids: one for each row.
        """
        for split in splits if self.stored else ():
            learnt = self.stored.trained_on(self.keys, self.rows[split], split) if self.stored else []
            if learnt:
                yield Problem(
                    f"the checkpoint was trained on {len(learnt)} of the {len(self.rows[split])} {split} rows (first "
                    f"row {self.table.numbers[learnt[0]]}, {ids[learnt[0]]!r}), so that their score would say nothing: "
                    "give them the split they had, or leave them to fusion-pl predict",
                    column=self.column,
                )

    def notes(self, sizes: str, dropped: int = 0) -> Iterator[str]:
        """Say what a user cannot see in the table.

        Args:
            sizes: of the splits.
            dropped: how many rows were left out since they have no input.
        """
        if dropped:
            yield f"{self.table.path}: left out {dropped} of {len(self.table)} rows without any input"
        path, drawn = self.table.path, " and ".join(self.drawn)
        if self.stored and (difference := self.stored.difference(self._hash, self.keys)):
            yield f"{path} {difference}" + ("; the others keep their split" if drawn else "")
        how = f"by {'id' if 'id' in self.table.columns else 'content'} and seed {self.seed}"
        if self.stored:
            how = f"as in the training; new rows {how}"
        if self._cells is None:
            yield f"{path} has no column {self.column!r}: drew {sizes} ({how})"
        elif drawn:
            yield (
                f"{path} has no validation rows: {len(self.rows['val'])} were taken from train, none from test ({how}; "
                f"now {sizes})"
            )


def write_splits(path: str | Path, table: Table, ids: Sequence[str], splits: Mapping[Split, Sequence[int]]) -> None:
    """Write row number, id and split of the rows of some splits, in the order of the table.

    Args:
        path: of the file.
        table: the manifest.
        ids: one for each row.
        splits: split -> its rows.
    """
    rows = sorted((row, split) for split, some in splits.items() for row in some)
    with atomic_write(path) as file:
        writer = csv.writer(file)
        writer.writerow(["row", "id", "split"])
        writer.writerows((table.numbers[row], ids[row], split) for row, split in rows)
