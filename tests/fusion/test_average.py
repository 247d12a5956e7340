from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fusion_pl.fusion import Average
from fusion_pl.types import UserError

PRESENT = [[1, 1, 1], [0, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize("weights", ["equal", "global", "sample", "given"])
def test_equals_the_logarithm_of_the_weighted_probabilities(dims, make, weights):
    given = [3.0, 1.0, 0.0]
    chosen = dict(zip(dims, given, strict=True)) if weights == "given" else weights
    head = Average(dims, num_classes=4, weights=chosen, dim=7).double().eval()
    if weights == "global":
        with torch.no_grad():
            head.weighting.offset.copy_(torch.tensor([0.5, -1.0, 2.0]))
    inputs = make(PRESENT)
    fused = head(inputs)
    for row, table in enumerate(PRESENT):
        shares, parts = [], []
        for i, (name, one) in enumerate(inputs.items()):
            if not table[i]:
                assert fused.input_logits[name][row].tolist() == [0.0] * 4
                continue
            hidden = F.gelu(
                head.unimodal.projection[name].linear(head.unimodal.projection[name].norm(one.embedding[row]))
            )
            logits = head.unimodal.classifier[name](hidden)
            torch.testing.assert_close(fused.input_logits[name][row], logits)
            parts.append(logits.exp() / logits.exp().sum())
            score = 0.0 if head.weighting.offset is None else head.weighting.offset[i].item()
            score += head.weighting.gate(hidden).item() if weights == "sample" else 0.0
            shares.append(given[i] if weights == "given" else math.exp(score))
        shares = [share / sum(shares) for share in shares]
        expected = sum(share * part for share, part in zip(shares, parts, strict=True)).log()
        torch.testing.assert_close(fused.logits[row], expected, rtol=1e-6, atol=1e-6)
        present_weights = fused.weights[row][torch.tensor(table, dtype=torch.bool)]
        torch.testing.assert_close(present_weights, torch.tensor(shares).double(), rtol=1e-6, atol=0)
    assert fused.embedding is None


def test_logits_are_log_probabilities_for_every_subset_of_inputs(dims, make):
    logits = Average(dims, num_classes=4).double()(make([[1, 1, 1], [0, 1, 0], [0, 0, 0]])).logits
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(3).double())
    torch.testing.assert_close(logits[2].exp(), torch.full((4,), 0.25).double())


def test_a_confident_wrong_prediction_has_a_gradient(dims, make):
    head = Average(dims, num_classes=4)
    with torch.no_grad():
        for classify in head.unimodal.classifier.values():
            classify.bias[0] = 500.0  # the other classes' probabilities underflow to 0
    logits = head(make([[1, 1, 1]], torch.float32)).logits
    F.cross_entropy(logits, torch.tensor([1])).backward()
    assert logits.isfinite().all()
    gradient = torch.stack([classify.bias.grad for classify in head.unimodal.classifier.values()]).sum(0)
    torch.testing.assert_close(gradient, torch.tensor([1.0, -1.0, 0.0, 0.0]), atol=1e-3, rtol=0)


def test_refuses_weights_that_do_not_match_the_inputs(dims):
    with pytest.raises(UserError, match="weights for text, but the model's inputs are título, my photo, voice-2"):
        Average(dims, num_classes=4, weights={"text": 1.0})
