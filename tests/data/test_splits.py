from __future__ import annotations

import hashlib
import random
from collections import Counter

import pytest

from fusion_pl.data.splits import assign_splits, draw_splits, parse_split

FRACTIONS = {"val": 0.1, "test": 0.2}


def by_number_alone(keys, fractions, seed):
    """The rule of the documentation, without the exceptions for small tables."""
    splits = []
    for key in keys:
        digest = hashlib.blake2b(f"split {seed} {key}".encode(), digest_size=8).hexdigest()
        u = int(digest, 16) // 2 / 2**63
        splits.append("test" if u < fractions.get("test", 0) else "val" if u >= 1 - fractions["val"] else "train")
    return splits


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
    targets = {row: 0 if row % 5 else 1 for row in range(20_000)}
    splits = draw_splits(targets, range(20_000), FRACTIONS, seed)
    assert list(splits.values()) == by_number_alone(range(20_000), FRACTIONS, seed)
    found = Counter((targets[row], split) for row, split in splits.items())
    for target, size in Counter(targets.values()).items():
        for split, share in {"train": 0.7, **FRACTIONS}.items():
            assert abs(found[target, split] - size * share) < 4 * (size * share * (1 - share)) ** 0.5


def test_another_fraction_moves_rows_between_its_split_and_train_only():
    targets = dict.fromkeys(range(500), 0)
    few = draw_splits(targets, range(500), {"val": 0.1, "test": 0.1}, seed=0)
    more = draw_splits(targets, range(500), {"val": 0.1, "test": 0.3}, seed=0)
    assert {(few[row], more[row]) for row in targets if few[row] != more[row]} == {("train", "test")}


def test_small_tables_have_every_class_in_training_and_no_empty_split():
    """Random tables of up to 12 rows and 4 classes, with duplicate rows."""
    rng = random.Random(0)
    for seed in range(400):
        size, classes = rng.randint(1, 12), rng.randint(1, 4)
        keys = [rng.randrange(10**6) if rng.random() < 0.8 else rng.randrange(3) for _ in range(size)]
        targets = {row: key % classes for row, key in enumerate(keys)}
        splits = draw_splits(targets, keys, FRACTIONS, seed)
        assert all(splits[a] == splits[b] for a in targets for b in targets if keys[a] == keys[b])
        assert {targets[row] for row, split in splits.items() if split == "train"} == set(targets.values())
        to_spare = len(set(keys)) - len(set(targets.values()))
        assert len({"val", "test"} & set(splits.values())) == min(2, to_spare)
        alone = by_number_alone(keys, FRACTIONS, seed)
        moved = {keys[row] for row in targets if splits[row] != alone[row]}
        lacking = set(targets.values()) - {targets[row] for row in targets if alone[row] == "train"}
        empty = {"val", "test"} - set(alone)
        assert len(moved) <= (len(lacking) + 2 if lacking else len(empty))
        order = rng.sample(list(targets), size)
        assert draw_splits({row: targets[row] for row in order}, keys, FRACTIONS, seed) == splits


def test_rows_with_the_same_key_and_several_labels_share_a_split():
    targets = {0: 0, 1: 1, 2: 2, 3: 0, 4: 1, 5: 2}
    for seed in range(50):
        splits = draw_splits(targets, [1, 1, 1, 2, 2, 2], FRACTIONS, seed)
        assert splits[0] == splits[1] == splits[2]
        assert splits[3] == splits[4] == splits[5]
        assert {splits[0], splits[3]} == {"train", "test"} or {splits[0], splits[3]} == {"train", "val"}


def test_fixed_rows_keep_their_split():
    targets = dict.fromkeys(range(40), 0)
    kept = {row: ("train", "val", "test")[row % 3] for row in range(20)}
    splits = draw_splits(targets, range(40), FRACTIONS, 0, kept)
    assert {row: splits[row] for row in kept} == kept
    assert [splits[row] for row in range(20, 40)] == by_number_alone(range(20, 40), FRACTIONS, 0)
    assert set(draw_splits(targets, range(40), FRACTIONS, 0, dict.fromkeys(targets, "test")).values()) == {"test"}


def test_the_test_rows_of_the_manifest_do_not_change():
    targets = dict.fromkeys(range(60), 0)
    cells = ["test" if row < 10 else "train" for row in range(60)]
    parts = assign_splits(targets, range(60), cells, {"val": 0.2, "test": 0.5}, seed=0)
    assert parts["test"] == list(range(10))
    named = by_number_alone(range(10, 60), {"val": 0.2}, 0)
    assert parts["val"] == [row for row, split in enumerate(named, start=10) if split == "val"]
    assert sorted(parts["val"] + parts["train"]) == list(range(10, 60))


def test_the_splits_of_the_manifest_have_precedence():
    fractions = {"val": 0.5, "test": 0.5}
    cells = ["train", "dev", "train", "test"]
    kept = {0: "val", 1: "train", 2: "test", 3: "train"}
    expected = {"train": [0, 2], "val": [1], "test": [3]}
    assert assign_splits(dict.fromkeys(range(4), 0), range(4), cells, fractions, 0) == expected
    assert assign_splits(dict.fromkeys(range(4), 0), range(4), cells, fractions, 0, kept) == expected


def test_without_validation_rows_a_recorded_test_row_that_the_manifest_calls_train_is_train_or_val():
    parts = assign_splits(
        dict.fromkeys(range(3), 0), range(3), ["train"] * 3, FRACTIONS, 0, {0: "test", 1: "val", 2: "train"}
    )
    assert parts["test"] == []
    assert parts["val"] == [1]
