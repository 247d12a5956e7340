"""Statistics of a comparison, against scipy and hand-computed values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fusion_pl.analysis.statistics import (
    accuracy_interval,
    bootstrap_interval,
    holm_correction,
    pareto_front,
    wilson_interval,
)


def test_holm_by_hand() -> None:
    # sorted: 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04; none may fall below the one before
    corrected = holm_correction({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert corrected == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert holm_correction({"a": 0.7, "b": 0.6}) == {"a": 1.0, "b": 1.0}
    assert holm_correction({}) == {}


def test_pareto_front() -> None:
    points = {"a": (0.9, 5.0), "b": (0.8, 1.0), "c": (0.8, 2.0), "d": (0.7, 1.0), "e": (0.9, 5.0), "f": (0.85, 3.0)}
    assert pareto_front(points) == {"a", "e", "b", "f"}  # equal points do not dominate each other
    assert pareto_front({}) == set()


@pytest.mark.parametrize(("right", "count"), [(0, 6), (6, 6), (18, 24), (199, 200), (5031, 10000)])
def test_the_interval_of_one_seed_is_wilsons(right: int, count: int) -> None:
    correct = np.array([[1] * right + [0] * (count - right)])
    other = stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert accuracy_interval(correct) == pytest.approx((other.low, other.high))


def draw_correct(seeds: int, samples: int) -> np.ndarray:
    """Draw samples of different difficulty and seeds of different accuracy."""
    generator = np.random.default_rng(4)
    probability = generator.beta(4, 1, (1, samples)) - generator.uniform(0, 0.4, (seeds, 1))
    return (generator.random((seeds, samples)) < probability).astype(np.int64)


def test_the_interval_of_several_seeds_is_a_bootstrap_over_both() -> None:
    correct = draw_correct(3, 60)
    other = stats.bootstrap(
        (np.arange(60), np.arange(3)),
        lambda samples, seeds: correct[np.ix_(seeds, samples)].mean(),
        vectorized=False,
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert bootstrap_interval(correct) == pytest.approx((other.low, other.high), abs=0.02)
    low, high = wilson_interval(correct.mean(), 60)
    interval = accuracy_interval(correct)
    assert interval[0] == min(low, bootstrap_interval(correct)[0])
    assert interval[1] == max(high, bootstrap_interval(correct)[1])
    assert interval == accuracy_interval(correct)  # the draws are seeded


def test_the_interval_of_a_perfect_row_has_a_width() -> None:
    correct = np.ones((3, 6), dtype=np.int64)
    assert bootstrap_interval(correct) == (1, 1)
    assert accuracy_interval(correct) == pytest.approx(tuple(stats.binomtest(6, 6).proportion_ci(0.95, "wilson")))
