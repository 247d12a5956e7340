"""The splits of a table, and how they differ from the splits that a checkpoint records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fusion_pl.tables.checks import check_text_column
from fusion_pl.tables.folds import Fold, draw_folds
from fusion_pl.tables.hashes import row_hashes, stable_hashes, table_hash
from fusion_pl.tables.split_file import FileSplits, read_split_file
from fusion_pl.tables.split_record import SplitRecord
from fusion_pl.tables.split_times import check_time_order, check_times, read_times, split_by_time
from fusion_pl.tables.splits import NO_SPLIT, SPLITS, TRAIN, VAL, Split, assign_splits, column_splits, splits_to_draw
from fusion_pl.tables.table import MAX_SHOWN, Problem, Table


@dataclass(frozen=True)
class SplitOptions:
    """How rows are assigned to splits."""

    column: str | None  # split column; if it does not exist, all splits are drawn
    fractions: Mapping[Split, float]  # fractions of val and test rows, if they are drawn
    seed: int
    group: str | None = None  # column whose values are not in two splits
    time: str | None = None  # column of numbers or dates, by which rows are assigned to splits
    fold: Fold | None = None
    file: str | None = None  # path of a file with the splits of some rows


@dataclass(frozen=True)
class TableSplits:
    """Assignment of the rows of a table to splits."""

    table: Table
    strata: NDArray[np.int64]  # index of each row, such as its class; -1 if the row is not used
    labels: Sequence[str]  # columns of the labels
    options: SplitOptions
    dropped: NDArray[np.bool_]  # whether a row has no input; such rows have a split but are not used
    checkpoint_record: SplitRecord | None = None  # splits in the checkpoint, which drawn splits must keep

    @cached_property
    def row_hashes(self) -> NDArray[np.int64]:
        """Hash of each row without label and split, so that a row with a corrected label keeps its split."""
        ignored = [*self.labels, self.options.column]
        return row_hashes(self.table, ignored_columns=[column for column in ignored if column is not None])

    @cached_property
    def table_hash(self) -> str:
        """Hash of all cells, see ``fusion_pl.tables.hashes.table_hash``."""
        return table_hash(self.table)

    @cached_property
    def drawn(self) -> tuple[Split, ...]:
        """Splits that the split column does not contain, and that are therefore drawn or assigned by the options."""
        return splits_to_draw(self._column_splits)

    @cached_property
    def rows(self) -> dict[Split, NDArray[np.int64]]:
        """Dictionary from split to its rows, without rows that have no class or an invalid split."""
        splits = self._assign_rows()
        return {split: np.flatnonzero(splits == index) for index, split in enumerate(SPLITS)}

    def _assign_rows(self) -> NDArray[np.int8]:
        """Return the split of each row."""
        column, options = self._column_splits, self.options
        is_used = self.strata >= 0
        if options.fold is not None:
            splits = np.full(len(self.table), NO_SPLIT, np.int8)
            strata, keys = self.strata[is_used], self._draw_keys[is_used]
            splits[is_used] = options.fold.splits(draw_folds(strata, keys, options.fold.total, options.seed))
            return splits
        if options.time is None or not self.drawn:
            row_keys = self._draw_keys if self.drawn else None
            return assign_splits(self.strata, row_keys, column, options.fractions, options.seed, self._known_splits)
        splits = np.full(len(self.table), TRAIN, np.int8) if column is None else column.copy()
        splits[~is_used] = NO_SPLIT
        rows = np.flatnonzero(splits == TRAIN)
        known = None if self._known_splits is None else self._known_splits[rows]
        fractions = {split: options.fractions[split] for split in self.drawn}
        splits[rows] = split_by_time(self._times[rows], fractions, known)
        return splits

    @cached_property
    def _known_splits(self) -> NDArray[np.int8] | None:
        """Split of each row in the file of splits, or else in the checkpoint; rows of a group share a known split."""
        if not self.drawn:
            return None
        record, known = self.checkpoint_record, np.full(len(self.table), NO_SPLIT, np.int8)
        if record is not None:
            known = record.recorded_splits(self.row_hashes)
        if self._file_splits is not None:
            known = np.where(self._file_splits.splits == NO_SPLIT, known, self._file_splits.splits)
        if self._column_splits is not None:  # a train row of the column is train or a drawn split
            known[~np.isin(known, [SPLITS.index(split) for split in ("train", *self.drawn)])] = NO_SPLIT
        if self.options.group is not None:
            for split in range(len(SPLITS)):
                in_group = np.isin(self._draw_keys, self._draw_keys[known == split])
                known[in_group & (known == NO_SPLIT)] = split
        return known if (known != NO_SPLIT).any() else None

    @cached_property
    def _file_splits(self) -> FileSplits | None:
        path = self.options.file
        return None if path is None else read_split_file(path, self.table, self.row_hashes)

    @cached_property
    def _draw_keys(self) -> NDArray[np.int64]:
        """Hash of each row's group; of the row itself if it has no group."""
        if self.options.group is None:
            return self.row_hashes
        codes, groups = self._groups
        hashes = np.append(stable_hashes(f"group {group}" for group in groups), 0)
        return np.where(codes < 0, self.row_hashes, hashes[codes])

    @cached_property
    def _groups(self) -> tuple[NDArray[np.int64], list[str]]:
        """Index of each row's group in a list of groups, -1 if it has none, and the list."""
        assert self.options.group is not None
        codes, groups = self.table.factorize(self.options.group)
        return np.where(np.array([*map(bool, groups), False])[codes], codes, -1), groups

    @cached_property
    def _times(self) -> NDArray[np.float64]:
        assert self.options.time is not None
        return read_times(self.table, self.options.time)

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

    @property
    def shortage_text(self) -> str:
        """Why a split may be empty, for messages; empty if there is no particular reason."""
        column = self.options.group or self.options.time
        return "" if column is None else f", because rows with the same {column!r} are in one split"

    @cached_property
    def record(self) -> SplitRecord:
        """Split record to save in a checkpoint."""
        hashes = {split: np.unique(self.row_hashes[rows]) for split, rows in self.rows.items()}
        return SplitRecord(self.table_hash, hashes).merge_removed_rows(self.checkpoint_record)

    @cached_property
    def _column_splits(self) -> NDArray[np.int8] | None:
        return column_splits(self.table, self.options.column)

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
                    column=self.options.column,
                )

    def check_options(self) -> Iterator[Problem]:
        """Find options that do not fit the table; if there are any, the rows cannot be assigned to splits."""
        options = self.options
        for name, value in (("fold", options.fold), ("splits", options.file)):
            if value is not None and self._column_splits is not None:
                yield Problem(
                    f"the column has the splits, so data.{name} cannot assign rows: leave out data.{name}, or ignore "
                    "the column with --data.split null",
                    column=options.column,
                )
        if options.group is not None:
            yield from check_text_column(self.table, options.group, "the group")
        if options.time is not None:
            problems = list(check_text_column(self.table, options.time, "the time"))
            yield from problems or check_times(self.table, options.time)

    def check_promises(self) -> Iterator[Problem]:
        """Find groups in several splits, a checkpoint of another fold, and splits that are not in the order of time.

        A split column, a file of splits or a checkpoint may cause them.
        """
        if self.options.group is not None:
            yield from self._check_groups(self.options.group)
        if self.options.fold is not None and self.checkpoint_record is not None:
            recorded = self.checkpoint_record.recorded_splits(self.row_hashes)
            if count := int((recorded[self.rows["test"]] == VAL).sum()):
                yield Problem(
                    f"{count} of the test rows of {self.options.fold} are validation rows of the checkpoint: use the "
                    "data.fold of its training"
                )
        if self.options.time is not None:
            yield from check_time_order(self.table, self.options.time, self._times, self.rows)

    def _check_groups(self, column: str) -> Iterator[Problem]:
        rows = np.concatenate([self.rows[split] for split in SPLITS])
        splits = np.repeat(np.arange(len(SPLITS)), [len(self.rows[split]) for split in SPLITS])
        pairs, first = np.unique(np.stack([self._groups[0][rows], splits]), axis=1, return_index=True)
        crossing = np.flatnonzero((pairs[0, 1:] == pairs[0, :-1]) & (pairs[0, 1:] >= 0))
        for at in crossing[:MAX_SHOWN].tolist():
            row, other_row = rows[first[at : at + 2]].tolist()
            split, other_split = (SPLITS[index] for index in pairs[1, at : at + 2])
            yield Problem(
                f"the group {self.table.cell(column, row)!r} is in two splits: this row is {split}, and row "
                f"{self.table.row_numbers[other_row]} is {other_split}: correct the splits, or leave out data.group",
                int(self.table.row_numbers[row]),
                column,
            )

    def messages(self) -> Iterator[str]:
        """Yield messages about dropped rows, changes of the table and drawn splits."""
        path, drawn, previous = self.table.path, self.drawn, self.checkpoint_record
        if self.dropped.any():
            yield f"{path}: left out {self.dropped.sum()} of {len(self.table)} rows, which have no input"
        if unused := int((self.strata < 0).sum()):
            yield f"{path}: left out {unused} of {len(self.table)} rows, whose labels are all unknown"
        if previous and (change := previous.describe_table_change(self.table_hash, self.row_hashes)):
            yield f"{path} {change}" + ("; the other rows keep their split" if drawn else "")
        if not drawn:
            return
        if self._column_splits is not None:
            yield (
                f"{path} has no validation rows: drew {len(self.rows['val'])} of the train rows ({self._method}; now "
                f"{self.sizes_text} rows)"
            )
            return
        column = self.options.column
        missing_column = "" if column is None or column in self.table.columns else f" has no column {column!r}"
        yield f"{path}{missing_column}: drew {self.sizes_text} rows ({self._method})"

    @property
    def _method(self) -> str:
        """How rows are assigned to splits, for messages."""
        options = self.options
        key = "id" if "id" in self.table.columns else "content"
        method = f"by {key if options.group is None else f'group {options.group!r}'} and seed {options.seed}"
        if options.fold is not None:
            return f"{options.fold}, {method}"
        if options.time is not None:
            method = f"by time {options.time!r}"
        if self.checkpoint_record is not None:
            method = f"as in the training; new rows {method}"
        if self._file_splits is not None:
            file, unlisted = self._file_splits, int((self._file_splits.splits == NO_SPLIT).sum())
            unknown = f"; {file.num_unknown} of its rows are not in the table" if file.num_unknown else ""
            others = f"; {unlisted} other rows {method}" if unlisted else ""
            method = f"as in {options.file}{others}{unknown}"
        return method
