"""Relative and effective robustness of a curve of a metric over severities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fusion_pl.evaluate.robustness_curves import SweepCurve, mean_interval


def relative_robustness(curve: Sequence[float]) -> float:
    r"""Return the area :math:`\int m(s) ds` under the curve of a metric m over the severity, scaled to [0, 1].

    The integral is that of the lines between the measured severities, which have equal distances. It is the mean of the
    metric over severities: that of a model that no severity harms is its clean metric.

    Source: "MultiBench", arXiv:2107.07502, and ``eval_scripts/robustness.py`` of its authors. Deviations: there a
    severity is the strength of a mixture of corruptions, in steps of 0.1, and the released code then scales the areas
    of the model and of a fixed list of methods to [0, 1]; here an area stays in the unit of the metric.

    Args:
        curve: metric with severity 0, 1, … .

    Example:
        >>> relative_robustness([1.0, 1.0, 1.0])
        1.0
    """
    return float(np.trapezoid(curve, np.linspace(0, 1, len(curve))))


def effective_robustness(
    curve: Sequence[float], baseline: Sequence[float], mode: Literal["max", "min"] = "max"
) -> float:
    r"""Return how much more robust a model is than a baseline, after their clean metrics are made equal.

    :math:`\int m(s) - β(s)\, ds` with :math:`β(s) = b(s) + m(0) - b(0)` and the metric b of the baseline. Positive: the
    metric falls less than that of the baseline.

    Source: as of ``relative_robustness``. Deviations: there the baseline is always late fusion, and the released code
    sums the differences over the severities instead of integrating them, and then scales as above.

    Args:
        curve: metric with severity 0, 1, … .
        baseline: metric of the baseline with the same severities.
        mode: whether a larger (``max``) or smaller (``min``) metric is better, which changes the sign.

    Example:
        >>> effective_robustness([0.9, 0.9, 0.9], [0.8, 0.8, 0.8])
        0.0
    """
    values, others = np.array(curve), np.array(baseline)
    differences = (values - values[0]) - (others - others[0])
    return relative_robustness((differences if mode == "max" else -differences).tolist())


def robustness_interval(
    curve: SweepCurve, baseline: SweepCurve | None = None, mode: Literal["max", "min"] = "max"
) -> tuple[float, float] | None:
    """Return the 95 % interval of relative robustness, or against a baseline of effective robustness.

    If the metric is a mean over samples, so are both: the bootstrap is that of the areas of the samples, paired with
    those of the baseline.

    Args:
        curve: curve of the model.
        baseline: curve of the baseline on the same samples; None = relative robustness.
        mode: as of ``effective_robustness``.

    Returns:
        Lower and upper bound; None if the metric is no mean over samples.
    """
    values = curve.samples
    if values is None or (
        baseline is not None and (baseline.samples is None or baseline.samples.shape != values.shape)
    ):
        return None
    if baseline is None or baseline.samples is None:
        areas = [relative_robustness(row) for row in values.tolist()]
    else:
        rows = zip(values.tolist(), baseline.samples.tolist(), strict=True)
        areas = [effective_robustness(row, other, mode) for row, other in rows]
    return mean_interval(np.array(areas))
