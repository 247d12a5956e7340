"""Relative and effective robustness against hand-computed values and the sums of the authors' code."""

from __future__ import annotations

import numpy as np
import pytest

from fusion_pl.evaluate.robustness import effective_robustness, relative_robustness


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
