from __future__ import annotations

import math

import torch

from fusion_pl.fusion import Gated

from .reference import PRESENT, mlp, projected_embeddings, randomised, zeros

DIM = 5


def test_equals_its_formula(dims, make):
    head, inputs = randomised(Gated(dims, num_classes=4, dim=DIM)), make(PRESENT)
    fused = head(inputs)
    for row in range(len(PRESENT)):
        found = projected_embeddings(head, inputs, row)
        seen = [value.item() for m in range(3) for value in found.get(m, zeros(DIM))]
        z, opened = zeros(DIM), zeros(3)
        for m, u in found.items():
            for f in range(DIM):
                channel = m * DIM + f
                score = sum(
                    weight.item() * value for weight, value in zip(head.gate.weight[channel], seen, strict=True)
                )
                gate = 1 / (1 + math.exp(-score - head.gate.bias[channel].item()))
                z[f] += gate * math.tanh(u[f].item())
                opened[m] += gate / DIM
        torch.testing.assert_close(fused.embedding[row], z)
        torch.testing.assert_close(fused.logits[row], mlp(head.classifier, z))
        torch.testing.assert_close(fused.weights[row], opened / max(opened.sum(), 1e-300))


def test_gates_depend_on_the_other_inputs(dims, make):
    head, inputs, other = randomised(Gated(dims, num_classes=4, dim=DIM)), make([[1, 1, 1]]), make([[1, 1, 1]], seed=1)
    with torch.no_grad():
        for name in list(dims)[1:]:  # these say nothing themselves: their gates are shut
            head.gate.bias.view(3, DIM)[list(dims).index(name)] = -1e4
    first, second = (head(given).embedding for given in (inputs, inputs | {"voice-2": other["voice-2"]}))
    assert (first - second).abs().max() > 1e-3
