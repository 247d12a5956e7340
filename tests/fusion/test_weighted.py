from __future__ import annotations

import math

import pytest
import torch

from fusion_pl.fusion import Mean, Weighted
from fusion_pl.types import UserError

PRESENT = [[1, 1, 1], [0, 1, 1], [1, 0, 1], [0, 0, 1], [0, 0, 0]]


def share(weights: list[float], table: list[int]) -> list[float]:
    total = sum(weight for weight, has in zip(weights, table, strict=True) if has)
    return [weight / total if has else 0.0 for weight, has in zip(weights, table, strict=True)]


def projected(head, inputs, row):
    return [
        head.projection[name].linear(head.projection[name].norm(one.embedding[row])) for name, one in inputs.items()
    ]


def test_fixed_weights_are_normalised_over_the_present(dims, make):
    given = [3.0, 1.0, 0.5]
    head = Weighted(dims, num_classes=4, weights=dict(zip(dims, given, strict=True)), dim=7).double().eval()
    inputs = make(PRESENT)
    fused = head(inputs)
    for row, table in enumerate(PRESENT):
        weights = share(given, table)
        # The weights are stored as logarithms in single precision.
        torch.testing.assert_close(fused.weights[row], torch.tensor(weights).double(), rtol=1e-6, atol=0)
        embeddings = projected(head, inputs, row)
        expected = sum(weight * embedding for weight, embedding in zip(weights, embeddings, strict=True))
        torch.testing.assert_close(fused.embedding[row], expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(fused.logits[row], head.classifier(fused.embedding[row]))


def test_the_order_in_the_configuration_does_not_matter(dims, make):
    given = {name: float(i) for i, name in enumerate(dims, start=1)}
    other = dict(reversed(given.items()))
    first, second = (Weighted(dims, 4, weights=weights).double()(make(PRESENT)).weights for weights in (given, other))
    assert torch.equal(first, second)


def test_equal_weights_are_the_mean(dims, make):
    mean = Mean(dims, num_classes=4).double().eval()
    head = Weighted(dims, num_classes=4, weights=dict.fromkeys(dims, 2.0)).double().eval()
    head.load_state_dict(mean.state_dict())
    torch.testing.assert_close(head(make(PRESENT)), mean(make(PRESENT)))


def test_an_input_of_weight_zero_counts_only_if_no_other_is_present(dims, make):
    first, second, third = dims
    head = Weighted(dims, num_classes=4, weights={first: 1.0, second: 0.0, third: 0.0}).double().eval()
    weights = head(make([[1, 1, 1], [0, 1, 1], [0, 1, 0]])).weights
    assert weights.tolist() == [[1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.0, 1.0, 0.0]]


def test_global_weights_are_a_softmax_over_the_present(dims, make):
    head = Weighted(dims, num_classes=4, weights="global").double().eval()
    with torch.no_grad():
        head.weighting.offset.copy_(torch.tensor([0.5, -1.0, 2.0]))
    weights = head(make(PRESENT)).weights
    for row, table in enumerate(PRESENT[:-1]):
        expected = share([math.exp(0.5), math.exp(-1.0), math.exp(2.0)], table)
        torch.testing.assert_close(weights[row], torch.tensor(expected).double())


def test_sample_weights_equal_their_formula(dims, make):
    head = Weighted(dims, num_classes=4, dim=7).double().eval()
    inputs = make(PRESENT)
    weights = head(inputs).weights
    hidden, _, score = head.weighting.gate
    for row, table in enumerate(PRESENT[:-1]):
        scores = [
            (offset + score.weight[0] @ torch.tanh(hidden.weight @ embedding + hidden.bias)).item()
            for offset, embedding in zip(head.weighting.offset, projected(head, inputs, row), strict=True)
        ]
        torch.testing.assert_close(weights[row], torch.tensor(share([math.exp(one) for one in scores], table)).double())
    assert not torch.allclose(weights[0], head(make(PRESENT, seed=1)).weights[0])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"título": 1.0}, "weights for título, but the model's inputs are título, my photo, voice-2"),
        ({"título": 1.0, "my photo": 1.0, "voice": 1.0}, "weights for título, my photo, voice, but"),
        ({}, "weights for no input, but"),
        (
            {"título": 1.0, "my photo": -1.0, "voice-2": 1.0},
            r"weight of my photo is -1\.0, expected a number that is 0",
        ),
        ({"título": 1.0, "my photo": math.inf, "voice-2": 1.0}, "weight of my photo is inf"),
        ({"título": 0.0, "my photo": 0.0, "voice-2": 0.0}, "weights are all 0: give at least one"),
    ],
)
def test_refuses_weights_that_do_not_match_the_inputs(dims, weights, message):
    with pytest.raises(UserError, match=message):
        Weighted(dims, num_classes=4, weights=weights)
