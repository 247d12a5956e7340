"""Shapley values and interactions, compared with slow restatements of their definitions."""

from __future__ import annotations

import math
from itertools import combinations, permutations

import pytest
import torch

from fusion_pl.explain.shapley import MAX_EXACT, exact_shapley, sampled_shapley, shapley


def game(num_inputs, seed=0):
    """A random value for each subset, as a function of masks and as a dictionary."""
    values = torch.rand(2**num_inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    def of_masks(masks):
        return values[(masks * 2 ** torch.arange(num_inputs)).sum(1)]

    def of_set(members):
        return values[sum(2**member for member in members)].item()

    return of_masks, of_set


def slow_shapley(f, n):
    """The mean contribution over all orders of the inputs."""
    totals = [0.0] * n
    for order in permutations(range(n)):
        for place, i in enumerate(order):
            totals[i] += f(order[: place + 1]) - f(order[:place])
    return [total / math.factorial(n) for total in totals]


def slow_interaction(f, n, i, j):
    total, rest = 0.0, [k for k in range(n) if k not in (i, j)]
    for size in range(n - 1):
        weight = math.factorial(size) * math.factorial(n - size - 2) / math.factorial(n - 1)
        for s in combinations(rest, size):
            total += weight * (f((*s, i, j)) - f((*s, i)) - f((*s, j)) + f(s))
    return total


@pytest.mark.parametrize("n", range(1, MAX_EXACT + 1))
def test_values_and_interactions_equal_their_definitions(n):
    f, f_of_set = game(n)
    result = shapley(f, n)
    assert result.standard_errors is None
    assert result.values.tolist() == pytest.approx(slow_shapley(f_of_set, n))
    assert result.values.sum().item() == pytest.approx(f_of_set(range(n)) - f_of_set(()))
    for i in range(n):
        for j in range(n):
            expected = 0.0 if i == j else slow_interaction(f_of_set, n, i, j)
            assert result.interactions[i, j].item() == pytest.approx(expected)


def test_an_additive_game_has_its_terms_and_no_interactions():
    weights = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)
    result = exact_shapley(lambda masks: 7 + masks.double() @ weights, 3)
    assert torch.allclose(result.values, weights)
    assert result.interactions.abs().max() < 1e-12


def test_a_conjunction_is_shared_equally_and_interacts():
    """f = 1 if both of two inputs are present; the third has no effect."""
    result = exact_shapley(lambda masks: (masks[:, 0] & masks[:, 1]).double(), 3)
    assert torch.allclose(result.values, torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64))
    assert result.interactions[0, 1].item() == pytest.approx(1)


def test_sampled_values_lie_within_their_standard_errors():
    n = MAX_EXACT + 1
    f, f_of_set = game(n, seed=1)
    exact, sampled = exact_shapley(f, n), shapley(f, n)
    assert sampled.standard_errors is not None
    assert sampled.values.sum().item() == pytest.approx(f_of_set(range(n)) - f_of_set(()))
    assert ((sampled.values - exact.values).abs() < 4 * sampled.standard_errors).all()
    pairs = ~torch.eye(n, dtype=torch.bool)
    differences, errors = (sampled.interactions - exact.interactions)[pairs], sampled.interaction_errors[pairs]
    assert (differences.abs() < 4 * errors).all()
    assert (errors > 0).all()


def test_standard_errors_are_the_spread_of_repeated_estimates():
    f, _ = game(6, seed=2)
    results = [sampled_shapley(f, 6, num_permutations=64, seed=seed) for seed in range(200)]
    for values, errors in (
        ([result.values for result in results], [result.standard_errors for result in results]),
        ([result.interactions for result in results], [result.interaction_errors for result in results]),
    ):
        spread, promised = torch.stack(values).std(0), torch.stack(errors).mean(0)
        real = spread > 1e-12
        assert torch.allclose(spread[real], promised[real], rtol=0.25)
