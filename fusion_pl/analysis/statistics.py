"""The statistics of a comparison: intervals, a paired test, its correction, and the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np
from jaxtyping import Shaped
from numpy.typing import NDArray

LEVEL = 0.95  # of every interval
DRAWS = 2_000  # of the bootstrap: its ends are then exact to about two hundredths of the interval's width
Correct = Shaped[NDArray[np.int64], "S N"]


def accuracy_interval(correct: Correct) -> tuple[float, float]:
    r"""Return the 95 % interval of an accuracy: what other samples like these, and other seeds, could have given.

    One seed: Wilson's interval, of the samples alone. Several seeds: the bootstrap over samples and seeds, and nowhere
    narrower than Wilson's interval of the mean, since rows that are all right can only be drawn again as all right: 6
    of 6 would be 100 % without a kl_weight.

    Args:
        correct: 1 where a seed's run classified a sample rightly, else 0.

    Returns:
        Lower and upper end, 0 to 1.

    Example:
        >>> [round(end, 2) for end in accuracy_interval(np.ones((3, 6), dtype=np.int64))]
        [0.61, 1.0]
    """
    low, high = wilson(float(correct.mean()), correct.shape[1])
    if len(correct) == 1:
        return low, high
    drawn_low, drawn_high = bootstrap(correct)
    return min(low, drawn_low), max(high, drawn_high)


def wilson(share: float, count: int) -> tuple[float, float]:
    r"""Return Wilson's interval of a share: :math:`\frac{p + z²/2n ± z\sqrt{p(1-p)/n + z²/4n²}}{1 + z²/n}`.

    Source: Wilson 1927, *Probable inference, the law of succession, and statistical inference*. It is computed here,
    because scipy's wants a whole number of hits, and a mean over seeds is none.

    Args:
        share: p, 0 to 1.
        count: n, of samples.
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    middle = share + z * z / (2 * count)
    half = z * float(np.sqrt(share * (1 - share) / count + z * z / (4 * count * count)))
    whole = 1 + z * z / count
    return max(0.0, (middle - half) / whole), min(1.0, (middle + half) / whole)


def bootstrap(correct: Correct) -> tuple[float, float]:
    """Return the percentile interval of the mean when both seeds and samples are drawn again, with replacement.

    Source: Owen 2007, *The pigeonhole bootstrap* (arXiv:0712.1111). Samples that the same seeds got right are
    interchangeable, so it draws how many there are of each such pattern: the same distribution, but far less work than
    drawing every sample. The draws are seeded: the same runs give the same interval.

    Args:
        correct: as ``accuracy_interval`` takes it.
    """
    generator = np.random.default_rng(0)
    seeds, samples = correct.shape
    patterns, counts = np.unique(correct, axis=1, return_counts=True)
    drawn_samples = generator.multinomial(samples, counts / samples, size=DRAWS)
    drawn_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=DRAWS)
    means = np.einsum("ds,sp,dp->d", drawn_seeds, patterns, drawn_samples, optimize=True) / (seeds * samples)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def signed_rank(differences: Shaped[NDArray[np.int64], " N"]) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test; 1 where nothing differs.

    Source: Wilcoxon 1945, *Individual comparisons by ranking methods*.
    """
    from scipy.stats import wilcoxon  # a second of import that only the report needs

    return float(wilcoxon(differences).pvalue) if differences.any() else 1.0


def holm(values: Mapping[str, float]) -> dict[str, float]:
    r"""Correct p-values for their number: the chance that even one of those below α is a false alarm stays below α.

    Of the sorted values :math:`p_1 \le … \le p_m`, the k-th becomes :math:`\max_{j \le k} \min(1, (m - j + 1)\, p_j)`.

    Source: Holm 1979, *A simple sequentially rejective multiple test procedure*.

    Example:
        >>> holm({"a": 0.01, "b": 0.5, "c": 0.02})
        {'a': 0.03, 'c': 0.04, 'b': 0.5}
    """
    corrected, largest = {}, 0.0
    for rank, name in enumerate(sorted(values, key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[name]))
        corrected[name] = largest
    return corrected


def pareto(points: Mapping[str, tuple[float, float]]) -> set[str]:
    """Return the labels that nobody beats: none is as accurate and as cheap, and better in one of the two.

    Args:
        points: label -> (accuracy, cost).

    Example:
        >>> sorted(pareto({"small": (0.8, 1.0), "large": (0.9, 5.0), "waste": (0.8, 5.0)}))
        ['large', 'small']
    """
    return {
        name
        for name, (accuracy, cost) in points.items()
        if not any(a >= accuracy and c <= cost and (a, c) != (accuracy, cost) for a, c in points.values())
    }
