"""The parts of every head written out slowly, one sample at a time, to hold the heads against."""

from __future__ import annotations

import itertools
import math

import torch

PRESENT = [list(one) for one in itertools.product([1, 0], repeat=3)]  # every subset of three inputs, and none


def stirred(head):
    """Move every parameter away from where it starts: a bias of 0 or a scale of 1 would hide that it is not used."""
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


def vectors(head, inputs, row):
    """Return the index m of each input that the sample has -> its u_m."""
    found = {}
    for m, (name, one) in enumerate(inputs.items()):
        if one.mask[row].any():
            found[m] = linear(head.project[name].linear, norm(head.project[name].norm, one.embedding[row]))
    return found


def zeros(size):
    return torch.zeros(size, dtype=torch.float64)
