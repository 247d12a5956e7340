"""Subsets of the inputs, and inputs that are missing at random."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from fusion_pl.evaluate.missing import RATES, MissingAtRandom, Subset, measured_subsets, missing_rates

NAMES = ["text", "image", "audio"]
IDS = [f"s{row}" for row in range(4000)]
ALL = torch.ones(len(IDS), 3, dtype=torch.bool)


def test_all_subsets_of_five_inputs_and_32_of_more():
    assert [subset.names for subset in measured_subsets(["a", "b"])] == [("a",), ("b",), ("a", "b")]
    five = measured_subsets(list("abcde"))
    assert len({subset.names for subset in five}) == 31
    seven = [subset.names for subset in measured_subsets(list("abcdefg"))]
    assert len(set(seven)) == 32
    assert seven[-1] == tuple("abcdefg")
    assert {("a",), ("g",), tuple("abcdef"), tuple("bcdefg")} <= set(seven)
    assert seven == [subset.names for subset in measured_subsets(list("abcdefg"))]
    assert seven != [subset.names for subset in measured_subsets(list("abcdefg"), seed=1)]
    assert all(list(names) == sorted(names) for names in seven)


def test_a_subset_keeps_what_samples_have_of_it():
    present = torch.tensor([[True, True, False], [False, True, True]])
    kept = Subset(("text", "audio")).keep(present, NAMES, ["a", "b"])
    assert kept.tolist() == [[True, False, False], [False, False, True]]


@pytest.mark.parametrize("rate", RATES)
def test_each_input_alone_is_missing_at_its_rate(rate):
    kept = MissingAtRandom(rate, "image").keep(ALL, NAMES, IDS)
    assert kept[:, [0, 2]].all()
    assert 1 - kept[:, 1].double().mean().item() == pytest.approx(rate, abs=0.03)


@pytest.mark.parametrize("rate", RATES)
def test_every_input_is_missing_independently_unless_nothing_would_be_left(rate):
    kept = MissingAtRandom(rate).keep(ALL, NAMES, IDS)
    counts = torch.bincount(kept.sum(1), minlength=4) / len(IDS)
    expected = [0.0, 3 * (1 - rate) * rate**2 + rate**3, 3 * (1 - rate) ** 2 * rate, (1 - rate) ** 3]
    assert counts.tolist() == pytest.approx(expected, abs=0.03)
    shares = kept.double().mean(0)
    assert shares.max() - shares.min() < 0.05


def test_what_is_missing_at_a_rate_is_missing_at_a_higher_one_and_depends_on_the_sample_alone():
    masks = [MissingAtRandom(rate).keep(ALL, NAMES, IDS) for rate in RATES]
    assert all((later <= earlier).all() for earlier, later in pairwise(masks))
    some = MissingAtRandom(0.5).keep(ALL[:7], NAMES, IDS[100:107])
    assert torch.equal(some, MissingAtRandom(0.5).keep(ALL, NAMES, IDS)[100:107])
    assert not torch.equal(some, MissingAtRandom(0.5, seed=1).keep(ALL[:7], NAMES, IDS[100:107]))


def test_samples_keep_only_what_they_have_and_at_least_one_input():
    present = torch.tensor([[False, True, False], [False, False, False], [True, True, False]]).repeat(500, 1)
    ids = [f"s{row}" for row in range(1500)]
    for selection in missing_rates(NAMES):
        kept = selection.keep(present, NAMES, ids)
        assert (kept <= present).all()
        assert torch.equal(kept.any(1), present.any(1))


def test_the_curves_are_those_of_every_input_and_of_each():
    assert {selection.name for selection in missing_rates(NAMES)} == {None, *NAMES}
    assert {selection.name for selection in missing_rates(["text"])} == {None}
