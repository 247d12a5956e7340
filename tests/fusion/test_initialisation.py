"""Initialisation of heads over tokens."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fusion_pl.fusion

TOKENS = ["SelfAttention", "CrossAttention", "Pairwise", "Bottleneck", "Perceiver", "BiLSTM"]


@pytest.mark.parametrize("name", TOKENS)
def test_every_linear_layer_keeps_the_variance(name):
    torch.manual_seed(0)
    head = getattr(fusion_pl.fusion, name)({"text": 64, "photo": 64}, 8)
    maps = [part.weight for part in head.modules() if isinstance(part, nn.Linear)]
    for part in head.modules():
        maps += [part.weight_ih_l0, part.weight_hh_l0] if isinstance(part, nn.LSTM) else []
    assert len(maps) > 3
    for weight in maps:  # for inputs of unit variance; the default of torch gives a third
        assert weight.square().sum(1).mean().item() == pytest.approx(1.0, abs=0.25)
