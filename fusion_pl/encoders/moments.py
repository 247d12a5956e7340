"""Mean and standard deviation of many vectors, in one pass over them."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


class Moments:
    """Mean and standard deviation of each of F numbers, computed chunk by chunk in double precision.

    Source: "Updating formulae and a pairwise algorithm for computing sample variances", Chan, Golub, LeVeque 1979, so
    that large means do not cancel the digits of small deviations.

    Args:
        features: number of numbers F.

    Example:
        >>> moments = Moments(1)
        >>> for chunk in ([[1.0], [3.0]], [[5.0], [math.nan]]):
        ...     moments.update(torch.tensor(chunk, dtype=torch.float64))
        >>> float(moments.mean), round(float(moments.std), 3)
        (3.0, 1.633)
    """

    def __init__(self, features: int) -> None:
        self.count, self.mean, self._squares = torch.zeros(3, features, dtype=torch.float64).unbind()
        self._min = torch.full((features,), math.inf, dtype=torch.float64)
        self._max = -self._min

    def update(self, vectors: Float[Tensor, "N F"]) -> None:
        """Add vectors; NaN = missing number."""
        present = ~vectors.isnan()
        count = present.sum(0)
        mean = vectors.nansum(0) / count.clamp(min=1)
        squares = (vectors - mean).square().nansum(0)
        total, difference = self.count + count, mean - self.mean
        share = count / total.clamp(min=1)
        self._squares = self._squares + squares + difference.square() * self.count * share
        self.mean = self.mean + difference * share
        self.count = total
        self._min = torch.minimum(self._min, vectors.masked_fill(~present, math.inf).amin(0))
        self._max = torch.maximum(self._max, vectors.masked_fill(~present, -math.inf).amax(0))

    @property
    def std(self) -> Float[Tensor, " F"]:
        """Standard deviation of the numbers so far; 1 if all of them are equal, or there are none."""
        std = (self._squares / self.count.clamp(min=1)).sqrt()
        return std.masked_fill((self._min >= self._max) | (std == 0), 1)
