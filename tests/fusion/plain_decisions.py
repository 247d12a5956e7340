"""Heads over decisions written out slowly, decisions that a test knows, and the loss as a head gets it."""

from __future__ import annotations

import torch
from torch import nn

from fusion_pl.types import Batch

from .plain import gelu, linear, norm


def own_logits(decide, inputs, row):
    """Return what each present input's classifier says of one sample: name -> logits."""
    found = {}
    for name, one in inputs.items():
        if one.mask[row].any():
            part = decide.project[name]
            hidden = gelu(linear(part.linear, norm(part.norm, one.embedding[row])))
            found[name] = linear(decide.classify[name], hidden)
    return found


def shares(logits):
    """Return the softmax of one sample's logits, from its definition."""
    return logits.exp() / logits.exp().sum()


class Fixed(nn.Module):
    """Stands for the inputs' classifiers, with decisions (B, M, C) that the test knows."""

    def __init__(self, decisions):
        super().__init__()
        self.decisions = nn.Parameter(decisions)

    def forward(self, inputs):
        present = torch.stack([one.mask.any(-1) for one in inputs.values()], dim=1)
        return self.decisions.masked_fill(~present.unsqueeze(-1), 0.0)


def batch_of(inputs, target, ids=None):
    """Return the batch from which ``inputs`` might have been encoded."""
    present = {name: one.mask.any(-1) for name, one in inputs.items()}
    ids = ids or [f"s{i}" for i in range(len(target))]
    return Batch({name: {} for name in inputs}, present, torch.tensor(target), ids, [()] * len(target))


def entropy_of(target):
    """Return the plain cross-entropy of a batch; samples outside of ``mask`` count as 0."""

    def cross_entropy(logits, mask=None):
        rows = [i for i in range(len(target)) if mask is None or mask[i]]
        return sum((-shares(logits[i])[target[i]].log() for i in rows), 0 * logits.sum()) / len(target)

    return cross_entropy
