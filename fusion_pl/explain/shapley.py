"""Shapley values and interactions of the inputs of one sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import comb

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MAX_EXACT = 5  # number of inputs up to which all subsets are computed
NUM_PERMUTATIONS = 256

# subsets, one row per subset, True = the subset contains the input -> value of each subset
Value = Callable[[Bool[Tensor, "S M"]], Float[Tensor, " S"]]


@dataclass(frozen=True)
class Shapley:
    """Shapley values and interactions of M inputs.

    Attributes:
        values: Shapley value of each input; their sum is f(all inputs) - f(no input).
        interactions: Shapley interaction index of each pair of inputs, symmetric, with zeros on the diagonal; positive
            if two inputs add more together than each of them alone.
        standard_errors: standard error of each value; None if the values are exact.
        interaction_errors: standard error of each interaction; None if they are exact.
    """

    values: Float[Tensor, " M"]
    interactions: Float[Tensor, "M M"]
    standard_errors: Float[Tensor, " M"] | None = None
    interaction_errors: Float[Tensor, "M M"] | None = None


def shapley(value: Value, num_inputs: int) -> Shapley:
    """Compute Shapley values: exactly for at most five inputs, else from random permutations.

    Args:
        value: function f of subsets of the inputs.
        num_inputs: number of inputs M, at least 1.

    Example:
        >>> weights = torch.tensor([1.0, 2.0])
        >>> shapley(lambda subsets: (subsets * weights).sum(1), 2).values
        tensor([1., 2.])
    """
    return exact_shapley(value, num_inputs) if num_inputs <= MAX_EXACT else sampled_shapley(value, num_inputs)


def exact_shapley(value: Value, num_inputs: int) -> Shapley:
    r"""Compute Shapley values and interactions from all 2^M subsets.

    ``φ_i = Σ_S |S|! (M - |S| - 1)! / M! · (f(S ∪ i) - f(S))`` over the subsets S without i

    ``I_ij = Σ_S |S|! (M - |S| - 2)! / (M - 1)! · (f(S ∪ ij) - f(S ∪ i) - f(S ∪ j) + f(S))`` over those without i and j

    Source: "A value for n-person games", Shapley 1953; "An axiomatic approach to the concept of interaction among
    players in cooperative games", Grabisch and Roubens 1999 (Int. J. Game Theory 28).
    """
    codes = torch.arange(2**num_inputs)
    bits = 2 ** torch.arange(num_inputs)
    subsets = (codes.unsqueeze(1) & bits) > 0
    f, sizes = value(subsets), subsets.sum(1)
    values, interactions = f.new_zeros(num_inputs), f.new_zeros(num_inputs, num_inputs)
    for i in range(num_inputs):
        without = codes[~subsets[:, i]]
        values[i] = (_weights(sizes[without], num_inputs).to(f) * (f[without + bits[i]] - f[without])).sum()
        for j in range(i):
            without = codes[~subsets[:, i] & ~subsets[:, j]]
            difference = f[without + bits[i] + bits[j]] - f[without + bits[i]] - f[without + bits[j]] + f[without]
            interactions[i, j] = (_weights(sizes[without], num_inputs - 1).to(f) * difference).sum()
            interactions[j, i] = interactions[i, j]
    return Shapley(values, interactions)


def _weights(sizes: Tensor, num_inputs: int) -> Float[Tensor, " S"]:
    """Return ``|S|! (M - |S| - 1)! / M!`` for subsets of these sizes."""
    table = [1 / (num_inputs * comb(num_inputs - 1, size)) for size in range(num_inputs)]
    return torch.tensor(table, dtype=torch.float64)[sizes]


def sampled_shapley(value: Value, num_inputs: int, num_permutations: int = NUM_PERMUTATIONS, seed: int = 0) -> Shapley:
    r"""Estimate Shapley values and interactions from random permutations of the inputs.

    The contribution of an input to a permutation is ``f(S ∪ i) - f(S)``, with S the inputs before i; its mean over
    permutations is an unbiased estimate of the Shapley value. The second difference of two adjacent inputs, with S the
    inputs before both, is one of their interaction. The Shapley values sum to f(all) - f(none) exactly.

    Source: "Polynomial calculation of the Shapley value based on sampling", Castro et al. 2009.

    Args:
        value: function f of subsets of the inputs.
        num_inputs: number of inputs M.
        num_permutations: number of permutations.
        seed: seed of the permutations.
    """
    generator = torch.Generator().manual_seed(seed)
    orders = torch.rand(num_permutations, num_inputs, generator=generator).argsort(1)
    rank = orders.argsort(1)
    before = rank.unsqueeze(1) < torch.arange(num_inputs + 1).view(1, -1, 1)  # [K, M + 1, M]: the first 0 … M inputs
    second = torch.nn.functional.one_hot(orders[:, 1:], num_inputs).bool()
    swapped = before[:, :-2] | second  # the first k inputs and the one after the next
    everything = torch.cat([before, swapped], dim=1).flatten(0, 1)
    subsets, index = torch.unique(everything, dim=0, return_inverse=True)
    f = value(subsets)[index].view(num_permutations, -1)
    chain, swaps = f[:, : num_inputs + 1], f[:, num_inputs + 1 :]
    contributions = chain.diff(dim=1).gather(1, rank)
    differences = chain[:, 2:] - chain[:, 1:-1] - swaps + chain[:, :-2]
    interactions, errors = _mean_by_pair(orders, differences, num_inputs)
    standard_errors = contributions.std(0) / num_permutations**0.5
    return Shapley(contributions.mean(0), interactions, standard_errors, errors)


def _mean_by_pair(orders: Tensor, differences: Tensor, num_inputs: int) -> tuple[Tensor, Tensor]:
    """Average the second differences of adjacent inputs by pair, and return the means and their standard errors."""
    pairs = torch.stack([orders[:, :-1], orders[:, 1:]]).sort(0).values
    codes = (pairs[0] * num_inputs + pairs[1]).flatten()

    def sum_by_pair(numbers: Tensor) -> Tensor:
        sums = differences.new_zeros(num_inputs**2).index_add(0, codes, numbers.flatten())
        return sums.view(num_inputs, num_inputs)

    counts = sum_by_pair(torch.ones_like(differences))
    means = sum_by_pair(differences) / counts.clamp(min=1)
    squares = sum_by_pair((differences - means.flatten()[codes].view_as(differences)).square())
    errors = (squares / (counts - 1).clamp(min=1) / counts.clamp(min=1)).sqrt()
    return means + means.T, errors + errors.T
