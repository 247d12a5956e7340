from __future__ import annotations

import math

import pytest
import torch

from fusion_pl.fusion import InputAttention
from fusion_pl.types import Encoded, UserError

from .reference import PRESENT, linear, mlp, projected_embeddings, randomised, zeros

DIM, HEADS = 6, 2


def attend(head, found):
    """Return what a sample reads and how much it counts each input, head by head and input by input."""
    context = sum(found.values()) / len(found)
    query = linear(head.query, context)
    keys = {m: head.key_value.weight[:DIM] @ u for m, u in found.items()}
    values = {m: head.key_value.weight[DIM:] @ u for m, u in found.items()}
    size = DIM // HEADS
    said, weights = [], zeros(3)
    for h in range(HEADS):
        mine = slice(h * size, (h + 1) * size)
        scores = {m: math.exp((query[mine] @ key[mine]).item() / math.sqrt(size)) for m, key in keys.items()}
        total = sum(scores.values())
        said.append(sum(score / total * values[m][mine] for m, score in scores.items()))
        for m, score in scores.items():
            weights[m] += score / total / HEADS
    return linear(head.output_projection, torch.cat(said)) + context, weights


def test_equals_its_formula(dims, make):
    head, inputs = randomised(InputAttention(dims, num_classes=4, dim=DIM, num_heads=HEADS)), make(PRESENT)
    fused = head(inputs)
    for row in range(len(PRESENT) - 1):
        embedding, weights = attend(head, projected_embeddings(head, inputs, row))
        torch.testing.assert_close(fused.embedding[row], embedding)
        torch.testing.assert_close(fused.logits[row], mlp(head.classifier, embedding))
        torch.testing.assert_close(fused.weights[row], weights)
    # Nothing to read: what remains is the bias.
    torch.testing.assert_close(fused.embedding[-1], head.output_projection.bias)
    assert (fused.weights[-1] == 0).all()


def test_equals_multihead_attention(dims, make):
    head, inputs = randomised(InputAttention(dims, num_classes=4, dim=DIM, num_heads=HEADS)), make(PRESENT[:-1])
    outside = torch.nn.MultiheadAttention(DIM, HEADS, batch_first=True).double()
    with torch.no_grad():
        outside.in_proj_weight.copy_(torch.cat([head.query.weight, head.key_value.weight]))
        outside.in_proj_bias.copy_(torch.cat([head.query.bias, zeros(2 * DIM)]))
        outside.out_proj.load_state_dict(head.output_projection.state_dict())
    fused = head(inputs)
    for row in range(len(PRESENT) - 1):
        members = torch.stack(list(projected_embeddings(head, inputs, row).values()))[None]
        context = members.mean(1, keepdim=True)
        read, weights = outside(context, members, members)
        torch.testing.assert_close(fused.embedding[row], (read + context)[0, 0])
        torch.testing.assert_close(fused.weights[row][fused.weights[row] > 0], weights[0, 0])


def test_an_inputs_score_depends_on_the_others(dims, make):
    """The odds of two inputs would stay as they are, whatever the third holds, if each scored for itself alone."""
    head, inputs = randomised(InputAttention(dims, num_classes=4)), make([[1, 1, 1]])
    third = inputs["voice-2"]
    changed = inputs | {"voice-2": Encoded(third.tokens, third.mask, third.embedding.flip(-1))}
    before, after = (head(given).weights[0] for given in (inputs, changed))
    assert not torch.isclose(before[0] / before[1], after[0] / after[1], rtol=1e-3)


def test_refuses_num_heads_that_does_not_divide_dim(dims):
    message = "InputAttention was given dim=8 and num_heads=3: the heads share the channels equally"
    with pytest.raises(UserError, match=message):
        InputAttention(dims, num_classes=4, dim=8, num_heads=3)
