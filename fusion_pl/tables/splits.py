"""Assign rows to train, val and test, by the split column of the manifest or by a hash of each row.

The split of a row is its index in ``SPLITS``, or ``NO_SPLIT``, in an array with one element per row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fusion_pl.tables.hashes import stable_hashes
from fusion_pl.tables.table import Table

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
TRAIN, VAL, TEST = range(3)
NO_SPLIT = -1
DEFAULT_SPLIT = "split"  # name of the split column
ALIASES: dict[str, Split] = {"training": "train", "valid": "val", "validation": "val", "dev": "val"}
ALIASES |= {split: split for split in SPLITS}


def parse_split(cell: str | None) -> Split | None:
    """Return the split that a cell of the split column selects; None if the cell is not the name of a split.

    Example:
        >>> parse_split(" Validation ")
        'val'
    """
    return ALIASES.get((cell or "").strip().lower())


def column_splits(table: Table, column: str | None) -> NDArray[np.int8] | None:
    """Return the split of each row in the split column; None if there is no such column."""
    if column is None or column not in table.columns:
        return None
    codes, cells = table.factorize(column)
    splits = [parse_split(cell) for cell in cells]
    return np.array([NO_SPLIT if split is None else SPLITS.index(split) for split in [*splits, None]], np.int8)[codes]


def splits_to_draw(column: NDArray[np.int8] | None) -> tuple[Split, ...]:
    """Return the splits to draw at random.

    Without a split column (``column`` is None), they are val and test; if the split column has no val row, val.
    """
    if column is None:
        return ("val", "test")
    return () if (column == VAL).any() else ("val",)


def assign_splits(
    targets: NDArray[np.int64],
    row_hashes: NDArray[np.int64] | None,
    column: NDArray[np.int8] | None,
    fractions: Mapping[Split, float],
    seed: int,
    known_splits: NDArray[np.int8] | None = None,
) -> NDArray[np.int8]:
    """Assign every row to a split: to that of its cell in the split column, if there is one, or to a drawn split.

    Args:
        targets: class index of each row; a row with a negative index gets no split.
        row_hashes: one hash per row, from ``fusion_pl.tables.hashes.row_hashes``; None if no split must be drawn.
        column: split of each row in the manifest; None if there is no such column.
        fractions: expected fractions of the drawn splits val and test: of all rows, or of the train rows of ``column``.
        seed: random seed of the draw.
        known_splits: split of each row in an earlier run, train or a drawn one; the split column has precedence.

    Returns:
        Split of each row.
    """
    splits = np.full(len(targets), TRAIN, np.int8) if column is None else column.copy()
    splits[targets < 0] = NO_SPLIT
    drawn = {split: fractions[split] for split in splits_to_draw(column)}
    if drawn:
        assert row_hashes is not None
        rows = np.flatnonzero(splits == TRAIN)
        fixed = None if known_splits is None else known_splits[rows]
        splits[rows] = draw_splits(targets[rows], row_hashes[rows], drawn, seed, fixed)
    return splits


def draw_splits(
    targets: NDArray[np.int64],
    row_hashes: NDArray[np.int64],
    fractions: Mapping[Split, float],
    seed: int,
    fixed_splits: NDArray[np.int8] | None = None,
) -> NDArray[np.int8]:
    """Draw the split of each row by a pseudorandom number ``u`` that depends only on the seed and the row hash.

    ``u`` is in [0, 1): the split is test if ``u < test``, val if ``u >= 1 - val``, else train, where ``test`` and
    ``val`` are the fractions. Of ``n`` rows, a split with fraction ``p`` has ``n p`` in expectation, with a standard
    deviation of ``sqrt(n p (1 - p))``, also within each class. If there are enough rows, rows with the same hash share
    a split, every class has a training row, and no split with a positive fraction is empty; to achieve this, the rows
    whose ``u`` is nearest to a threshold change their split.

    ``fractions`` has the fractions of val and test, each in [0, 1) with a sum below 1. ``fixed_splits`` has the splits
    of the rows that are not drawn, and ``NO_SPLIT`` for the others. For the other arguments see ``assign_splits``.

    Returns:
        Split of each row.

    Example:
        >>> draw_splits(np.array([0, 0, 1]), np.array([11, 12, 13]), {"val": 0.5}, seed=0).tolist()
        [0, 1, 0]
    """
    splits = np.full(len(targets), NO_SPLIT, np.int8) if fixed_splits is None else fixed_splits.copy()
    rows = np.flatnonzero(splits == NO_SPLIT)
    groups = Groups(rows, row_hashes[rows])
    u = stable_hashes(f"split {seed} {row_hash}" for row_hash in groups.hashes.tolist()) / 2.0**63
    low, high = fractions.get("test", 0.0), 1 - fractions.get("val", 0.0)
    drawn = np.select([u < low, u >= high], [np.int8(TEST), np.int8(VAL)], np.int8(TRAIN))
    splits[rows] = drawn[groups.indices]
    _add_missing_classes(splits, targets, groups, np.maximum(low - u, u - high))
    ascending = np.argsort(u, kind="stable")
    for split, nearest in ((TEST, ascending), (VAL, ascending[::-1])):
        if fractions.get(SPLITS[split]) and not (splits == split).any():
            _fill_split(splits, targets, groups, nearest, split)
    return splits


class Groups:
    """Groups of rows with the same hash, which share a split.

    Attributes:
        rows: rows in all groups.
        indices: group of each of these rows.
        hashes: hash of each group.
    """

    def __init__(self, rows: NDArray[np.int64], row_hashes: NDArray[np.int64]) -> None:
        self.rows = rows
        self.hashes, self.indices, sizes = np.unique(row_hashes, return_inverse=True, return_counts=True)
        self._sorted_rows = rows[np.argsort(self.indices, kind="stable")]
        self._ends = np.cumsum(sizes)
        self._starts = self._ends - sizes

    def members(self, group: int) -> NDArray[np.int64]:
        """Return the rows of a group."""
        return self._sorted_rows[self._starts[group] : self._ends[group]]


def _add_missing_classes(
    splits: NDArray[np.int8], targets: NDArray[np.int64], groups: Groups, distances: NDArray[np.float64]
) -> None:
    """Move the nearest groups of each class without a training row to train, in place."""
    train_classes = set(np.unique(targets[splits == TRAIN]).tolist())
    missing = set(np.unique(targets[groups.rows]).tolist()) - train_classes
    candidates = np.unique(groups.indices[np.isin(targets[groups.rows], list(missing))])
    for group in candidates[np.argsort(distances[candidates], kind="stable")].tolist():
        rows = groups.members(group)
        classes = set(targets[rows].tolist())
        if not classes <= train_classes:
            splits[rows] = TRAIN
            train_classes |= classes
        if missing <= train_classes:
            return


def _fill_split(
    splits: NDArray[np.int8], targets: NDArray[np.int64], groups: Groups, nearest: NDArray[np.int64], split: int
) -> None:
    """Move the first group without which no split and no training class is empty to an empty split, in place."""
    parts = np.where(splits == TRAIN, targets, NO_SPLIT - splits)  # a negative number for each split but train
    totals = Counter(dict(zip(*(values.tolist() for values in np.unique(parts, return_counts=True)), strict=True)))
    for group in nearest.tolist():
        rows = groups.members(group)
        if all(totals[part] > count for part, count in Counter(parts[rows].tolist()).items()):
            splits[rows] = split
            return
