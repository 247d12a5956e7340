from __future__ import annotations

import torch

from fusion_pl.fusion import FiLM

from .reference import PRESENT, gelu, linear, mlp, projected_embeddings, randomised, zeros

DIM = 5


def test_equals_its_formula(dims, make):
    head, inputs = randomised(FiLM(dims, num_classes=4, dim=DIM)), make(PRESENT)
    fused = head(inputs)
    for row in range(len(PRESENT)):
        found = projected_embeddings(head, inputs, row)
        total = zeros(DIM)
        for m, u in found.items():
            scale, shift = zeros(DIM) + 1, zeros(DIM)
            for k, other in found.items():
                if k != m:
                    sent = linear(head.modulation[k], other)
                    scale, shift = scale + sent[:DIM], shift + sent[DIM:]
            total += gelu(scale * u + shift)
        z = total / max(len(found), 1)
        torch.testing.assert_close(fused.embedding[row], z)
        torch.testing.assert_close(fused.logits[row], mlp(head.classifier, z))


def test_a_missing_input_modulates_nothing(dims, make):
    """Whatever the missing ones' maps are, a lone input stays as it is, and so does a pair."""
    head, inputs = randomised(FiLM(dims, num_classes=4, dim=DIM)), make([[1, 0, 0], [1, 1, 0]])
    before = head(inputs).embedding
    alone = gelu(projected_embeddings(head, inputs, 0)[0])
    torch.testing.assert_close(before[0], alone)
    with torch.no_grad():
        head.modulation[2].weight.mul_(-3)
    assert torch.equal(head(inputs).embedding, before)
    with torch.no_grad():
        head.modulation[1].weight.mul_(-3)
    assert not torch.allclose(head(inputs).embedding[1], before[1])
