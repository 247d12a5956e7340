from __future__ import annotations

from collections import Counter

import pytest

from fusion_pl.data.splits import assign, draw, split_of


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
    assert split_of(cell) == split


def test_parts_are_disjoint_stratified_and_seeded():
    targets = {row: 0 if row < 80 else 1 for row in range(100)}
    first, second = draw(targets, [0.2, 0.1], seed=3)
    assert not set(first) & set(second)
    assert first == sorted(first)
    assert Counter(targets[row] for row in first) == {0: 16, 1: 4}
    assert Counter(targets[row] for row in second) == {0: 8, 1: 2}
    assert draw(targets, [0.2, 0.1], seed=3) == [first, second]
    assert draw(targets, [0.2, 0.1], seed=4) != [first, second]


def test_small_classes_still_fill_a_part_and_keep_a_row():
    targets = {row: row % 5 for row in range(10)}
    test, val = draw(targets, [0.15, 0.15], seed=0)
    left = set(targets) - set(test) - set(val)
    assert len(test) == len(val) == 2
    assert {targets[row] for row in left} == set(range(5))
    assert draw({0: 0, 1: 1}, [0.5], seed=0) == [[]]


def test_the_named_test_rows_are_neither_taken_nor_added_to():
    targets = dict.fromkeys(range(20), 0)
    cells = ["test" if row < 10 else "train" for row in range(20)]
    parts = assign(targets, cells, val_fraction=0.2, test_fraction=0.5, seed=0)
    assert parts["test"] == list(range(10))
    assert len(parts["val"]) == 2
    assert sorted(parts["val"] + parts["train"]) == list(range(10, 20))


def test_named_validation_rows_stay_as_they_are():
    parts = assign({0: 0, 1: 0, 2: 0}, ["train", "dev", "train"], val_fraction=0.5, test_fraction=0.5, seed=0)
    assert parts == {"train": [0, 2], "val": [1], "test": []}


def test_without_named_splits_all_rows_are_dealt_out():
    parts = assign({row: row % 2 for row in range(40)}, None, val_fraction=0.1, test_fraction=0.2, seed=0)
    assert {split: len(rows) for split, rows in parts.items()} == {"train": 28, "val": 4, "test": 8}
    assert sorted(row for rows in parts.values() for row in rows) == list(range(40))
