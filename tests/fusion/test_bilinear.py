from __future__ import annotations

import pytest
import torch

from fusion_pl.fusion import Bilinear

from .reference import PRESENT, linear, mlp, norm, projected_embeddings, randomised, zeros

DIM = 5


@pytest.mark.parametrize("factor", [1, 3])
def test_equals_its_formula(dims, make, factor):
    head, inputs = randomised(Bilinear(dims, num_classes=4, dim=DIM, factor=factor)), make(PRESENT)
    fused = head(inputs)
    for row in range(len(PRESENT)):
        found = projected_embeddings(head, inputs, row)
        wide = {m: linear(head.expansion[m], u) for m, u in found.items()}
        embedding = zeros(DIM)
        for f in range(DIM):
            for m in found:
                for n in found:
                    if m < n:
                        for k in range(factor):
                            embedding[f] += wide[m][f * factor + k] * wide[n][f * factor + k]
        # The root is smoothed below 1e-4, see ``signed_sqrt``.
        root = torch.stack([p / (p.abs() + 1e-4) ** 0.5 for p in embedding])
        z = norm(head.norm, root) + sum(found.values(), zeros(DIM))
        torch.testing.assert_close(fused.embedding[row], z)
        torch.testing.assert_close(fused.logits[row], mlp(head.classifier, z))


def test_equals_bilinear_pooling_of_low_rank(dims, make):
    """Two inputs are read by one matrix for each channel: the sum of ``factor`` matrices of rank 1."""
    two, factor = dict(list(dims.items())[:2]), 2
    head, inputs = randomised(Bilinear(two, num_classes=4, dim=DIM, factor=factor)), make([[1, 1]] * 3)
    outside = torch.nn.Bilinear(DIM, DIM, DIM, bias=False).double()
    first, second = (one.weight.view(DIM, factor, DIM) for one in head.expansion)
    with torch.no_grad():
        for f in range(DIM):
            outside.weight[f] = sum(torch.outer(first[f, k], second[f, k]) for k in range(factor))
    for row in range(3):
        u = projected_embeddings(head, inputs, row)
        embedding = outside(u[0], u[1])
        root = embedding.sign() * (embedding.abs() / (1 + 1e-4 / embedding.abs()) ** 0.5 / embedding.abs() ** 0.5)
        torch.testing.assert_close(head(inputs).embedding[row], norm(head.norm, root) + u[0] + u[1])


def test_the_result_for_a_single_input_depends_on_it(dims, make):
    head = randomised(Bilinear(dims, num_classes=4))
    first, second = (head(make([[1, 0, 0]], seed=seed)).logits for seed in (0, 1))
    assert (first - second).abs().max() > 1e-2


def test_bfloat16_keeps_small_products_beside_large_values(dims, make):
    """A loud input beside a faint one: the squares of the loud one are 10,000 times their products."""
    head = Bilinear(dims, num_classes=4, dim=16)
    torch.nn.init.normal_(head.expansion[0].weight, std=4)
    torch.nn.init.normal_(head.expansion[1].weight, std=4e-4)
    inputs = make([[1, 1, 0]] * 8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        rough = head(inputs).embedding.float()
    exact = head(inputs).embedding
    assert (rough - exact).norm() < 0.05 * exact.norm()
