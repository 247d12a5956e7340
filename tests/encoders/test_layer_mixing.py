"""Compare the combination of hidden layers with a slow computation per position."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fusion_pl.encoders.layer_mixing import LayerMixing, build_layer_mixing
from fusion_pl.types import UserError

MASK = torch.tensor([[True, True, True, False], [True, False, False, False]])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def drawn(*shape):
    return torch.randn(shape, dtype=torch.float64)


def normed(x):
    return (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()


@pytest.mark.parametrize("widths", [(5, 5, 5), (3, 4, 5)])
def test_concat_and_sum(widths):
    states = [drawn(2, 4, width) for width in widths]
    concat, summed = LayerMixing(widths, "concat").double(), LayerMixing(widths, "sum").double()
    assert (concat.dim, summed.dim) == (sum(widths), widths[-1])
    (joined, none), (total, also_none) = concat(states), summed(states)
    assert none is also_none is None
    assert (summed.projection is None) == (len(set(widths)) == 1)
    for row in range(2):
        for t in range(4):
            parts = [normed(state[row, t]) for state in states]
            torch.testing.assert_close(joined[row, t], torch.cat(parts))
            if summed.projection is not None:
                parts = [one.weight @ part + one.bias for one, part in zip(summed.projection, parts, strict=True)]
            torch.testing.assert_close(total[row, t], parts[0] + parts[1] + parts[2])


def test_attention_weights_depend_on_real_positions_of_each_sample():
    states = [drawn(2, 4, 5) for _ in range(3)]
    mixing = LayerMixing((5, 5, 5), "attention").double()
    nn.init.normal_(mixing.weighting.offset)
    found, weights = mixing(states, MASK)
    first, _, last = mixing.weighting.gate
    for row in range(2):
        count = int(MASK[row].sum())
        scores = []
        for layer, state in enumerate(states):
            mean = sum(normed(state[row, t]) for t in range(count)) / count
            score = last.weight[0] @ torch.tanh(first.weight @ mean + first.bias) + mixing.weighting.offset[layer]
            scores.append(score.exp())
        shares = [score / sum(scores) for score in scores]
        torch.testing.assert_close(weights[row], torch.stack(shares))
        for t in range(count):
            expected = sum(share * normed(state[row, t]) for share, state in zip(shares, states, strict=True))
            torch.testing.assert_close(found[row, t], expected)


def test_maps_are_resized_to_that_of_the_last_layer():
    fine, coarse = drawn(2, 3, 4, 6), drawn(2, 5, 2, 3)
    joined, _ = LayerMixing((3, 5), "concat").double()([fine, coarse])
    assert joined.shape == (2, 6, 8)
    for row in range(2):
        for position in range(6):
            y, x = divmod(position, 3)
            mean = fine[row, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].flatten(1).mean(1)
            torch.testing.assert_close(joined[row, position], torch.cat([normed(mean), normed(coarse[row, :, y, x])]))


def test_a_pyramid_adds_the_coarse_map_to_the_fine_one():
    """Two layers: the coarse map by itself, and the fine one plus the coarse one stretched to it."""
    fine, coarse = drawn(1, 3, 4, 4), drawn(1, 5, 2, 2)
    mixing = LayerMixing((3, 5), "pyramid").double()
    found, _ = mixing([fine, coarse])
    inner, layer = mixing.pyramid.inner_blocks, mixing.pyramid.layer_blocks
    top = inner[1](coarse)
    below = inner[0](fine) + top.repeat_interleave(2, 2).repeat_interleave(2, 3)
    bottom = layer[0](below).unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5))
    expected = (bottom + layer[1](top)) / 2
    torch.testing.assert_close(found, expected.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("hidden_layers", [[2, 0], [-1, 0], [1, 1], [2, -1]])
def test_hidden_layers_go_from_the_input_to_the_output(hidden_layers):
    with pytest.raises(UserError, match="must be in ascending order"):
        build_layer_mixing("a model", hidden_layers, "sum", [4, 4, 4], has_feature_maps=False)
