"""The rows of a table on which a model is evaluated: those of a split that have a label."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fusion_pl.data.manifest import ManifestData
from fusion_pl.tables.checks import check_text_column
from fusion_pl.tables.labels import check_label_columns
from fusion_pl.tables.split_record import SplitRecord
from fusion_pl.tables.splits import DEFAULT_SPLIT, NO_SPLIT, SPLITS, TRAIN, column_splits, splits_to_draw
from fusion_pl.tables.table import raise_problems
from fusion_pl.types import UserError

EvaluatedSplit = Literal["train", "val", "test", "all"]


@dataclass(frozen=True)
class LabelledRows:
    """Rows with a label that the model knows.

    Attributes:
        rows: rows of the table.
        total: number of rows of the split, with or without a label.
        warnings: sentences about the rows that are left out or that the model was trained on.
    """

    rows: NDArray[np.int64]
    total: int
    warnings: list[str]


def select_rows(data: ManifestData, split: EvaluatedSplit, record: SplitRecord | None) -> LabelledRows:
    """Return the rows of a split that have a known label.

    Args:
        data: the table, with the classes and the label columns of the model.
        split: name of the split, or ``all``.
        record: splits in the checkpoint, for tables without a split column.

    Raises:
        UserError: if a column does not exist, or no row is left.
    """
    table = data.table
    problems = list(check_label_columns(table, data.label_columns, data.task))
    if data.split is not None and data.split != DEFAULT_SPLIT:
        problems += check_text_column(table, data.split, "the split")
    raise_problems(data.manifest, problems)
    splits = row_splits(data, record)
    in_split = np.full(len(table), True) if split == "all" else splits == SPLITS.index(split)
    if not in_split.any():
        raise UserError(_no_rows_message(data, split, splits))
    known = data.task.is_known(data.targets)
    rows = np.flatnonzero(in_split & known)
    if not rows.size:
        columns = ", ".join(map(repr, data.label_columns))
        raise UserError(
            f"{data.manifest}: none of the {in_split.sum()} rows of the split {split} has a label of the model in the "
            f"column {columns}: give another column with --data.label"
        )
    warnings = [*_unlabelled_warnings(data, in_split & ~known), *training_warnings(data, rows, record, split)]
    return LabelledRows(rows, int(in_split.sum()), warnings)


def row_splits(data: ManifestData, record: SplitRecord | None) -> NDArray[np.int8]:
    """Return the split of each row by its column, or, if the splits were drawn, by the record of the training."""
    column = column_splits(data.table, data.split)
    splits = np.full(len(data.table), NO_SPLIT, np.int8) if column is None else column.copy()
    if record is not None and splits_to_draw(column):
        recorded = record.recorded_splits(data.row_hashes)
        drawn = np.full(len(splits), True) if column is None else column == TRAIN
        splits[drawn & (recorded != NO_SPLIT)] = recorded[drawn & (recorded != NO_SPLIT)]
    return splits


def _no_rows_message(data: ManifestData, split: str, splits: NDArray[np.int8]) -> str:
    counts = ", ".join(f"{(splits == index).sum()} {name}" for index, name in enumerate(SPLITS))
    if data.split is not None and data.split in data.table.columns:
        return f"{data.manifest} has no {split} row ({counts}): give another --split, or --split all"
    column = DEFAULT_SPLIT if data.split is None else data.split
    return (
        f"{data.manifest} has no column {column!r} and no row that the checkpoint records as {split}: give --split all "
        "to evaluate all rows, or the column of the splits with --data.split"
    )


def _unlabelled_warnings(data: ManifestData, left_out: NDArray[np.bool_]) -> Iterator[str]:
    """Yield how many rows have no label, and how many have one that the model does not know."""
    invalid = np.zeros(len(data.table), bool)
    for column, is_invalid in zip(data.labels, data.task.find_invalid(data.labels, data.classes), strict=True):
        filled = np.array([*(bool(str(cell).strip()) for cell in column.cells), False])[column.codes]
        invalid |= is_invalid & filled
        rows = np.flatnonzero(left_out & is_invalid & filled)
        if rows.size:
            reason = data.task.explain_invalid(
                column.cells[column.codes[rows[0]]], data.classes, len(data.label_columns) > 1
            )
            number = data.table.row_numbers[rows[0]]
            yield f"{_count(rows.size)} left out, whose label the model does not know; first, row {number}: {reason}"
    if empty := int((left_out & ~invalid).sum()):
        yield f"{_count(empty)} left out, without a label"


def training_warnings(
    data: ManifestData, rows: NDArray[np.int64], record: SplitRecord | None, split: str
) -> Iterator[str]:
    """Yield how many rows are training rows, or validation rows in another split, of a checkpoint's record."""
    if record is None:
        return
    trained = int(np.isin(data.row_hashes[rows], record.hashes["train"]).sum())
    if trained:
        yield (f"the model was trained on {trained:,} of these {len(rows):,} rows, which say nothing about new rows")
    chosen = int(np.isin(data.row_hashes[rows], record.hashes["val"]).sum())
    if chosen and split != "val":
        yield f"{chosen:,} of these {len(rows):,} rows are validation rows, which chose the checkpoint"


def _count(number: int) -> str:
    return "1 row is" if number == 1 else f"{number:,} rows are"
