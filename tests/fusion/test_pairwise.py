from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from fusion_pl.fusion import Pairwise
from fusion_pl.types import UserError

from .reference import randomised
from .reference_tokens import mean, real_tokens, transform

PRESENT = [[1, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 1], [0, 0, 0]]


def restate(head, inputs, row):
    """Every target by itself; a missing input is neither a target nor a source."""
    given = real_tokens(head.projection, inputs, row)
    pairs = [(m, k) for m in range(len(given)) for k in range(len(given)) if k != m]
    stacks = dict(zip(pairs, head.cross, strict=True))
    means = []
    for m, target in enumerate(given):
        read = []
        for k, source in enumerate(given):
            if k == m or not source:
                continue
            x = target
            for layer in stacks[m, k]:
                x = [transform(layer, one, source) for one in x]
            read.append(x)
        joined = [mean(list(versions)) for versions in zip(*read, strict=True)] if read else target
        after = [transform(head.layers[m], one, joined) for one in joined]
        means.append(mean([head.norm(one) for one in after]) if after else torch.zeros_like(head.norm.bias))
    return F.gelu(head.joint_layer[0].weight @ torch.cat(means) + head.joint_layer[0].bias)


@pytest.mark.parametrize(("count", "num_layers"), [(1, 1), (2, 2), (3, 1), (3, 2)])
def test_equals_its_formula(dims, make, count, num_layers):
    chosen = dict(list(dims.items())[:count])
    head = randomised(Pairwise(chosen, num_classes=4, dim=8, num_heads=2, num_layers=num_layers))
    inputs = make([table[:count] for table in PRESENT])
    fused = head(inputs)
    for row in range(len(PRESENT)):
        expected = restate(head, inputs, row)
        torch.testing.assert_close(fused.embedding[row], expected)
        torch.testing.assert_close(fused.logits[row], head.classifier(expected))


@pytest.mark.parametrize("missing", [None, 0, 1, 2])
def test_a_pair_affects_samples_that_have_both_inputs_only(dims, make, missing):
    head = randomised(Pairwise(dims, num_classes=4, dim=8, num_heads=2))
    inputs = make([[int(m != missing) for m in range(3)]])
    before = head(inputs).logits
    pairs = [(m, k) for m, k in itertools.product(range(3), range(3)) if m != k]
    assert len(head.cross) == len(pairs)
    for pair, stack in zip(pairs, head.cross, strict=True):
        bias = stack[0].mlp[-1].bias
        old = bias.detach().clone()
        with torch.no_grad():
            bias.add_(torch.arange(8.0))
            changed = not torch.equal(head(inputs).logits, before)
            bias.copy_(old)
        assert changed == (missing not in pair), pair


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"dim": 10, "num_heads": 4}, "Pairwise was given dim=10 and num_heads=4: .* must be a multiple of num_heads"),
        ({"num_layers": 0}, "Pairwise was given num_layers=0, expected a whole number of at least 1"),
    ],
)
def test_refuses_invalid_arguments(dims, args, message):
    with pytest.raises(UserError, match=message):
        Pairwise(dims, num_classes=4, **args)
