from __future__ import annotations

import torch

from fusion_pl.fusion import MultiplicativeInteractions

from .reference import PRESENT, linear, mlp, norm, projected_embeddings, randomised, zeros

DIM = 4


def fold(head, found):
    """Join the present inputs from the left, channel by channel."""
    z = None
    for m, u in found.items():
        if z is None:
            z = u
            continue
        tensor, both = head.bilinear[m - 1], linear(head.linear[m - 1], torch.cat([z, u]))
        met = [sum(z[i] * tensor[i, j, o] * u[j] for i in range(DIM) for j in range(DIM)) + both[o] for o in range(DIM)]
        z = norm(head.norm[m - 1], torch.stack(met))
    return zeros(DIM) if z is None else z


def test_equals_its_formula(dims, make):
    head, inputs = randomised(MultiplicativeInteractions(dims, num_classes=4, dim=DIM, hidden=6)), make(PRESENT)
    fused = head(inputs)
    for row in range(len(PRESENT)):
        z = fold(head, projected_embeddings(head, inputs, row))
        torch.testing.assert_close(fused.embedding[row], z)
        torch.testing.assert_close(fused.logits[row], mlp(head.classifier, z))


def test_equals_bilinear_for_two_inputs(dims, make):
    two = dict(list(dims.items())[:2])
    head, inputs = randomised(MultiplicativeInteractions(two, num_classes=4, dim=DIM)), make([[1, 1]] * 3)
    outside = torch.nn.Bilinear(DIM, DIM, DIM, bias=False).double()
    with torch.no_grad():
        outside.weight.copy_(head.bilinear[0].permute(2, 0, 1))
    for row in range(3):
        u = projected_embeddings(head, inputs, row)
        met = outside(u[0], u[1]) + linear(head.linear[0], torch.cat([u[0], u[1]]))
        torch.testing.assert_close(head(inputs).embedding[row], norm(head.norm[0], met))


def test_the_first_present_input_initialises_and_missing_ones_change_nothing(dims, make):
    head, inputs = randomised(MultiplicativeInteractions(dims, num_classes=4, dim=DIM)), make([[0, 1, 0], [1, 0, 0]])
    embedding = head(inputs).embedding
    torch.testing.assert_close(embedding[0], projected_embeddings(head, inputs, 0)[1])
    torch.testing.assert_close(embedding[1], projected_embeddings(head, inputs, 1)[0])
