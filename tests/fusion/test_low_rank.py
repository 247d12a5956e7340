from __future__ import annotations

import itertools

import torch

from fusion_pl.fusion import LowRank, TensorFusion

from .reference import PRESENT, mlp, norm, projected_embeddings, randomised, zeros

DIM, RANK = 3, 2


def written_out(head):
    """Write down the tensor that the factors stand for, entry by entry; the last index of an input is its 1."""
    tensor = zeros((DIM + 1,) * 3 + (DIM,))
    for *at, o in itertools.product(range(DIM + 1), range(DIM + 1), range(DIM + 1), range(DIM)):
        for r in range(RANK):
            entry = 1.0
            for m, i in enumerate(at):
                entry *= (head.factors[m, r, i, o] if i < DIM else head.constants[m, r, o]).item()
            tensor[*at, o] += entry
    return tensor


def test_equals_its_formula(dims, make):
    head, inputs = randomised(LowRank(dims, num_classes=4, dim=DIM, rank=RANK)), make(PRESENT)
    fused, tensor = head(inputs), written_out(head)
    for row in range(len(PRESENT)):
        found = projected_embeddings(head, inputs, row)
        first, second, third = (torch.cat([found.get(m, zeros(DIM)), zeros(1) + 1]) for m in range(3))
        z = norm(head.norm, torch.einsum("i,j,k,ijko->o", first, second, third, tensor))
        torch.testing.assert_close(fused.embedding[row], z)
        torch.testing.assert_close(fused.logits[row], mlp(head.classifier, z))


def test_equals_a_linear_layer_over_the_outer_product(dims, make):
    head, inputs = randomised(LowRank(dims, num_classes=4, dim=DIM, rank=RANK)), make(PRESENT)
    other = TensorFusion(dims, num_classes=4, dim=DIM, hidden=DIM).double().eval()
    other.projection.load_state_dict(head.projection.state_dict())
    products = []
    other.norm.register_forward_pre_hook(lambda _, given: products.append(given[0]))
    other(inputs)
    y = products[0] @ written_out(head).flatten(0, 2)
    for row in range(len(PRESENT)):
        torch.testing.assert_close(head(inputs).embedding[row], norm(head.norm, y[row]))
