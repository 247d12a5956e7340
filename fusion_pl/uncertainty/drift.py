"""Distribution drift: how far the distribution of a quantity is from that of the validation samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from scipy.stats import chi2_contingency
from torch import Tensor

from fusion_pl.tasks import Task

MAX_CATEGORIES = 50  # bins of a histogram of categories; all others are counted together
MIN_EXPECTED = 5
NUM_QUANTILES = 10


class Drift(NamedTuple):
    """Difference between a histogram of n samples and that of m validation samples.

    Attributes:
        psi: population stability index.
        psi_by_chance: its mean without drift.
        p_value: p-value of the test for a difference; 1 if there are too few samples for a test.
        groups: number of bins that are compared; 1 = there are too few samples.
    """

    psi: float
    psi_by_chance: float
    p_value: float
    groups: int


def measure_drift(reference: Sequence[int], window: Sequence[int]) -> Drift:
    r"""Compare a histogram with that of the validation samples, which has the same bins.

    The population stability index of the shares :math:`q_b` of n samples and :math:`p_b` of m validation samples in B
    bins is their symmetric Kullback-Leibler divergence:

    :math:`\mathrm{PSI} = \sum_b (q_b - p_b) \ln (q_b / p_b)`

    Usual words are *small* below 0.1 and *large* above 0.25. Without drift, :math:`\mathrm{PSI} / (1/n + 1/m)` is
    approximately chi-square distributed with B - 1 degrees of freedom, so that PSI is :math:`(B - 1)(1/n + 1/m)` on
    average: a small window has a PSI above 0.1 by chance. The p-value is that of Pearson's chi-square test of
    homogeneity, which allows for the sizes of both samples.

    Neighbouring bins are merged until each has at least five expected samples in both, by the counts of both together.
    PSI has half a sample more in each bin, because the logarithm of an empty one is infinite.

    Source: "Statistical Properties of Population Stability Index", Yurdakul 2018, Western Michigan University; at least
    five expected samples: "Some Methods for Strengthening the Common χ² Tests", Cochran 1954.

    Args:
        reference: number of validation samples per bin.
        window: number of samples per bin.

    Example:
        >>> measure_drift([500, 500], [52, 48]).p_value > 0.5
        True
        >>> measure_drift([500, 500], [80, 20]).psi > 0.25
        True
    """
    groups = _merge_bins(reference, window)
    if len(groups) < 2:
        return Drift(0.0, 0.0, 1.0, 1)
    counts = torch.tensor(groups, dtype=torch.float64).T
    validation, new = ((row + 0.5) / (row + 0.5).sum() for row in counts)
    chance = (len(groups) - 1) * float((1 / counts.sum(1)).sum())
    p_value = float(chi2_contingency(counts.numpy(), correction=False).pvalue)
    return Drift(float(((new - validation) * (new / validation).log()).sum()), chance, p_value, len(groups))


def _merge_bins(reference: Sequence[int], window: Sequence[int]) -> list[tuple[int, int]]:
    """Return the counts of both histograms in groups of neighbouring bins."""
    sizes = sum(reference), sum(window)
    share = min(sizes) / max(sum(sizes), 1)  # of both samples together, those of the smaller one
    groups: list[tuple[int, int]] = []
    first, second = 0, 0
    for in_reference, in_window in zip(reference, window, strict=True):
        first, second = first + in_reference, second + in_window
        if (first + second) * share >= MIN_EXPECTED:
            groups.append((first, second))
            first, second = 0, 0
    if groups:  # the last bins have too few samples
        groups[-1] = groups[-1][0] + first, groups[-1][1] + second
    return groups


def quantile_cuts(values: Float[Tensor, " N"], bins: int = NUM_QUANTILES) -> list[float]:
    """Return increasing numbers that divide values into bins of about equal size, and the range of all values.

    A cut is never among equal values, or values that differ by rounding errors only, so that the same value is in the
    same bin on another machine. The first and the last cut are just outside the values.
    """
    ordered = values.double().sort().values
    tolerance = 1e-6 + 1e-5 * ordered.abs()
    ranks = (ordered.diff() > 2 * tolerance[1:]).nonzero().squeeze(1) + 1  # numbers of values below possible cuts
    targets = [len(ordered) * k / bins for k in range(1, bins)] if len(ranks) else []
    chosen = sorted({int(ranks[(ranks - target).abs().argmin()]) for target in targets})
    inner = [float(ordered[rank - 1] + ordered[rank]) / 2 for rank in chosen]
    return [float(ordered[0] - tolerance[0]), *inner, float(ordered[-1] + tolerance[-1])]


def count_categories(rows: Shaped[Tensor, "B *K"], name: Callable[[Any], str]) -> dict[str, int]:
    """Return how many rows have each of the 50 most frequent values, most frequent first.

    Args:
        rows: one number or vector per sample.
        name: function that returns the name of a number or of a list of numbers.
    """
    distinct, counts = torch.unique(rows, dim=0, return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:MAX_CATEGORIES]
    return {name(distinct[index].tolist()): int(counts[index]) for index in order}


def decision_name(task: Task, classes: Sequence[str], target: Any) -> str:
    """Return the name of a predicted class, or of labels joined by ``+``."""
    return "+".join(task.class_names(target, classes)) or "no label"


def inputs_name(inputs: Sequence[str], present: Sequence[bool]) -> str:
    """Return the names of the inputs that a sample has, joined by ``+``."""
    return "+".join(name for name, is_present in zip(inputs, present, strict=True) if is_present)
