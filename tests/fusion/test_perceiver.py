from __future__ import annotations

import pytest
import torch

from fusion_pl.fusion import Perceiver
from fusion_pl.types import UserError

from .reference import randomised
from .reference_tokens import mean, real_tokens, transform

PRESENT = [[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]]


def restate(head, inputs, row):
    """One latent at a time reads all real tokens, if there are any, then all latents."""
    context = [x for own in real_tokens(head.projection, inputs, row) for x in own]
    latents = list(head.latents)
    for read, think in zip(head.cross_attention, head.self_attention, strict=True):
        told = [transform(read, one, context) for one in latents] if context else latents
        latents = [transform(think, one, told) for one in told]
    return mean([head.norm(one) for one in latents])


@pytest.mark.parametrize(("count", "num_layers"), [(1, 1), (2, 2), (3, 2)])
def test_equals_its_formula(dims, make, count, num_layers):
    chosen = dict(list(dims.items())[:count])
    head = randomised(Perceiver(chosen, num_classes=4, dim=8, num_heads=2, num_layers=num_layers, num_latents=3))
    inputs = make([table[-count:] for table in PRESENT])
    fused = head(inputs)
    for row in range(len(PRESENT)):
        expected = restate(head, inputs, row)
        torch.testing.assert_close(fused.embedding[row], expected)
        torch.testing.assert_close(fused.logits[row], head.classifier(expected))


def test_the_cost_of_self_attention_does_not_depend_on_the_number_of_tokens(dims, make):
    head = randomised(Perceiver(dims, num_classes=4, dim=8, num_heads=2, num_layers=1, num_latents=3))
    shapes = []
    head.cross_attention[0].attention.register_forward_hook(lambda _, args, output: shapes.append(args[0].shape))
    head.self_attention[0].attention.register_forward_hook(lambda _, args, output: shapes.append(args[1].shape))
    head(make(PRESENT))
    assert shapes == [torch.Size([4, 3, 8])] * 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"num_latents": 0}, "Perceiver was given num_latents=0, expected a whole number of at least 1"),
        ({"num_layers": 0}, "Perceiver was given num_layers=0, expected a whole number of at least 1"),
        ({"dim": 10, "num_heads": 4}, "Perceiver was given dim=10 and num_heads=4: .* must be a multiple"),
    ],
)
def test_refuses_invalid_arguments(dims, args, message):
    with pytest.raises(UserError, match=message):
        Perceiver(dims, num_classes=4, **args)
