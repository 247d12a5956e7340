"""Folds of a cross-validation: each row is a test row in one of K folds, whichever fold is asked for."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusion_pl.tables.hashes import stable_hashes
from fusion_pl.tables.splits import TEST, TRAIN, VAL, Groups
from fusion_pl.types import UserError

MIN_FOLDS = 3  # test, val and at least one fold of train


class Fold(NamedTuple):
    """Fold ``number``, from 1, of ``total`` folds."""

    number: int
    total: int

    def __str__(self) -> str:
        return f"fold {self.number} of {self.total}"

    def splits(self, folds: NDArray[np.int64]) -> NDArray[np.int8]:
        """Return the split of each row from its fold: this fold is test, the next one val, and the others train."""
        distances = (folds - (self.number - 1)) % self.total
        return np.select([distances == 0, distances == 1], [np.int8(TEST), np.int8(VAL)], np.int8(TRAIN))


def parse_fold(text: str) -> Fold:
    """Return the fold that a text such as ``2/5`` describes.

    Raises:
        UserError: if the text has another form, or there is no such fold.

    Example:
        >>> parse_fold("2/5")
        Fold(number=2, total=5)
    """
    match = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text)
    fold = Fold(*map(int, match.groups())) if match else Fold(0, 0)
    if fold.total < MIN_FOLDS or not 1 <= fold.number <= fold.total:
        raise UserError(
            f"data.fold is {text!r}, expected a fold such as 2/5: a number from 1 to the number of folds, which is at "
            f"least {MIN_FOLDS} (test, val and train)"
        )
    return fold


def draw_folds(targets: NDArray[np.int64], keys: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Draw the fold of each row by a pseudorandom number ``u`` that depends only on the seed and the row's key.

    The fold is ``floor(count u)``: rows with the same key, such as those of a group, are in the same fold, and a row
    keeps its fold when other rows change. The sizes of the folds are equal in expectation, also within each class.
    If there are enough keys, every class is in at least three folds, so that it has a training row whichever fold is
    asked for, and no fold is empty; to achieve this, keys change their fold.

    Args:
        targets: class index of each row, 0 or more.
        keys: hash of each row or of its group.
        count: number of folds.
        seed: random seed of the draw.

    Returns:
        Fold of each row, from 0.
    """
    groups = Groups(np.arange(len(targets)), keys)
    u = stable_hashes(f"fold {seed} {key}" for key in groups.hashes.tolist()) / 2.0**63
    drawn = _DrawnFolds(np.minimum((u * count).astype(np.int64), count - 1), count, targets, groups)
    ascending = np.argsort(u, kind="stable")
    for members in drawn.class_groups.values():
        drawn.spread_class(members[np.argsort(u[members], kind="stable")])
    for fold in np.setdiff1d(np.arange(count), drawn.folds).tolist():
        drawn.move_one(ascending, fold)
    return drawn.folds[groups.indices]


class _DrawnFolds:
    """Fold of each group of rows with the same key.

    Attributes:
        folds: fold of each group.
        class_groups: dictionary from class index to the groups that have rows of the class.
    """

    def __init__(self, folds: NDArray[np.int64], count: int, targets: NDArray[np.int64], groups: Groups) -> None:
        self.folds, self._count = folds, count
        self._targets, self._groups = targets, groups
        pairs = np.unique(np.stack([targets, groups.indices]), axis=1)
        classes, starts = np.unique(pairs[0], return_index=True)
        self.class_groups = dict(zip(classes.tolist(), np.split(pairs[1], starts[1:]), strict=True))

    def spread_class(self, members: NDArray[np.int64]) -> None:
        """Move groups of a class, in the given order, until it is in three folds, if it has three groups."""
        for fold in range(self._count):
            sizes = np.bincount(self.folds[members], minlength=self._count)
            if (sizes > 0).sum() >= min(MIN_FOLDS, len(members)):
                return
            if not sizes[fold]:
                self.move_one(members[sizes[self.folds[members]] > 1], fold)

    def move_one(self, candidates: NDArray[np.int64], fold: int) -> None:
        """Move the first candidate to a fold that leaves no fold empty and none of its classes in fewer folds."""
        sizes = np.bincount(self.folds, minlength=self._count)
        for group in candidates[sizes[self.folds[candidates]] > 1].tolist():
            classes = np.unique(self._targets[self._groups.members(group)]).tolist()
            required = {target: min(self._count_folds(target), MIN_FOLDS) for target in classes}
            previous_fold, self.folds[group] = self.folds[group], fold
            if all(self._count_folds(target) >= count for target, count in required.items()):
                return
            self.folds[group] = previous_fold

    def _count_folds(self, target: int) -> int:
        return len(np.unique(self.folds[self.class_groups[target]]))
