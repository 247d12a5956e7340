"""Plain reference implementations of parts of the heads, for one sample at a time."""

from __future__ import annotations

import itertools
import math

import torch

PRESENT = [list(row) for row in itertools.product([1, 0], repeat=3)]  # every subset of three inputs


def randomised(head):
    """Change every parameter randomly: an unused bias of 0 or scale of 1 would not be noticed."""
    generator = torch.Generator().manual_seed(7)
    head.double().eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=0.3)
    return head


def linear(layer, x):
    y = [sum(weight * value for weight, value in zip(row, x, strict=True)) for row in layer.weight]
    return torch.stack(y) + (0 if layer.bias is None else layer.bias)


def norm(layer, x):
    mean = sum(x) / len(x)
    variance = sum((value - mean) ** 2 for value in x) / len(x)
    return (x - mean) / (variance + layer.eps) ** 0.5 * layer.weight + layer.bias


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def mlp(layers, x):
    first, _, _, last = layers
    return linear(last, gelu(linear(first, x)))


def projected_embeddings(head, inputs, row):
    """Return u_m of a sample: index m of each present input -> projected embedding."""
    embeddings = {}
    for m, (name, encoded) in enumerate(inputs.items()):
        if encoded.mask[row].any():
            layer = head.projection[name]
            embeddings[m] = linear(layer.linear, norm(layer.norm, encoded.embedding[row]))
    return embeddings


def zeros(size):
    return torch.zeros(size, dtype=torch.float64)
