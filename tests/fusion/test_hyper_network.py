from __future__ import annotations

import math

import torch

from fusion_pl.fusion import HyperNetwork

from .reference import PRESENT, gelu, linear, mlp, norm, projected_embeddings, randomised, zeros

DIM = 4


def test_equals_its_formula(dims, make):
    head, inputs = randomised(HyperNetwork(dims, num_classes=4, dim=DIM, hidden=6)), make(PRESENT)
    fused = head(inputs)
    first, _, last = head.generator
    for row in range(len(PRESENT)):
        found = projected_embeddings(head, inputs, row)
        total = zeros(DIM)
        for m, u in found.items():
            others = [other for k, other in found.items() if k != m]
            context = sum(others, zeros(DIM)) / max(len(others), 1) + head.embedding[m]
            written = linear(last, gelu(linear(first, context)))
            read = [sum(written[o * DIM + i] * u[i] for i in range(DIM)) / math.sqrt(DIM) for o in range(DIM)]
            total = total + norm(head.norm, u + torch.stack(read))
        z = total / max(len(found), 1)
        torch.testing.assert_close(fused.embedding[row], z)
        torch.testing.assert_close(fused.logits[row], mlp(head.classifier, z))


def test_the_weights_for_an_input_do_not_depend_on_it(dims, make):
    """Alone, every sample of an input is read by the same matrix; beside another input, each by its own."""
    head = randomised(HyperNetwork(dims, num_classes=4, dim=DIM))
    written = []
    head.generator.register_forward_hook(lambda _, given, result: written.append(result[:, 0]))
    head(make([[1, 0, 0]] * 3))
    head(make([[1, 1, 0]] * 3))
    alone, beside = written
    torch.testing.assert_close(alone, alone[:1].expand_as(alone), rtol=0, atol=0)
    assert not torch.allclose(beside[0], beside[1])
