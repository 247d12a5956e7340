from __future__ import annotations

import torch

from fusion_pl.fusion import Max

from .reference import PRESENT, mlp, projected_embeddings, randomised


def test_equals_its_formula(dims, make):
    head, inputs = randomised(Max(dims, num_classes=4, dim=7)), make(PRESENT)
    fused = head(inputs)
    for row in range(len(PRESENT)):
        found = list(projected_embeddings(head, inputs, row).values())
        z = torch.tensor([max((u[f].item() for u in found), default=0.0) for f in range(7)], dtype=torch.float64)
        torch.testing.assert_close(fused.embedding[row], z)
        torch.testing.assert_close(fused.logits[row], mlp(head.classifier, z))


def test_zeros_of_a_missing_input_are_not_the_maximum(dims, make):
    head = Max(dims, num_classes=4, dim=7).double()
    with torch.no_grad():
        for project in head.projection.values():
            project.linear.bias.fill_(-100.0)
    embedding = head(make(PRESENT)).embedding
    assert (embedding[:-1] < -50).all()
    assert (embedding[-1] == 0).all()
