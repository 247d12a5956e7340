from __future__ import annotations

import pytest
import torch
from torch import nn

from fusion_pl.attention import Attention, TokenProjection, TransformerLayer, to_attention_mask
from fusion_pl.types import Encoded

DIM, HEADS = 12, 3
MASK = torch.tensor([[True, True, False, True, False], [False, True, False, False, False], [True] * 5])


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outside(attention):
    """torch's own attention with the same weights."""
    twin = nn.MultiheadAttention(DIM, HEADS, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        twin.in_proj_weight.copy_(torch.cat([attention.query.weight, attention.key_value.weight]))
        twin.in_proj_bias.zero_()
    twin.out_proj.load_state_dict(attention.output_projection.state_dict())
    return twin


def test_attention_equals_torch_multihead_attention():
    attention = Attention(DIM, HEADS).double().eval()
    x, context = drawn(3, 4, DIM), drawn(3, 5, DIM, seed=1)
    allowed = drawn(3, 4, 5, seed=2) > 0
    allowed[..., 2] = True  # every query needs something to read
    forbidden = ~allowed.repeat_interleave(HEADS, dim=0)  # torch's mask says the opposite, and once a head
    expected, _ = outside(attention)(x, context, context, attn_mask=forbidden, need_weights=False)
    torch.testing.assert_close(attention(x, context, allowed), expected)


def test_a_mask_of_one_row_is_broadcast_to_all_queries():
    attention = Attention(DIM, HEADS).double()
    x, context = drawn(3, 4, DIM), drawn(3, 5, DIM, seed=1)
    row = MASK.unsqueeze(1)
    torch.testing.assert_close(attention(x, context, row), attention(x, context, row.expand(3, 4, 5)))


def test_self_attention_layer_equals_torch_pre_norm_layer():
    layer = TransformerLayer(DIM, HEADS, dropout=0.5).double().eval()
    with torch.no_grad():
        for norm in (layer.norm_query, layer.norm_mlp):
            norm.weight.copy_(drawn(DIM))
            norm.bias.copy_(drawn(DIM, seed=1))
    twin = nn.TransformerEncoderLayer(
        DIM, HEADS, 4 * DIM, activation="gelu", batch_first=True, norm_first=True, dtype=torch.float64
    ).eval()
    twin.self_attn = outside(layer.attention).eval()
    twin.norm1.load_state_dict(layer.norm_query.state_dict())
    twin.norm2.load_state_dict(layer.norm_mlp.state_dict())
    twin.linear1.load_state_dict(layer.mlp[0].state_dict())
    twin.linear2.load_state_dict(layer.mlp[3].state_dict())
    x = drawn(3, 5, DIM, seed=3)
    found, expected = layer(x, to_attention_mask(MASK)), twin(x, src_key_padding_mask=~MASK)
    torch.testing.assert_close(found[MASK], expected[MASK])


def test_cross_attention_layer_has_a_norm_for_the_context():
    layer = TransformerLayer(DIM, HEADS, dropout=0.5, cross=True).double().eval()
    with torch.no_grad():
        layer.norm_context.weight.copy_(drawn(DIM))
        layer.norm_context.bias.copy_(drawn(DIM, seed=1))
    x, context = drawn(3, 2, DIM, seed=3), drawn(3, 5, DIM, seed=4)
    normed = layer.norm_context(context)
    read, _ = outside(layer.attention)(layer.norm_query(x), normed, normed, key_padding_mask=~MASK, need_weights=False)
    middle = x + read
    torch.testing.assert_close(layer(x, to_attention_mask(MASK), context), middle + layer.mlp(layer.norm_mlp(middle)))


@pytest.mark.parametrize("cross", [False, True])
def test_a_layer_checks_that_it_gets_a_context_if_it_needs_one(cross):
    layer, x = TransformerLayer(DIM, HEADS, dropout=0.0, cross=cross).double(), drawn(3, 5, DIM)
    with pytest.raises(AssertionError, match="cross-attention needs a context, and self-attention has none"):
        layer(x, to_attention_mask(MASK), None if cross else x)


@pytest.mark.parametrize("branch", ["attention", "mlp"])
def test_dropout_affects_each_branch_in_training_only(branch):
    """With the other branch at zero, so that what is dropped there could not be seen."""
    x, layer = drawn(3, 5, DIM), TransformerLayer(DIM, HEADS, dropout=0.5).double()
    other = layer.mlp[3] if branch == "attention" else layer.attention.output_projection
    torch.nn.init.zeros_(other.weight)
    torch.nn.init.zeros_(other.bias)
    assert not torch.equal(layer(x, to_attention_mask(MASK)), layer(x, to_attention_mask(MASK)))
    layer.eval()
    assert torch.equal(layer(x, to_attention_mask(MASK)), layer(x, to_attention_mask(MASK)))


def test_num_queries_returns_the_same_leading_tokens():
    x, layer = drawn(3, 5, DIM), TransformerLayer(DIM, HEADS, dropout=0.0).double()
    torch.testing.assert_close(
        layer(x, to_attention_mask(MASK), num_queries=2), layer(x, to_attention_mask(MASK))[:, :2]
    )


@pytest.mark.parametrize("positions", [0, 1, 3, 9])
def test_token_projection_adds_input_and_position_embeddings(positions):
    widths = {"b": 4, "a": 6}
    project = TokenProjection(widths, DIM, positions).double()
    inputs = {name: Encoded(drawn(3, 5, width), MASK, drawn(3, width)) for name, width in sorted(widths.items())}
    found = project(inputs)
    for i, name in enumerate(widths):
        part = project.projection[name]
        for row in range(3):
            for t in range(5):
                x = inputs[name].tokens[row, t]
                normed = (x - x.mean()) / (x.var(unbiased=False) + part.norm.eps).sqrt()
                expected = project.embedding[i] + (part.linear.weight @ normed if MASK[row, t] else 0)
                if positions:
                    place = max(int(MASK[row, : t + 1].sum()) - 1, 0)  # real tokens before it
                    expected = expected + project.position_embedding[min(place, positions - 1)]
                torch.testing.assert_close(found[i][row, t], expected)
    assert len(project.position_embedding) == positions if positions else project.position_embedding is None


def test_a_row_without_real_tokens_attends_to_padding():
    mask = torch.tensor([[True, False, True], [False, False, False]])
    assert to_attention_mask(mask).tolist() == [[[True, False, True]], [[True, True, True]]]
