from __future__ import annotations

import torch

from fusion_pl.fusion import Mean, Sum

from .reference import PRESENT, mlp, projected_embeddings, randomised, zeros


def test_equals_its_formula(dims, make):
    head, inputs = randomised(Sum(dims, num_classes=4, dim=7)), make(PRESENT)
    fused = head(inputs)
    for row in range(len(PRESENT)):
        z = zeros(7)
        for u in projected_embeddings(head, inputs, row).values():
            z += u
        torch.testing.assert_close(fused.embedding[row], z)
        torch.testing.assert_close(fused.logits[row], mlp(head.classifier, z))


def test_the_sum_is_the_mean_times_the_number_of_inputs(dims, make):
    head, mean, inputs = Sum(dims, num_classes=4).double(), Mean(dims, num_classes=4).double(), make(PRESENT)
    mean.load_state_dict(head.state_dict())
    count = torch.tensor(PRESENT).sum(-1, keepdim=True)
    torch.testing.assert_close(head(inputs).embedding, mean(inputs).embedding * count)
