from __future__ import annotations

import itertools

import pytest
import torch

from fusion_pl.fusion import TensorFusion
from fusion_pl.types import UserError

from .reference import PRESENT, gelu, linear, norm, projected_embeddings, randomised, zeros

DIM = 2


def ends_with_one(found):
    return [torch.cat([found.get(m, zeros(DIM)), zeros(1) + 1]) for m in range(3)]


def test_equals_its_formula(dims, make):
    head, inputs = randomised(TensorFusion(dims, num_classes=4, dim=DIM, hidden=6)), make(PRESENT)
    fused = head(inputs)
    for row in range(len(PRESENT)):
        parts = ends_with_one(projected_embeddings(head, inputs, row))
        tensor = [parts[0][i] * parts[1][j] * parts[2][k] for i, j, k in itertools.product(range(DIM + 1), repeat=3)]
        h = gelu(linear(head.joint_layer[0], norm(head.norm, torch.stack(tensor))))
        torch.testing.assert_close(fused.embedding[row], h)
        torch.testing.assert_close(fused.logits[row], linear(head.classifier[1], h))


def test_products_with_a_missing_input_are_zero_and_the_others_unchanged(dims, make):
    head = randomised(TensorFusion(dims, num_classes=4, dim=DIM))
    seen = []
    head.norm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    complete, inputs = make([[1, 1, 1]]), make([[1, 1, 1]])
    inputs["my photo"] = inputs["my photo"]._replace(mask=torch.zeros_like(inputs["my photo"].mask))
    head(complete), head(inputs)
    full, partial = (tensor.view(DIM + 1, DIM + 1, DIM + 1) for tensor in seen)
    assert (full != 0).all()
    assert (partial[:, :DIM] == 0).all()
    assert torch.equal(partial[:, DIM], full[:, DIM])
    first, second, third = ends_with_one(projected_embeddings(head, complete, 0))
    torch.testing.assert_close(full.flatten(), torch.kron(torch.kron(first, second), third))


@pytest.mark.parametrize(
    ("count", "dim", "message"),
    [
        (3, 46, "of 3 inputs with dim=46 makes 103,823 products, more than 100,000: use dim=45 or less, or LowRank"),
        (5, 10, "of 5 inputs with dim=10 makes 161,051 products, more than 100,000: use dim=9 or less, or LowRank"),
        (17, 1, "of 17 inputs with dim=1 makes 131,072 products, more than 100,000: use LowRank"),
    ],
)
def test_refuses_a_tensor_that_is_too_large(count, dim, message):
    many = {f"input {m}": 3 for m in range(count)}
    with pytest.raises(UserError, match=rf"TensorFusion {message}$"):
        TensorFusion(many, num_classes=4, dim=dim)


@pytest.mark.parametrize(("count", "dim"), [(3, 45), (5, 9)])
def test_the_recommended_dim_can_be_built(count, dim):
    many = {f"input {m}": 3 for m in range(count)}
    assert TensorFusion(many, num_classes=4, dim=dim, hidden=1).norm.normalized_shape[0] <= 100_000
