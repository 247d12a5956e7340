from __future__ import annotations

import torch
import torch.nn.functional as F

from fusion_pl.fusion import Concat

PRESENT = [[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0]]


def test_equals_its_formula(dims, make):
    head = Concat(dims, num_classes=4, dim=7, hidden=9).double().eval()
    inputs = make(PRESENT)
    fused = head(inputs)
    for row, table in enumerate(PRESENT):
        parts = []
        for (name, one), has in zip(inputs.items(), table, strict=True):
            layer = head.projection[name]
            x = one.embedding[row]
            normed = (x - x.mean()) / (x.var(unbiased=False) + layer.norm.eps).sqrt()
            parts.append(layer.linear.weight @ normed + layer.linear.bias if has else torch.zeros(7).double())
        joined = torch.cat([*parts, torch.tensor(table).double()])
        hidden = F.gelu(head.joint_layer[0].weight @ joined + head.joint_layer[0].bias)
        torch.testing.assert_close(fused.embedding[row], hidden)
        torch.testing.assert_close(fused.logits[row], head.classifier[1].weight @ hidden + head.classifier[1].bias)


def test_shape_of_the_embedding(dims, make):
    assert Concat(dims, num_classes=4, hidden=9).double()(make(PRESENT)).embedding.shape == (4, 9)
    assert Concat(dims, num_classes=4).double()(make(PRESENT)).weights is None
