"""Duplicates, compared with loops over all pairs."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from fusion_pl.data_check import duplicates
from fusion_pl.data_check.duplicates import combine_hashes, find_duplicates, find_near_duplicates
from fusion_pl.data_check.values import GREY_SIZE


def test_duplicates_are_those_of_a_loop_over_all_rows():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 40, 200).astype(np.uint64)
    rank, used = rng.integers(0, 3, 200), rng.random(200) < 0.8
    expected = []
    for row in np.flatnonzero(used):
        same = [other for other in np.flatnonzero(used) if hashes[other] == hashes[row]]
        original = min(same, key=lambda other: (-rank[other], other))
        if original != row:
            expected.append([row, original])
    assert find_duplicates(hashes, rank, used).tolist() == expected
    assert not find_duplicates(hashes, rank, np.zeros(200, bool)).size


def test_combined_hashes_depend_on_every_hash_and_on_the_order():
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 3, (2, 1000)).astype(np.uint64)
    combined = combine_hashes([one, two])
    assert len(np.unique(combined)) == len({(a, b) for a, b in zip(one.tolist(), two.tolist(), strict=True)})


def shrink(image):
    return np.asarray(image.convert("L").resize(GREY_SIZE, Image.Resampling.BOX))


def slow_near_duplicates(grey):
    """Compare all pairs."""
    bits = [[[int(right) - int(left) >= 4 for left, right in pairwise(r)] for r in one] for one in grey]
    pairs = []
    for high in range(len(grey)):
        for low in range(high):
            distance = np.sum(np.array(bits[low]) != np.array(bits[high]))
            if distance <= 3 and np.mean(np.abs(grey[low].astype(float) - grey[high])) <= 2:
                pairs.append([high, low])
                break
    return pairs


@pytest.fixture(scope="module")
def pictures():
    """Sixty different pictures, and changed copies of twenty of them."""
    rng = np.random.default_rng(0)
    images = [
        Image.fromarray(rng.integers(0, 255, (5, 7, 3), dtype=np.uint8)).resize((120, 90), Image.Resampling.BICUBIC)
        for _ in range(60)
    ]
    return images + [image.resize((97, 73)) for image in images[:20]]


def test_near_duplicates_are_those_of_a_loop_over_all_pairs(pictures):
    grey = np.stack(list(map(shrink, pictures)))
    found = find_near_duplicates(grey).tolist()
    assert found == slow_near_duplicates(grey) == [[60 + index, index] for index in range(20)]


def test_many_images_with_equal_hashes_are_compared_with_some_only(monkeypatch):
    """Flat images have the hash 0, so that the mean difference alone tells them apart."""
    grey = np.repeat(np.arange(0, 250, dtype=np.uint8), 72).reshape(-1, 8, 9)
    assert find_near_duplicates(grey).tolist() == [[row, max(0, row - 2)] for row in range(1, 250)]
    monkeypatch.setattr(duplicates, "MAX_NEIGHBOURS", 1)
    assert find_near_duplicates(grey).tolist() == [[row, row - 1] for row in range(1, 250)]


def test_no_images():
    assert find_near_duplicates(np.empty((0, 8, 9), np.uint8)).shape == (0, 2)
