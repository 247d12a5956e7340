"""Which row belongs to train, val or test: as the manifest says, or drawn evenly over the classes."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

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


def assign(
    targets: Mapping[int, int], cells: Sequence[str | None] | None, val_fraction: float, test_fraction: float, seed: int
) -> dict[Split, list[int]]:
    """Give every row its split. What the manifest calls test is never drawn from, nor added to.

    Args:
        targets: row -> its class.
        cells: the split that the manifest names for each row, or None where it names none.
        val_fraction: part that becomes val, of the training rows, or of all where ``cells`` is None.
        test_fraction: part of the rows that becomes test where ``cells`` is None.
        seed: of the draw.

    Returns:
        The rows of each split, in the order of ``targets``; rows whose cell names no split are in none.
    """
    parts: dict[Split, list[int]] = {split: [] for split in SPLITS}
    for row in targets:
        split = "train" if cells is None else split_of(cells[row])
        if split is not None:
            parts[split].append(row)
    wanted: dict[Split, float] = {"test": test_fraction} if cells is None else {}
    if not parts["val"]:
        wanted["val"] = val_fraction
    drawn = draw({row: targets[row] for row in parts["train"]}, list(wanted.values()), seed)
    parts |= dict(zip(wanted, drawn, strict=True))
    taken = {row for part in drawn for row in part}
    parts["train"] = [row for row in parts["train"] if row not in taken]
    return parts


def draw(targets: Mapping[int, int], fractions: Sequence[float], seed: int) -> list[list[int]]:
    """Draw disjoint, stratified parts of some rows and always leave every class one row.

    Each class gives its share by the largest remainder, so that a part has the size asked for even where a share is
    below one row.

    Args:
        targets: row -> its class.
        fractions: size of each part, of all rows, in [0, 1); a part above zero gets one row at least, if any is free.
        seed: of the draw; the same rows and seed give the same parts.

    Returns:
        The rows of each part, in the order of ``targets``.

    Example:
        >>> [len(part) for part in draw({row: row % 2 for row in range(20)}, [0.2, 0.1], seed=0)]
        [4, 2]
    """
    rng = random.Random(seed)
    rows: dict[int, list[int]] = {}
    for row, target in targets.items():
        rows.setdefault(target, []).append(row)
    sizes = {target: len(members) for target, members in rows.items()}
    for members in rows.values():
        rng.shuffle(members)
    place = {row: at for at, row in enumerate(targets)}
    parts = []
    for fraction in fractions:
        free = {target: len(members) - 1 for target, members in rows.items()}
        share = _shares(sizes, free, fraction, rng)
        drawn = [rows[target].pop() for target, count in share.items() for _ in range(count)]
        parts.append(sorted(drawn, key=place.__getitem__))
    return parts


def _shares(sizes: Mapping[int, int], free: Mapping[int, int], fraction: float, rng: random.Random) -> dict[int, int]:
    """Say how many rows each class gives: never more than are free, together as near ``fraction`` of all as can be."""
    total = min(max(round(sum(sizes.values()) * fraction), int(fraction > 0)), sum(free.values()))
    share = {target: min(int(size * fraction), free[target]) for target, size in sizes.items()}
    order = sorted(sizes, key=lambda target: (-(sizes[target] * fraction % 1), rng.random()))
    while sum(share.values()) < total:
        for target in order:
            if sum(share.values()) < total and share[target] < free[target]:
                share[target] += 1
    return share
