"""Methods that are measured beside those of ``fusion-pl explain``: attention roll-out, as a product of matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.explain import explain
from benchmarks.explain_candidates import ATTENTION_HEADS, attention_rollout
from benchmarks.planted import draw, train
from fusion_pl.explain.scores import SampleScores
from fusion_pl.fusion import SelfAttention


def test_the_rollout_of_self_attention_is_the_product_of_its_matrices():
    """Attention to one-hot values returns the attention weights."""
    predictor = train(seed=0, epochs=0, head=SelfAttention)
    inputs, _ = draw(np.random.default_rng(0), 0)
    scores, head = SampleScores.encode(predictor, predictor.open_sample("0", inputs)), predictor.model.fusion
    lengths = [one.tokens.shape[1] for one in scores.encoded.values()]
    with torch.no_grad():
        x = torch.cat([head.class_token.expand(1, 1, -1), *head.projection(scores.encoded)], dim=1)
        everything, product = torch.ones(1, 1, x.shape[1], dtype=torch.bool), torch.eye(x.shape[1])
        for layer in head.layers:
            normed, attention = layer.norm_query(x), layer.attention
            query, key = attention.query(normed), attention.key_value(normed)[..., : x.shape[-1]]
            query, key = (one[0].unflatten(-1, (attention.num_heads, -1)).movedim(1, 0) for one in (query, key))
            one_hot = torch.eye(x.shape[1]).expand(attention.num_heads, -1, -1)
            weights = scaled_dot_product_attention(query, key, one_hot).mean(0)
            product = (torch.eye(x.shape[1]) + weights) / 2 @ product
            x = layer(x, everything)
    torch.testing.assert_close(product.sum(1), torch.ones(x.shape[1]))
    _, _, image, audio = product[0].split([1, *lengths])
    found = attention_rollout(scores, "image", 0).spans
    torch.testing.assert_close(torch.tensor(list(found.values())), image)
    windows = attention_rollout(scores, "audio", 0).spans
    covered = audio.sum().item()  # the last token is longer than the rest of the sound
    assert covered - audio[-1].item() <= sum(windows.values()) + 1e-6 <= covered + 2e-6
    words = attention_rollout(scores, "text", 0).spans
    assert sum(words.values()) == pytest.approx(product[0, 2 : 1 + lengths[0]].sum().item(), abs=1e-6)


@pytest.mark.parametrize("head", ATTENTION_HEADS)
def test_the_shares_of_all_tokens_sum_to_at_most_one(head):
    predictor = train(seed=0, epochs=0, head=head)
    inputs, _ = draw(np.random.default_rng(0), 0)
    for name, value in inputs.items():
        _, effects = explain(predictor, attention_rollout, {name: value})
        assert min(effects.values()) >= 0
        assert 0 < sum(effects.values()) < 1 + 1e-6
