"""Tests whether a model is worse on a group of rows than on the others."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

NUM_PERMUTATIONS = 100_000


def group_p_value(errors: Float[NDArray[np.float64], " N"], in_group: Bool[NDArray[np.bool_], " N"]) -> float:
    r"""Return the one-sided p-value of a permutation test: is the mean error of the group larger than that of a draw?

    If the rows of the group were drawn at random from all N rows without replacement, the probability that their errors
    sum to at least those of the group. Errors of 0 and 1 have the exact, hypergeometric probability, which is that of
    Fisher's exact test. Otherwise ``NUM_PERMUTATIONS`` draws are made, from a generator with a fixed seed: of how many
    rows each distinct error has, since rows with equal errors are interchangeable. Of R draws of which r reach the sum
    of the group, the p-value is :math:`(r + 1) / (R + 1)`, whose level is exact.

    Source: Fisher 1935, *The Design of Experiments*; Phipson and Smyth 2010, *Permutation P-values Should Never Be
    Zero*, for the 1 that is added.

    Args:
        errors: error of each row.
        in_group: whether each row is in the group.

    Example:
        >>> errors = np.array([1.0, 1.0, 0.0, 0.0, 0.0])
        >>> round(group_p_value(errors, errors == 1), 6)  # 1 of the 10 pairs
        0.1
    """
    distinct, counts = np.unique(errors, return_counts=True)
    size = int(in_group.sum())
    if len(distinct) <= 1 or size in (0, len(errors)):
        return 1.0
    if len(distinct) == 2:
        from scipy.stats import hypergeom  # slow to import

        larger = int((errors[in_group] == distinct[1]).sum())
        return float(hypergeom.sf(larger - 1, len(errors), int(counts[1]), size))
    generator = np.random.default_rng(0)
    drawn = generator.multivariate_hypergeometric(counts, size, NUM_PERMUTATIONS, method="marginals")
    observed = float(errors[in_group].sum())
    reached = int((drawn @ distinct >= observed - 1e-9 * max(1.0, abs(observed))).sum())
    return (reached + 1) / (NUM_PERMUTATIONS + 1)
