"""Assign rows to train, val and test, by the split column of the manifest or by a hash of each row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

from fusion_pl.data.hashes import stable_hash

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
ALIASES: dict[str, Split] = {"training": "train", "valid": "val", "validation": "val", "dev": "val"}
ALIASES |= {split: split for split in SPLITS}


def parse_split(cell: str | None) -> Split | None:
    """Return the split that a cell of the split column selects; None if the cell is not the name of a split.

    Example:
        >>> parse_split(" Validation ")
        'val'
    """
    return ALIASES.get((cell or "").strip().lower())


def splits_to_draw(cells: Sequence[str | None] | None) -> tuple[Split, ...]:
    """Return the splits to draw at random.

    Without a split column (``cells`` is None), they are val and test; if the split column has no val row, val.
    """
    if cells is None:
        return ("val", "test")
    return () if "val" in map(parse_split, cells) else ("val",)


def assign_splits(
    targets: Mapping[int, int],
    row_hashes: Sequence[int],
    cells: Sequence[str | None] | None,
    fractions: Mapping[Split, float],
    seed: int,
    known_splits: Mapping[int, Split] | None = None,
) -> dict[Split, list[int]]:
    """Assign every row to a split: to that of its cell in the split column, if there is one, or to a drawn split.

    Args:
        targets: dictionary from row to class index.
        row_hashes: one hash per row, from ``fusion_pl.data.hashes.row_hashes``.
        cells: split column of the manifest; None if there is no such column.
        fractions: expected fractions of the drawn splits val and test: of all rows, or of the train rows of ``cells``.
        seed: random seed of the draw.
        known_splits: dictionary from row to its split in an earlier run; the split column has precedence.

    Returns:
        Dictionary from split to its rows, in the order of ``targets``; no split contains rows with an invalid cell.
    """
    splits = {row: "train" if cells is None else parse_split(cells[row]) for row in targets}
    drawn = {split: fractions[split] for split in splits_to_draw(cells)}
    if drawn:
        candidates = {row: target for row, target in targets.items() if splits[row] == "train"}
        fixed_splits = {
            row: split
            for row, split in (known_splits or {}).items()
            if row in candidates and split in {"train", *drawn}
        }
        splits |= draw_splits(candidates, row_hashes, drawn, seed, fixed_splits)
    return {split: [row for row in splits if splits[row] == split] for split in SPLITS}


def draw_splits(
    targets: Mapping[int, int],
    row_hashes: Sequence[int],
    fractions: Mapping[Split, float],
    seed: int,
    fixed_splits: Mapping[int, Split] | None = None,
) -> dict[int, Split]:
    """Draw the split of each row by a pseudorandom number ``u`` that depends only on the seed and the row hash.

    ``u`` is in [0, 1): the split is test if ``u < test``, val if ``u >= 1 - val``, else train, where ``test`` and
    ``val`` are the fractions. Of ``n`` rows, a split with fraction ``p`` has ``n p`` in expectation, with a standard
    deviation of ``sqrt(n p (1 - p))``, also within each class. If there are enough rows, rows with the same hash share
    a split, every class has a training row, and no split with a positive fraction is empty; to achieve this, the rows
    whose ``u`` is nearest to a threshold change their split.

    ``fractions`` has the fractions of val and test, each in [0, 1) with a sum below 1. ``fixed_splits`` has the rows
    whose split is not drawn. For the other arguments see ``assign_splits``.

    Returns:
        Dictionary from row to its split, in the order of ``targets``.

    Example:
        >>> draw_splits({0: 0, 1: 0, 2: 1}, [11, 12, 13], {"val": 0.5}, seed=0)
        {0: 'train', 1: 'val', 2: 'train'}
    """
    splits = dict(fixed_splits or {})
    groups: dict[int, list[int]] = {}  # row hash -> rows
    for row in targets:
        if row not in splits:
            groups.setdefault(row_hashes[row], []).append(row)
    uniform = {row_hash: stable_hash(f"split {seed} {row_hash}") / 2**63 for row_hash in groups}  # u of each row hash
    low, high = fractions.get("test", 0.0), 1 - fractions.get("val", 0.0)
    for row_hash, u in uniform.items():
        splits |= dict.fromkeys(groups[row_hash], "test" if u < low else "val" if u >= high else "train")
    train_classes = {targets[row] for row, split in splits.items() if split == "train"}
    for row_hash in sorted(groups, key=lambda row_hash: max(low - uniform[row_hash], uniform[row_hash] - high)):
        classes = {targets[row] for row in groups[row_hash]}
        if not classes <= train_classes:
            splits |= dict.fromkeys(groups[row_hash], "train")
            train_classes |= classes
    ascending = sorted(groups, key=uniform.__getitem__)
    nearest_hashes: dict[Split, list[int]] = {"test": ascending, "val": ascending[::-1]}
    for split, nearest in nearest_hashes.items():
        if fractions.get(split) and split not in splits.values():
            total = _count_rows(splits, splits, targets)
            for row_hash in nearest:
                if all(total[part] > count for part, count in _count_rows(groups[row_hash], splits, targets).items()):
                    splits |= dict.fromkeys(groups[row_hash], split)
                    break
    return {row: splits[row] for row in targets}


def _count_rows(rows: Iterable[int], splits: Mapping[int, Split], targets: Mapping[int, int]) -> Counter[object]:
    """Count the rows of each training class and of each other split."""
    return Counter((split, targets[row]) if (split := splits[row]) == "train" else split for row in rows)
