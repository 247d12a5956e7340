"""Split-conformal prediction: sets that contain the class, or all labels, of a sample with a given probability."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest
from torch import Tensor

from fusion_pl.types import UserError


def conformity_scores(probabilities: Float[Tensor, "N C"], exclusive_classes: bool = True) -> Float[Tensor, "N C"]:
    r"""Return the score of each class, which is in the set :math:`\{c: s_c \le q\}`.

    The score of APS: the sum of the probabilities of all classes that are more probable. A set has the most probable
    classes, until the sum of their probabilities exceeds q; it is never empty. Of equally probable classes, the first
    counts as more probable. If a sample may have several labels, the score is :math:`1 - p_c`, and a set may be empty.

    Source: adaptive prediction sets, "Classification with Valid and Adaptive Coverage", arXiv:2006.02544. Deviation: no
    randomisation, so that equal samples have equal sets. If the most probable class is right more often than the
    coverage asks, sets of one class cover more than that; otherwise the coverage is that of the paper. RAPS
    (arXiv:2009.14193) has two more numbers, which would have to be chosen on other samples.
    """
    if not exclusive_classes:
        return 1 - probabilities.double()
    ordered, order = probabilities.double().sort(stable=True, dim=-1, descending=True)
    before = (ordered.cumsum(-1) - ordered).clamp(min=0)
    return torch.zeros_like(before).scatter(-1, order, before)


def sample_scores(
    probabilities: Float[Tensor, "N C"], target: Int[Tensor, "N ..."], exclusive_classes: bool = True
) -> Float[Tensor, " N"]:
    """Return the largest score of the classes that each sample has; 0 if it has none, since every set covers it.

    Labels that are unknown (-1) are left out.
    """
    scores = conformity_scores(probabilities, exclusive_classes)
    if exclusive_classes:
        return scores.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return scores.where(target == 1, 0.0).amax(-1)


def conformal_quantile(scores: Float[Tensor, " N"], coverage: float) -> float:
    """Return the ⌈(n + 1) · coverage⌉-th smallest score of n samples; infinity if there are too few samples.

    Example:
        >>> conformal_quantile(torch.arange(9.0), 0.5)
        4.0
    """
    rank = math.ceil(round((len(scores) + 1) * coverage, 9))  # 0.9 * 10 is not 9 in floating point
    return float(scores.sort().values[rank - 1]) if rank <= len(scores) else math.inf


def set_thresholds(
    scores: Float[Tensor, " N"], target: Int[Tensor, " N"] | None, num_classes: int, coverage: float, by_class: bool
) -> Float[Tensor, " C"]:
    """Return the largest score of each class that is in a set.

    Args:
        scores: ``sample_scores`` of the validation samples.
        target: their classes; None if a sample may have several labels.
        num_classes: number of classes C.
        coverage: probability that a set contains the class, or all labels, of its sample, in (0, 1).
        by_class: whether this holds in each class (Mondrian). A class with too few samples is in every set.

    Raises:
        UserError: if the coverage is no probability, or there are too few samples for it.
    """
    check_share("coverage", coverage)
    if by_class and target is not None:
        quantiles = [conformal_quantile(scores[target == index], coverage) for index in range(num_classes)]
    else:
        quantiles = [conformal_quantile(scores, coverage)] * num_classes
    if all(math.isinf(quantile) for quantile in quantiles):
        needed = math.ceil(round(coverage / (1 - coverage), 9))
        place = " in each class" if by_class else ""
        raise UserError(
            f"a coverage of {coverage} needs at least {needed} validation samples{place}, and the checkpoint has the "
            f"scores of {len(scores)} in all: give a smaller coverage, or train with a larger validation split"
        )
    return torch.tensor(quantiles, dtype=torch.float64)


def check_share(name: str, value: float) -> None:
    """Raise a ``UserError`` if a share is not above 0 and below 1."""
    if not 0 < value < 1:
        raise UserError(f"{name} is {value}, expected a share above 0 and below 1, such as 0.9")


def prediction_sets(
    probabilities: Float[Tensor, "N C"], thresholds: Float[Tensor, " C"], exclusive_classes: bool = True
) -> Bool[Tensor, "N C"]:
    """Return which classes the set of each sample has."""
    return conformity_scores(probabilities, exclusive_classes) <= thresholds.to(probabilities.device)


def measure_coverage(covered: Bool[Tensor, " N"]) -> dict[str, Any]:
    """Return the share of samples whose class is in their set, and its 95 % interval (Clopper-Pearson)."""
    count, total = int(covered.sum()), len(covered)
    interval = binomtest(count, total).proportion_ci(0.95, method="exact") if total else (math.nan, math.nan)
    return {"samples": total, "coverage": count / total if total else math.nan, "interval": [*map(float, interval)]}
