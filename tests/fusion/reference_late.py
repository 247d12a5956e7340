"""Plain reference implementations of parts of late fusion, classifiers with fixed logits, batches and losses."""

from __future__ import annotations

import torch
from torch import nn

from fusion_pl.types import Batch

from .reference import gelu, linear, norm


def unimodal_logits(classifiers, inputs, row):
    """Return the logits of one sample: name of each present input -> logits."""
    logits = {}
    for name, encoded in inputs.items():
        if encoded.mask[row].any():
            layer = classifiers.projection[name]
            hidden = gelu(linear(layer.linear, norm(layer.norm, encoded.embedding[row])))
            logits[name] = linear(classifiers.classifier[name], hidden)
    return logits


def softmax(logits):
    """Return the softmax of one sample's logits."""
    return logits.exp() / logits.exp().sum()


class FixedLogits(nn.Module):
    """Unimodal classifiers with fixed logits (B, M, C)."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, inputs):
        present = torch.stack([one.mask.any(-1) for one in inputs.values()], dim=1)
        return self.logits.masked_fill(~present.unsqueeze(-1), 0.0)


def batch_of(inputs, target, ids=None):
    """Return a batch with the presence masks of ``inputs``."""
    present = {name: one.mask.any(-1) for name, one in inputs.items()}
    ids = ids or [f"s{i}" for i in range(len(target))]
    return Batch({name: {} for name in inputs}, present, torch.tensor(target), ids, [()] * len(target))


def cross_entropy_of(target):
    """Return the plain cross-entropy of a batch; samples outside of ``mask`` count as 0."""

    def cross_entropy(logits, mask=None):
        rows = [i for i in range(len(target)) if mask is None or mask[i]]
        return sum((-softmax(logits[i])[target[i]].log() for i in rows), 0 * logits.sum()) / len(target)

    return cross_entropy
