"""Plain reference implementations of parts of heads over tokens, without padding and token by token."""

from __future__ import annotations

import torch

from .reference import linear, mlp, norm


def real_tokens(project, inputs, row):
    """Project the real tokens of each input, and add input and position embeddings."""
    sequences = []
    for i, (name, part) in enumerate(project.projection.items()):
        own = []
        for t in inputs[name].mask[row].nonzero().flatten().tolist():
            x = linear(part.linear, norm(part.norm, inputs[name].tokens[row, t])) + project.embedding[i]
            own.append(
                x
                if project.position_embedding is None
                else x + project.position_embedding[min(t, len(project.position_embedding) - 1)]
            )
        sequences.append(own)
    return sequences


def attend(attention, query, keys):
    """Compute attention of one query to a list of keys, head by head."""
    size = query.shape[0] // attention.num_heads
    weight_q = attention.query.weight
    weight_k, weight_v = attention.key_value.weight.chunk(2)
    heads = []
    for h in range(attention.num_heads):
        rows = slice(h * size, (h + 1) * size)
        scores = torch.stack([(weight_q[rows] @ query) @ (weight_k[rows] @ key) / size**0.5 for key in keys])
        shares = scores.exp() / scores.exp().sum()
        heads.append(sum(share * (weight_v[rows] @ key) for share, key in zip(shares, keys, strict=True)))
    return linear(attention.output_projection, torch.cat(heads))


def transform(layer, x, seen):
    """Take one token through a layer; ``seen`` are the tokens that it may read, before their norm."""
    own = layer.norm_query if layer.norm_context is None else layer.norm_context
    y = x + attend(layer.attention, norm(layer.norm_query, x), [norm(own, one) for one in seen])
    return y + mlp(layer.mlp, norm(layer.norm_mlp, y))


def mean(vectors):
    return sum(vectors) / len(vectors)
