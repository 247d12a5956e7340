"""Relative and effective robustness against hand-computed values and the sums of the authors' code."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap

from fusion_pl.evaluate.corrupt_texts import TEXT_CORRUPTIONS
from fusion_pl.evaluate.corruption import Sweep
from fusion_pl.evaluate.robustness import effective_robustness, relative_robustness, robustness_interval
from fusion_pl.evaluate.robustness_curves import Estimate, SweepCurve


def test_relative_robustness_is_the_area_of_trapezoids():
    # Five trapezoids of width 0.2: (0.9 + 0.8) / 2 + (0.8 + 0.6) / 2 + (0.6 + 0.5) / 2 + 0.5 + 0.5 = 3.1, times 0.2
    assert relative_robustness([0.9, 0.8, 0.6, 0.5, 0.5, 0.5]) == pytest.approx(0.62)
    assert relative_robustness([0.7] * 6) == pytest.approx(0.7)


def test_effective_robustness_is_the_area_between_the_curve_and_the_shifted_baseline():
    # beta = baseline + 0.1: 0.9, 0.7, 0.5, so that the differences are 0, 0.1, 0.3: 0.5 * (0.05 + 0.2)
    assert effective_robustness([0.9, 0.8, 0.8], [0.8, 0.6, 0.4]) == pytest.approx(0.125)
    assert effective_robustness([0.9, 0.8, 0.8], [0.9, 0.8, 0.8]) == 0
    assert effective_robustness([0.9, 0.8], [0.5, 0.4]) == pytest.approx(0), "equal falls are equally robust"


def test_a_metric_that_is_to_be_small_changes_the_sign():
    """A mean absolute error that grows more slowly than that of the baseline is more robust."""
    assert effective_robustness([0.5, 0.6], [0.5, 0.9], "min") == pytest.approx(0.15)


def test_effective_robustness_equals_the_sum_of_the_authors_code_but_for_scale_and_last_term():
    """They sum the differences; the trapezoids count the last one half, and have the width 1 / severities."""
    rng = np.random.default_rng(0)
    curve, baseline = rng.random(6), rng.random(6)
    beta = baseline + (curve[0] - baseline[0])
    total, last = (curve - beta).sum(), (curve - beta)[-1]
    found = effective_robustness(curve.tolist(), baseline.tolist())
    assert found == pytest.approx((total - last / 2) / 5)


def curve_of(correct):
    """A curve of accuracies of n samples with each severity."""
    estimates = [Estimate(float(column.mean()), None, len(column)) for column in correct.T]
    return SweepCurve(Sweep("text", TEXT_CORRUPTIONS[0]), estimates, correct.astype(float))


def test_intervals_are_those_of_scipy_for_the_mean_of_the_areas_of_the_samples():
    rng = np.random.default_rng(0)
    ability, falls = rng.random((400, 1)), np.linspace(0, 0.5, 6)
    model, baseline = (curve_of(ability > rng.random((400, 6)) * 0.5 + slope * falls) for slope in (0.6, 1.0))
    for curve, other in ((model, None), (model, baseline), (baseline, model)):
        areas = np.trapezoid(curve.samples, dx=0.2, axis=1)
        expected = relative_robustness(curve.values)
        if other is not None:
            moved = other.samples - other.samples[:, :1] + curve.samples[:, :1]
            areas = np.trapezoid(curve.samples - moved, dx=0.2, axis=1)
            expected = effective_robustness(curve.values, other.values)
        assert areas.mean() == pytest.approx(expected)
        found = robustness_interval(curve, other)
        reference = bootstrap((areas,), np.mean, method="percentile", rng=np.random.default_rng(1)).confidence_interval
        assert found == pytest.approx(tuple(reference), abs=0.004)
    low, high = robustness_interval(model, baseline)
    assert low > 0, "the model whose ability falls more slowly is the more robust one"
    assert robustness_interval(model, baseline, "min") == pytest.approx((-high, -low), abs=0.005)


def test_a_metric_that_is_no_mean_over_samples_has_no_interval():
    curve = curve_of(np.ones((4, 6)))
    assert robustness_interval(curve._replace(samples=None)) is None
    assert robustness_interval(curve, curve._replace(samples=None)) is None
    assert robustness_interval(curve, curve_of(np.ones((3, 6)))) is None, "not the same samples"
