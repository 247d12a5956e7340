"""What a head costs, measured and counted by hand."""

from __future__ import annotations

import pytest
import torch

import fusion_pl.fusion
from fusion_pl.analysis.costs import costs_of, held
from fusion_pl.data import ManifestData
from fusion_pl.module import FusionClassifier

from ..conftest import CLASSES


@pytest.mark.parametrize("head", ["Concat", "Perceiver", "SelfAttention"])  # two hand views of parameters to a part
def test_the_costs_of_a_head_can_be_measured(encoders, manifest, head):
    model = FusionClassifier(encoders, getattr(fusion_pl.fusion, head), CLASSES)
    data = ManifestData(str(manifest), batch_size=5, num_workers=0)
    data.processors = model.processors
    data.setup("test")
    costs = costs_of(model, next(iter(data.test_dataloader())))
    assert costs["flops"] > 0
    assert costs["step_ms"] > 0


def test_memory_is_weights_gradients_and_what_the_backward_pass_needs():
    learns, frozen, batch = torch.nn.Linear(6, 4), torch.nn.Linear(6, 4).requires_grad_(False), torch.randn(5, 6)
    both = torch.nn.ModuleList([learns, frozen])
    numbers = 2 * (6 * 4 + 4)  # the weights of both
    numbers += 6 * 4 + 4  # gradients of the one that learns
    numbers += 5 * 6 + 5 * 4  # the input, and what relu returned, which two steps need and which is there once
    assert [held(both, lambda: learns(batch).relu().square().sum()) for _ in range(2)] == [4 * numbers] * 2
