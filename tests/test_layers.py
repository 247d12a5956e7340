from __future__ import annotations

import math

import pytest
import torch

from fusion_pl.layers import (
    EmbeddingProjection,
    InputWeights,
    Projection,
    UnimodalClassifiers,
    log_softplus,
    masked_max,
    masked_mean,
    masked_softmax,
    mlp,
    scatter_rows,
    signed_sqrt,
    sum_pairwise_products,
    upcast,
)
from fusion_pl.types import Encoded, UserError

NAN = float("nan")
# 0 where a real value stands, NaN where the mask forbids to look.
MASK = torch.tensor([[True, True, False], [False, True, False], [False, False, False]])


@pytest.fixture
def values():
    drawn = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 5
    return drawn.masked_fill(~MASK.unsqueeze(-1), NAN)


@pytest.mark.parametrize(("pool", "plain"), [(masked_mean, lambda x: x.mean(0)), (masked_max, lambda x: x.amax(0))])
def test_masked_pooling_reads_real_entries_only(values, pool, plain):
    embedding = pool(values, MASK)
    for row in range(3):
        kept = values[row][MASK[row]]
        expected = plain(kept) if len(kept) else torch.zeros(4, dtype=torch.float64)
        torch.testing.assert_close(embedding[row], expected)


@pytest.mark.parametrize("pool", [masked_mean, masked_max])
def test_masked_pooling_has_a_finite_gradient(values, pool):
    values.requires_grad_()
    pool(values, MASK).sum().backward()
    assert values.grad.isfinite().all()
    assert (values.grad[~MASK] == 0).all()


def test_masked_softmax_is_a_softmax_over_real_entries(values):
    scores = values[:, :, 0]
    weights = masked_softmax(scores, MASK)
    for row in range(3):
        assert (weights[row][~MASK[row]] == 0).all()
        torch.testing.assert_close(weights[row][MASK[row]], scores[row][MASK[row]].softmax(-1))


def test_scatter_rows_restores_the_order_of_the_batch():
    tokens = torch.arange(1.0, 13.0).view(2, 3, 2)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    rows = Encoded(tokens, mask, tokens[:, 0], tokens[:, 0] * 2)
    placed = scatter_rows(rows, torch.tensor([False, True, False, True]))
    for of, to in ((0, 1), (1, 3)):
        assert torch.equal(placed.tokens[to], tokens[of])
        assert torch.equal(placed.mask[to], mask[of])
        assert torch.equal(placed.embedding[to], tokens[of, 0])
        assert torch.equal(placed.layer_weights[to], tokens[of, 0] * 2)
    for missing in (0, 2):
        assert not placed.mask[missing].any()
        assert not placed.tokens[missing].any()
        assert not placed.embedding[missing].any()


def test_scatter_rows_ignores_the_blank_row_of_an_input_without_samples():
    blank = Encoded(torch.full((1, 3, 2), NAN), torch.ones(1, 3, dtype=torch.bool), torch.full((1, 2), NAN))
    placed = scatter_rows(blank, torch.zeros(4, dtype=torch.bool))
    assert placed.tokens.shape == (4, 3, 2)
    assert not placed.mask.any()
    assert not placed.tokens.any()
    assert not placed.embedding.any()


@pytest.mark.parametrize("shape", [(2, 1, 3), (2, 2, 3), (2, 4, 3, 5)])
def test_sum_pairwise_products_sums_over_all_pairs(shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.zeros_like(values[:, 0])
    for m in range(shape[1]):
        for n in range(m + 1, shape[1]):
            expected += values[:, m] * values[:, n]
    torch.testing.assert_close(sum_pairwise_products(values), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_sum_pairwise_products_of_a_single_vector_is_zero(dtype):
    alone = torch.zeros(5, 3, 100, dtype=dtype)
    alone[:, 1] = torch.randn(5, 100, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(sum_pairwise_products(alone), torch.zeros(5, 100, dtype=dtype))


def test_sum_pairwise_products_in_half_precision_keeps_small_products():
    values = torch.tensor([[[12.0], [0.01]]], dtype=torch.bfloat16)
    product = values[:, 0] * values[:, 1]
    torch.testing.assert_close(sum_pairwise_products(values), product, rtol=0.01, atol=0)


def test_signed_sqrt_keeps_the_sign():
    values = torch.tensor([-400.0, -9.0, 0.0, 4.0, 10000.0], dtype=torch.float64)
    expected = torch.tensor([-20.0, -3.0, 0.0, 2.0, 100.0], dtype=torch.float64)
    torch.testing.assert_close(signed_sqrt(values), expected, rtol=1e-4, atol=0)


def test_signed_sqrt_is_linear_at_zero():
    values = torch.tensor([-1e-9, 0.0, 1e-9], dtype=torch.float64, requires_grad=True)
    signed_sqrt(values, epsilon=0.01).sum().backward()
    torch.testing.assert_close(values.grad, torch.full((3,), 10.0, dtype=torch.float64), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_upcast_converts_half_precision_only(given, expected):
    values = torch.tensor([1.5, -2.25], dtype=given)
    assert upcast(values).dtype == expected
    assert upcast(values).tolist() == values.tolist()


def test_log_softplus_does_not_underflow():
    values = torch.tensor([-3000.0, -104.0, -31.0, -29.0, -3.0, 0.0, 5.0, 400.0], requires_grad=True)
    found = log_softplus(values)
    expected = [math.log(math.log1p(math.exp(x))) if x > -700 else x for x in values.tolist()]
    torch.testing.assert_close(found, torch.tensor(expected))
    found.sum().backward()
    # d/dx log softplus(x) = sigmoid(x) / softplus(x), which goes from 1 to 0
    slopes = [1 / (1 + math.exp(-x)) / math.log1p(math.exp(x)) if x > -700 else 1.0 for x in values.tolist()]
    torch.testing.assert_close(values.grad, torch.tensor(slopes))


def test_projection_is_a_linear_layer_after_layer_norm(values):
    layer = Projection(4, 6).double()
    projected = layer(values, MASK)
    for row, column in MASK.nonzero().tolist():
        x = values[row, column]
        normed = (x - x.mean()) / (((x - x.mean()) ** 2).mean() + layer.norm.eps).sqrt()
        torch.testing.assert_close(projected[row, column], layer.linear.weight @ normed + layer.linear.bias)
    assert (projected[~MASK] == 0).all()


def test_embedding_projection_stacks_in_the_order_of_dims():
    layer = EmbeddingProjection({"b": 4, "a": 2}, dim=3)
    real = torch.ones(5, 1, dtype=torch.bool)
    inputs = {"a": Encoded(torch.ones(5, 1, 2), real, torch.ones(5, 2))}
    inputs["b"] = Encoded(torch.ones(5, 1, 4), ~real, torch.ones(5, 4))
    stacked = layer(inputs)
    assert stacked.shape == (5, 2, 3)
    assert (stacked[:, 0] == 0).all()
    torch.testing.assert_close(stacked[:, 1], layer["a"](inputs["a"].embedding, real[:, 0]))


def test_mlp_has_dropout_between_its_layers():
    layer = mlp(3, 5, 2, dropout=0.5)
    x = torch.randn(4, 3)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    first, _, _, last = layer
    torch.testing.assert_close(layer(x), last(torch.nn.functional.gelu(first(x))))


def test_input_weights_are_normalised_logarithms():
    weigh = InputWeights(["a", "b", "c"], dim=2, weights={"c": 3.0, "a": 1.0, "b": 0.0})
    present = torch.tensor([[True, True, True], [False, True, True], [False, True, False]])
    shares = weigh(torch.zeros(3, 3, 2), present).exp()
    torch.testing.assert_close(shares, torch.tensor([[0.25, 0, 0.75], [0, 0, 1], [0, 1, 0]]))
    assert not list(weigh.parameters())


def test_input_weights_without_any_input_have_a_finite_gradient():
    weigh = InputWeights(["a", "b"], dim=2, weights="sample")
    weigh(torch.randn(1, 2, 2), torch.zeros(1, 2, dtype=torch.bool)).exp().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in weigh.parameters())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("sampled", "weights: 'sampled', expected global, sample, or a number per input: {a: 1.0, b: 1.0}"),
        ({"a": 1.0}, "weights for a, but the model's inputs are a, b"),
        ({"a": 1.0, "b": math.nan}, "weight of b is nan, expected a number that is 0 or more"),
    ],
)
def test_input_weights_refuse_invalid_weights(weights, message):
    with pytest.raises(UserError, match=message):
        InputWeights(["a", "b"], dim=2, weights=weights)


def test_unimodal_classifiers_return_zeros_for_missing_inputs():
    classifiers = UnimodalClassifiers({"b": 4, "a": 2}, num_classes=3, dim=5, dropout=0.5).double()
    drawn = torch.randn(4, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    masks = {"a": torch.tensor([True, True, False, False]), "b": torch.tensor([True, False, True, False])}
    widths = {"a": 2, "b": 4}
    vectors = {name: drawn[:, i, : widths[name]] for i, name in enumerate(masks)}
    inputs = {}
    for name, mask in masks.items():
        blank = vectors[name].masked_fill(~mask.unsqueeze(-1), NAN)
        inputs[name] = Encoded(blank.unsqueeze(1), mask.unsqueeze(1), blank)
    assert not torch.equal(classifiers(inputs), classifiers(inputs)), "hidden channels are dropped in training"
    found = classifiers.eval()(inputs)
    for m, name in enumerate(("b", "a")):
        part, classify = classifiers.projection[name], classifiers.classifier[name]
        for row in range(4):
            x = vectors[name][row]
            normed = (x - x.mean()) / (((x - x.mean()) ** 2).mean() + part.norm.eps).sqrt()
            hidden = torch.nn.functional.gelu(part.linear.weight @ normed + part.linear.bias)
            expected = classify.weight @ hidden + classify.bias
            torch.testing.assert_close(found[row, m], expected if masks[name][row] else torch.zeros(3).double())
    found.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in classifiers.parameters())
