"""Assignment of rows to train, val and test: by the manifest, or by a hash of each row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

from fusion_pl.data.keys import stable_hash

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
ALIASES: dict[str, Split] = {"training": "train", "valid": "val", "validation": "val", "dev": "val"}
ALIASES |= {split: split for split in SPLITS}


def parse_split(cell: str | None) -> Split | None:
    """Return the split that a cell names, or None.

    Example:
        >>> parse_split(" Validation ")
        'val'
    """
    return ALIASES.get((cell or "").strip().lower())


def undefined_splits(cells: Sequence[str | None] | None) -> tuple[Split, ...]:
    """Return the splits that must be drawn: val and test without a split column, val if the column has no val row."""
    if cells is None:
        return ("val", "test")
    return () if "val" in map(parse_split, cells) else ("val",)


def assign_splits(
    targets: Mapping[int, int],
    keys: Sequence[int],
    cells: Sequence[str | None] | None,
    fractions: Mapping[Split, float],
    seed: int,
    known: Mapping[int, Split] | None = None,
) -> dict[Split, list[int]]:
    """Assign every row to a split. Rows that the manifest assigns to test stay there, and no others join them.

    Args:
        targets: row -> class index.
        keys: one per row, see ``row_keys``.
        cells: split column of the manifest, or None if it has none.
        fractions: of val and test, if they are drawn: of all rows, or of the training rows if ``cells`` are given.
        seed: of the draw.
        known: row -> its split in an earlier run; the manifest has precedence.

    Returns:
        Split -> its rows, in the order of ``targets``; rows whose cell names no split are in none.
    """
    splits = {row: "train" if cells is None else parse_split(cells[row]) for row in targets}
    drawn = {split: fractions[split] for split in undefined_splits(cells)}
    if drawn:
        candidates = {row: target for row, target in targets.items() if splits[row] == "train"}
        fixed = {row: split for row, split in (known or {}).items() if row in candidates and split in {"train", *drawn}}
        splits |= draw_splits(candidates, keys, drawn, seed, fixed)
    return {split: [row for row in splits if splits[row] == split] for split in SPLITS}


def draw_splits(
    targets: Mapping[int, int],
    keys: Sequence[int],
    fractions: Mapping[Split, float],
    seed: int,
    fixed: Mapping[int, Split] | None = None,
) -> dict[int, Split]:
    """Draw the split of each row by a hash of its key, independent of the other rows.

    The hash of seed and key, scaled to ``u`` in [0, 1), decides: test if ``u < test``, val if ``u >= 1 - val``, else
    train. So a split has ``n p`` of ``n`` rows in expectation, with a standard deviation of ``sqrt(n p (1 - p))``, and
    the same holds per class. Three rules are exact, as far as there are enough rows: rows with the same key share a
    split, every class has a training row, and no requested split is empty. To satisfy them, the rows whose ``u`` is
    nearest to the threshold change their split.

    The fractions of val and test are in [0, 1), with a sum below 1. ``fixed`` has the rows whose split is not drawn.
    The other arguments are those of ``assign_splits``.

    Returns:
        Row -> its split, in the order of ``targets``.

    Example:
        >>> draw_splits({0: 0, 1: 0, 2: 1}, [11, 12, 13], {"val": 0.5}, seed=0)
        {0: 'train', 1: 'val', 2: 'train'}
    """
    splits = dict(fixed or {})
    groups: dict[int, list[int]] = {}  # key -> rows
    for row in targets:
        if row not in splits:
            groups.setdefault(keys[row], []).append(row)
    uniform = {key: stable_hash(f"split {seed} {key}") / 2**63 for key in groups}
    low, high = fractions.get("test", 0.0), 1 - fractions.get("val", 0.0)
    for key, u in uniform.items():
        splits |= dict.fromkeys(groups[key], "test" if u < low else "val" if u >= high else "train")
    train_classes = {targets[row] for row, split in splits.items() if split == "train"}
    for key in sorted(groups, key=lambda key: max(low - uniform[key], uniform[key] - high)):
        classes = {targets[row] for row in groups[key]}
        if not classes <= train_classes:
            splits |= dict.fromkeys(groups[key], "train")
            train_classes |= classes
    ascending = sorted(groups, key=uniform.__getitem__)
    nearest_keys: dict[Split, list[int]] = {"test": ascending, "val": ascending[::-1]}
    for split, nearest in nearest_keys.items():
        if fractions.get(split) and split not in splits.values():
            total = _count(splits, splits, targets)
            for key in nearest:
                if all(total[part] > count for part, count in _count(groups[key], splits, targets).items()):
                    splits |= dict.fromkeys(groups[key], split)
                    break
    return {row: splits[row] for row in targets}


def _count(rows: Iterable[int], splits: Mapping[int, Split], targets: Mapping[int, int]) -> Counter[object]:
    """Count the rows of each class in train, and of each other split."""
    return Counter((split, targets[row]) if (split := splits[row]) == "train" else split for row in rows)
