from __future__ import annotations

import pytest
import torch

from fusion_pl.fusion import Mean
from fusion_pl.types import UserError

PRESENT = [[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0]]


def test_equals_its_formula(dims, make):
    head = Mean(dims, num_classes=4, dim=7).double().eval()
    inputs = make(PRESENT)
    fused = head(inputs)
    for row, table in enumerate(PRESENT):
        total = torch.zeros(7).double()
        for (name, one), has in zip(inputs.items(), table, strict=True):
            if has:
                total += head.projection[name].linear(head.projection[name].norm(one.embedding[row]))
        mean = total / max(sum(table), 1)
        torch.testing.assert_close(fused.embedding[row], mean)
        torch.testing.assert_close(fused.logits[row], head.classifier(mean))
        expected = [1 / sum(table) if has else 0.0 for has in table]
        torch.testing.assert_close(fused.weights[row], torch.tensor(expected).double())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"dim": 0}, "Mean was given dim=0, expected a whole number of at least 1"),
        ({"dropout": 1.0}, r"Mean was given dropout=1\.0, expected a probability"),
    ],
)
def test_refuses_invalid_arguments(dims, args, message):
    with pytest.raises(UserError, match=message):
        Mean(dims, num_classes=4, **args)
