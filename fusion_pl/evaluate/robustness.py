"""Relative and effective robustness of a curve of a metric over severities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np


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
