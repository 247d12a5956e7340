"""Slow, direct versions of the hashes and of the draw of splits on lists and dictionaries, as references of tests."""

from __future__ import annotations

import hashlib
import json
from collections import Counter


def stable_hash(text):
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def row_hashes(columns, size, ignored):
    """Hash each row of ``columns``, a dictionary from name to cells of text or None."""
    names = sorted(columns.keys() - {"id", *ignored})
    ids = columns.get("id") or [None] * size
    return [
        stable_hash(json.dumps(["id", ids[row]]) if ids[row] else row_content(columns, row, names))
        for row in range(size)
    ]


def table_hash(columns, size):
    rows = sorted(stable_hash(row_content(columns, row, sorted(columns))) for row in range(size))
    return hashlib.blake2b(repr(rows).encode(), digest_size=16).hexdigest()


def row_content(columns, row, names):
    cells = ((name, columns[name][row]) for name in names)
    return json.dumps([(name, cell) for name, cell in cells if cell is not None])


def draw_splits(targets, row_hashes, fractions, seed, fixed=None):
    """Return a dictionary from row to split, for ``targets``, a dictionary from row to class index."""
    splits = dict(fixed or {})
    groups = {}  # row hash -> rows
    for row in targets:
        if row not in splits:
            groups.setdefault(row_hashes[row], []).append(row)
    uniform = {row_hash: stable_hash(f"split {seed} {row_hash}") / 2**63 for row_hash in groups}
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
    nearest_hashes = {"test": ascending, "val": ascending[::-1]}
    for split, nearest in nearest_hashes.items():
        if fractions.get(split) and split not in splits.values():
            total = count_rows(splits, splits, targets)
            for row_hash in nearest:
                if all(total[part] > count for part, count in count_rows(groups[row_hash], splits, targets).items()):
                    splits |= dict.fromkeys(groups[row_hash], split)
                    break
    return {row: splits[row] for row in targets}


def count_rows(rows, splits, targets):
    """Count the rows of each training class and of each other split."""
    return Counter((split, targets[row]) if (split := splits[row]) == "train" else split for row in rows)
