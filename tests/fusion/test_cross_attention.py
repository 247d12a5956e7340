from __future__ import annotations

import pytest
import torch

from fusion_pl.fusion import CrossAttention
from fusion_pl.fusion.cross_attention import cross_attention_mask
from fusion_pl.types import UserError

from .reference import randomised
from .reference_tokens import mean, real_tokens, transform

PRESENT = [[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]]


def restate(head, inputs, row):
    """The head for one sample: only real tokens exist, and every token is handled by itself."""
    tokens = [(i, x) for i, own in enumerate(real_tokens(head.projection, inputs, row)) for x in own]
    for layer in head.layers:
        after = []
        for i, x in tokens:
            others = [other for j, other in tokens if j != i] or [other for _, other in tokens]
            after.append((i, transform(layer, x, others)))
        tokens = after
    embedding = [mean([head.norm(x) for j, x in tokens if j == i]) for i in sorted({i for i, _ in tokens})]
    return mean(embedding) if embedding else torch.zeros_like(head.norm.bias)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_equals_its_formula(dims, make, count):
    chosen = dict(list(dims.items())[:count])
    head = randomised(CrossAttention(chosen, num_classes=4, dim=8, num_heads=2, num_layers=2))
    inputs = make([table[-count:] for table in PRESENT])
    fused = head(inputs)
    for row in range(len(PRESENT)):
        expected = restate(head, inputs, row)
        torch.testing.assert_close(fused.embedding[row], expected)
        torch.testing.assert_close(fused.logits[row], head.classifier(expected))


def test_attention_mask():
    real = torch.tensor([[1, 1, 0, 1, 1]] * 3, dtype=torch.bool)
    real[1, 3:] = False
    real[2] = False
    present = torch.tensor([[1, 1], [1, 0], [0, 0]], dtype=torch.bool)
    both, alone, none = cross_attention_mask(real, present, [3, 2]).squeeze(1).int().tolist()
    assert both == [[0, 0, 0, 1, 1]] * 3 + [[1, 1, 0, 0, 0]] * 2
    assert alone[:3] == [[1, 1, 0, 0, 0]] * 3
    assert none == [[1] * 5] * 5


def test_inputs_differ_by_their_embedding(dims, make):
    first = next(iter(dims))
    head = CrossAttention({first: dims[first], "same": dims[first]}, num_classes=4).double().eval()
    one = make([[1]])[first]
    head.projection.projection["same"].load_state_dict(head.projection.projection[first].state_dict())
    before = head({first: one, "same": one}).logits
    with torch.no_grad():
        head.projection.embedding[1] += 1.0 * torch.arange(head.projection.embedding.shape[1])
    assert not torch.allclose(head({first: one, "same": one}).logits, before)


def test_dropout_is_active_in_training_only(dims, make):
    head = CrossAttention(dims, num_classes=4, dropout=0.5).double()
    inputs = make([[1, 1, 1]])
    assert not torch.equal(head(inputs).logits, head(inputs).logits)
    head.eval()
    assert torch.equal(head(inputs).logits, head(inputs).logits)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"dim": 10, "num_heads": 4}, "dim=10 and num_heads=4: .* must be a multiple of num_heads"),
        ({"num_layers": 0}, "CrossAttention was given num_layers=0, expected a whole number of at least 1"),
    ],
)
def test_refuses_invalid_arguments(dims, args, message):
    with pytest.raises(UserError, match=message):
        CrossAttention(dims, num_classes=4, **args)
