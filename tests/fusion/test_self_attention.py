from __future__ import annotations

import pytest
import torch

from fusion_pl.fusion import SelfAttention
from fusion_pl.types import UserError

from .reference import randomised
from .reference_tokens import real_tokens, transform

PRESENT = [[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]]


def restate(head, inputs, row):
    """One sequence of real tokens behind the class token, every token handled by itself."""
    tokens = [head.class_token, *(x for own in real_tokens(head.projection, inputs, row) for x in own)]
    for layer in head.layers:
        tokens = [transform(layer, x, tokens) for x in tokens]
    return head.norm(tokens[0])


@pytest.mark.parametrize(("count", "positions"), [(1, 256), (2, 1), (3, 3)])
def test_equals_its_formula(dims, make, count, positions):
    chosen = dict(list(dims.items())[:count])
    head = randomised(SelfAttention(chosen, num_classes=4, dim=8, num_heads=2, num_layers=2, positions=positions))
    inputs = make([table[-count:] for table in PRESENT])
    fused = head(inputs)
    for row in range(len(PRESENT)):
        expected = restate(head, inputs, row)
        torch.testing.assert_close(fused.embedding[row], expected)
        torch.testing.assert_close(fused.logits[row], head.classifier(expected))


def test_the_order_of_tokens_matters_up_to_the_last_position(dims, make):
    inputs = make([[1, 1, 1]] * 8)
    swapped = {name: one._replace(tokens=one.tokens.roll(1, dims=1)) for name, one in inputs.items()}
    full = {name: one._replace(mask=torch.ones_like(one.mask)) for name, one in inputs.items()}
    turned = {name: one._replace(mask=full[name].mask) for name, one in swapped.items()}
    head = randomised(SelfAttention(dims, num_classes=4, dim=8, num_heads=2, positions=16))
    assert not torch.allclose(head(full).logits, head(turned).logits)
    without = randomised(SelfAttention(dims, num_classes=4, dim=8, num_heads=2, positions=1))
    torch.testing.assert_close(without(full).logits, without(turned).logits)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"dim": 10, "num_heads": 4}, "SelfAttention was given dim=10 and num_heads=4: .* must be a multiple"),
        ({"num_layers": 0}, "SelfAttention was given num_layers=0, expected a whole number of at least 1"),
        ({"positions": 0}, "SelfAttention was given positions=0, expected a whole number of at least 1"),
        ({"dropout": 1.0}, r"SelfAttention was given dropout=1\.0, expected a probability"),
    ],
)
def test_refuses_invalid_arguments(dims, args, message):
    with pytest.raises(UserError, match=message):
        SelfAttention(dims, num_classes=4, **args)
