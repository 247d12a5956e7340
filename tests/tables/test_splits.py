from __future__ import annotations

import hashlib
import random
from collections import Counter

import numpy as np
import pytest

from fusion_pl.tables.splits import NO_SPLIT, SPLITS, assign_splits, draw_splits, parse_split
from tests.tables import slow_splits

FRACTIONS = {"val": 0.1, "test": 0.2}


def by_number_alone(keys, fractions, seed):
    """The rule of the documentation, without the exceptions for small tables."""
    splits = []
    for key in keys:
        digest = hashlib.blake2b(f"split {seed} {key}".encode(), digest_size=8).hexdigest()
        u = int(digest, 16) // 2 / 2**63
        splits.append("test" if u < fractions.get("test", 0) else "val" if u >= 1 - fractions["val"] else "train")
    return splits


def draw(targets, keys, fractions, seed, fixed=None):
    """Return the name of the split of each row."""
    splits = draw_splits(np.array(targets), np.array(keys), fractions, seed, None if fixed is None else codes(fixed))
    return [SPLITS[split] for split in splits]


def codes(names):
    return np.array([NO_SPLIT if name is None else SPLITS.index(name) for name in names], np.int8)


def assign(targets, keys, column, fractions, known=None):
    """Return a dictionary from split to its rows."""
    known = None if known is None else codes(known)
    splits = assign_splits(
        np.array(targets), np.array(keys), None if column is None else codes(column), fractions, 0, known
    )
    return {name: np.flatnonzero(splits == index).tolist() for index, name in enumerate(SPLITS)}


@pytest.mark.parametrize(
    ("cell", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("valid", "val"),
        (" dev ", "val"),
        ("TEST", "test"),
        ("tset", None),
        ("", None),
        (None, None),
    ],
)
def test_spellings_of_a_split(cell, split):
    assert parse_split(cell) == split


@pytest.mark.parametrize("seed", [0, 1])
def test_sizes_and_class_fractions_are_exact_in_expectation(seed):
    targets = [0 if row % 5 else 1 for row in range(20_000)]
    splits = draw(targets, range(20_000), FRACTIONS, seed)
    assert splits == by_number_alone(range(20_000), FRACTIONS, seed)
    found = Counter(zip(targets, splits, strict=True))
    for target, size in Counter(targets).items():
        for split, share in {"train": 0.7, **FRACTIONS}.items():
            assert abs(found[target, split] - size * share) < 4 * (size * share * (1 - share)) ** 0.5


def test_another_fraction_moves_rows_between_its_split_and_train_only():
    few = draw([0] * 500, range(500), {"val": 0.1, "test": 0.1}, seed=0)
    more = draw([0] * 500, range(500), {"val": 0.1, "test": 0.3}, seed=0)
    assert {(a, b) for a, b in zip(few, more, strict=True) if a != b} == {("train", "test")}


def test_small_tables_have_every_class_in_training_and_no_empty_split():
    """Random tables of up to 12 rows and 4 classes, with duplicate rows."""
    rng = random.Random(0)
    for seed in range(400):
        size, classes = rng.randint(1, 12), rng.randint(1, 4)
        keys = [rng.randrange(10**6) if rng.random() < 0.8 else rng.randrange(3) for _ in range(size)]
        targets = [key % classes for key in keys]
        splits = draw(targets, keys, FRACTIONS, seed)
        rows = range(size)
        assert all(splits[a] == splits[b] for a in rows for b in rows if keys[a] == keys[b])
        assert {targets[row] for row in rows if splits[row] == "train"} == set(targets)
        to_spare = len(set(keys)) - len(set(targets))
        assert len({"val", "test"} & set(splits)) == min(2, to_spare)
        alone = by_number_alone(keys, FRACTIONS, seed)
        moved = {keys[row] for row in rows if splits[row] != alone[row]}
        lacking = set(targets) - {targets[row] for row in rows if alone[row] == "train"}
        empty = {"val", "test"} - set(alone)
        assert len(moved) <= (len(lacking) + 2 if lacking else len(empty))
        order = rng.sample(rows, size)
        shuffled = draw([targets[row] for row in order], [keys[row] for row in order], FRACTIONS, seed)
        assert shuffled == [splits[row] for row in order]


def test_the_draw_is_that_of_a_slow_direct_version():
    """Random tables of up to 60 rows: duplicate rows with several labels, fixed rows, fractions of nearly 0 and 1."""
    rng = random.Random(1)
    for seed in range(600):
        size, classes = rng.randint(1, 60), rng.randint(1, 8)
        keys = [rng.randrange(2**63) if rng.random() < 0.7 else rng.randrange(6) for _ in range(size)]
        targets = [rng.randrange(classes) for _ in range(size)]
        fixed = {row: rng.choice(SPLITS) for row in range(size) if rng.random() < rng.choice([0, 0.3, 0.9])}
        val, test = rng.choice([(0.15, 0.15), (0.9, 0.05), (0.001, 0.0), (0.3, 0.6), (0.001, 0.001)])
        expected = slow_splits.draw_splits(dict(enumerate(targets)), keys, {"val": val, "test": test}, seed, fixed)
        found = draw(targets, keys, {"val": val, "test": test}, seed, [fixed.get(row) for row in range(size)])
        assert found == list(expected.values())


def test_rows_with_the_same_key_and_several_labels_share_a_split():
    for seed in range(50):
        splits = draw([0, 1, 2, 0, 1, 2], [1, 1, 1, 2, 2, 2], FRACTIONS, seed)
        assert splits[0] == splits[1] == splits[2]
        assert splits[3] == splits[4] == splits[5]
        assert {splits[0], splits[3]} == {"train", "test"} or {splits[0], splits[3]} == {"train", "val"}


def test_fixed_rows_keep_their_split():
    kept = [SPLITS[row % 3] for row in range(20)]
    splits = draw([0] * 40, range(40), FRACTIONS, 0, kept + [None] * 20)
    assert splits[:20] == kept
    assert splits[20:] == by_number_alone(range(20, 40), FRACTIONS, 0)
    assert set(draw([0] * 40, range(40), FRACTIONS, 0, ["test"] * 40)) == {"test"}


def test_the_test_rows_of_the_manifest_do_not_change():
    column = ["test" if row < 10 else "train" for row in range(60)]
    parts = assign([0] * 60, range(60), column, {"val": 0.2, "test": 0.5})
    assert parts["test"] == list(range(10))
    named = by_number_alone(range(10, 60), {"val": 0.2}, 0)
    assert parts["val"] == [row for row, split in enumerate(named, start=10) if split == "val"]
    assert sorted(parts["val"] + parts["train"]) == list(range(10, 60))


def test_a_row_without_a_class_or_a_split_is_in_none():
    parts = assign([0, -1, 0, 0], range(4), ["train", "train", None, "val"], FRACTIONS)
    assert parts == {"train": [0], "val": [3], "test": []}
    drawn = assign([-1, 0, 0, 0, 0], range(5), None, FRACTIONS)
    assert sorted(row for rows in drawn.values() for row in rows) == [1, 2, 3, 4]


def test_the_splits_of_the_manifest_have_precedence():
    fractions = {"val": 0.5, "test": 0.5}
    column = ["train", "val", "train", "test"]
    expected = {"train": [0, 2], "val": [1], "test": [3]}
    assert assign([0] * 4, range(4), column, fractions) == expected
    assert assign([0] * 4, range(4), column, fractions, ["val", "train", "test", "train"]) == expected
