"""Which row belongs to train, val or test: as the manifest says, or drawn by what the row is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

from fusion_pl.data.keys import stable_hash

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
ALIASES: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}


def split_of(cell: str | None) -> Split | None:
    """Return the split that a cell names, whatever its spelling; None where it names none.

    Example:
        >>> split_of(" Validation ")
        'val'
    """
    return ALIASES.get((cell or "").strip().lower())


def to_draw(cells: Sequence[str | None] | None) -> tuple[Split, ...]:
    """Return the splits for which rows must be drawn: val and test without a split column, val where it names none."""
    if cells is None:
        return ("val", "test")
    return () if "val" in map(split_of, cells) else ("val",)


def assign(
    targets: Mapping[int, int],
    keys: Sequence[int],
    cells: Sequence[str | None] | None,
    fractions: Mapping[Split, float],
    seed: int,
    kept: Mapping[int, Split] | None = None,
) -> dict[Split, list[int]]:
    """Give every row its split. What the manifest calls test is never drawn from, nor added to.

    Args:
        targets: row -> its class.
        keys: what each row is, from ``row_keys``.
        cells: the split that the manifest names for each row, or None where it names none.
        fractions: of val and test where they are drawn: of all rows, or of the training rows where ``cells`` are given.
        seed: of the draw.
        kept: row -> the split that it has already, which the manifest overrules.

    Returns:
        The rows of each split, in the order of ``targets``; rows whose cell names no split are in none.
    """
    splits = {row: "train" if cells is None else split_of(cells[row]) for row in targets}
    wanted = {split: fractions[split] for split in to_draw(cells)}
    if wanted:
        free = {row: target for row, target in targets.items() if splits[row] == "train"}
        known = {row: split for row, split in (kept or {}).items() if row in free and split in {"train", *wanted}}
        splits |= draw(free, keys, wanted, seed, known)
    return {split: [row for row, own in splits.items() if own == split] for split in SPLITS}


def draw(
    targets: Mapping[int, int],
    keys: Sequence[int],
    fractions: Mapping[Split, float],
    seed: int,
    kept: Mapping[int, Split] | None = None,
) -> dict[int, Split]:
    """Draw the split of each row by the row's own number, so that it stays when other rows come, go or move.

    A row's number ``u``, even in [0, 1), is a hash of the seed and its key: it is test where ``u < test``, val where
    ``u >= 1 - val``, else train. Sizes, and the shares of the classes, are those asked for in expectation: of n rows
    ``n p``, with a standard deviation of ``sqrt(n p (1 - p))``. Exact are these three, as far as there are rows: those
    of one key share a split, every class has a training row, and no split that was asked for is empty. Where chance
    says otherwise, the row whose number is nearest changes its split.

    Args:
        targets: row -> its class.
        keys: what each row is, from ``row_keys``.
        fractions: of val and test, in [0, 1); their sum is below 1.
        seed: of the draw.
        kept: row -> the split that it has already.

    Returns:
        Row -> its split, in the order of ``targets``.

    Example:
        >>> draw({0: 0, 1: 0, 2: 1}, [11, 12, 13], {"val": 0.5}, seed=0)
        {0: 'train', 1: 'val', 2: 'train'}
    """
    splits = dict(kept or {})
    groups: dict[int, list[int]] = {}
    for row in targets:
        if row not in splits:
            groups.setdefault(keys[row], []).append(row)
    numbers = {key: stable_hash(f"split {seed} {key}") / 2**63 for key in groups}
    below, above = fractions.get("test", 0.0), 1 - fractions.get("val", 0.0)
    for key, rows in groups.items():
        drawn: Split = "test" if numbers[key] < below else "val" if numbers[key] >= above else "train"
        for row in rows:
            splits[row] = drawn
    near = sorted(groups, key=lambda key: max(below - numbers[key], numbers[key] - above))  # to train
    learnt = {targets[row] for row, split in splits.items() if split == "train"}
    for rows in map(groups.__getitem__, near):
        if not learnt.issuperset(targets[row] for row in rows):
            splits |= dict.fromkeys(rows, "train")
            learnt.update(targets[row] for row in rows)
    sides: tuple[tuple[Split, int], ...] = (("test", 1), ("val", -1))
    for split, sign in sides:
        if fractions.get(split) and split not in splits.values():
            held = _held(splits, splits, targets)
            for key in sorted(groups, key=lambda key: sign * numbers[key]):
                if all(held[what] > count for what, count in _held(groups[key], splits, targets).items()):
                    splits |= dict.fromkeys(groups[key], split)
                    break
    return {row: splits[row] for row in targets}


def _held(rows: Iterable[int], splits: Mapping[int, Split], targets: Mapping[int, int]) -> Counter[object]:
    """Count what must not run out: the rows of each class in train, and all of another split."""
    return Counter((split, targets[row]) if (split := splits[row]) == "train" else split for row in rows)
