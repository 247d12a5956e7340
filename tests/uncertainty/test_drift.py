"""Distribution drift: the formula of the index, the level of the test, and cuts of histograms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from fusion_pl.uncertainty.drift import MAX_CATEGORIES, count_categories, measure_drift, quantile_cuts


def slow_psi(reference, window):
    total = 0.0
    for old, new in zip(reference, window, strict=True):
        p, q = (
            (count + 0.5) / (sum(counts) + 0.5 * len(counts)) for count, counts in ((old, reference), (new, window))
        )
        total += (q - p) * math.log(q / p)
    return total


def slow_p_value(reference, window):
    statistic, total = 0.0, sum(reference) + sum(window)
    for pair in zip(reference, window, strict=True):
        for count, size in zip(pair, (sum(reference), sum(window)), strict=True):
            expected = sum(pair) * size / total
            statistic += (count - expected) ** 2 / expected
    return chi2.sf(statistic, len(reference) - 1)


def test_the_index_and_the_p_value_have_their_formulas():
    reference, window = [400, 300, 200, 100], [30, 30, 20, 20]
    drift = measure_drift(reference, window)
    assert drift.psi == pytest.approx(slow_psi(reference, window))
    assert drift.p_value == pytest.approx(slow_p_value(reference, window))
    assert drift.psi_by_chance == pytest.approx(3 * (1 / 1000 + 1 / 100))
    assert drift.groups == 4


def test_neighbouring_bins_with_too_few_samples_are_compared_together():
    reference, window = [500, 200, 2, 0, 1, 297, 0], [50, 20, 1, 0, 0, 29, 0]
    drift = measure_drift(reference, window)
    assert drift.groups == 3  # of the 21 samples per 100 in the third, five are expected only with the sixth bin
    assert drift.p_value == pytest.approx(slow_p_value([500, 200, 300], [50, 20, 30]))


def test_a_new_category_is_drift():
    drift = measure_drift([990, 10, 0], [0, 0, 100])
    assert drift.psi > 1
    assert drift.p_value < 1e-9


@pytest.mark.parametrize("window", [[0, 0], [2, 2]])
def test_too_few_samples_are_not_compared(window):
    assert measure_drift([500, 500], window) == (0.0, 0.0, 1.0, 1)


@pytest.mark.parametrize(("validation", "window"), [(150, 1000), (2000, 100)])
def test_windows_of_the_validation_distribution_have_uniform_p_values(validation, window):
    """Numbers in bins by quantiles, and 30 categories: 200 pairs of validation and window each."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(30))
    p_values, ratios = [], []
    for _ in range(200):
        old, new = (torch.from_numpy(rng.exponential(size=size)) for size in (validation, window))
        cuts = torch.tensor(quantile_cuts(old))
        numbers = [torch.bucketize(values, cuts).bincount(minlength=len(cuts) + 1).tolist() for values in (old, new)]
        categories = [rng.multinomial(size, shares).tolist() for size in (validation, window)]
        for histograms in (numbers, categories):
            drift = measure_drift(*histograms)
            p_values.append(drift.p_value)
            ratios.append(drift.psi / drift.psi_by_chance)
    for level in (0.05, 0.2):
        error = math.sqrt(level * (1 - level) / len(p_values))
        assert np.mean(np.array(p_values) <= level) == pytest.approx(level, abs=4 * error)
    assert min(p_values) > 0.001 / 10  # of 400 tests at the level of the server
    assert np.mean(ratios) == pytest.approx(1, abs=0.15)


def test_cuts_divide_numbers_into_equal_bins_and_contain_all():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    cuts = quantile_cuts(values)
    counts = torch.bucketize(values.double(), torch.tensor(cuts, dtype=torch.float64)).bincount(minlength=12).tolist()
    assert counts == [0, *[100] * 10, 0]


def test_cuts_are_not_among_equal_values():
    """Rounding errors of another machine move no value to another bin."""
    values = torch.tensor([1.0] * 700 + [2.0] * 200 + [5.0] * 100)
    cuts = torch.tensor(quantile_cuts(values), dtype=torch.float64)
    bins = torch.bucketize(values.double(), cuts)
    for error in (-1e-6, 1e-6):
        assert torch.equal(torch.bucketize(values.double() * (1 + error), cuts), bins)
    assert bins.unique(return_counts=True)[1].tolist() == [700, 200, 100]
    constant = torch.tensor(quantile_cuts(torch.full((60,), 0.7)))
    assert torch.bucketize(torch.tensor([0.6, 0.7, 0.8]), constant).tolist() == [0, 1, 2]


def test_the_most_frequent_categories_are_counted():
    rows = torch.cat([torch.full((count,), count) for count in range(1, MAX_CATEGORIES + 11)])
    found = count_categories(rows, str)
    assert list(found.items()) == [(str(count), count) for count in range(MAX_CATEGORIES + 10, 10, -1)]
    pairs = torch.tensor([[1, 0], [1, 1], [1, 0]])
    assert count_categories(pairs, str) == {"[1, 0]": 2, "[1, 1]": 1}
