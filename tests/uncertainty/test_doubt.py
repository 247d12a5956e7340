"""Scores of doubt and the risk-coverage curve, compared with slow restatements."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from fusion_pl.encoders import TinyText
from fusion_pl.fusion import Evidential
from fusion_pl.uncertainty.doubt import (
    abstention_threshold,
    area_under_risk_coverage,
    doubt_scores,
    risk_coverage,
)


def test_scores_equal_their_formulas():
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0]])
    found = doubt_scores(logits, (logits / 2).softmax(-1), evidential=True)
    for row, z in enumerate(logits.tolist()):
        p = np.exp(np.array(z) / 2) / np.exp(np.array(z) / 2).sum()
        assert found["probability"][row].item() == pytest.approx(1 - p.max())
        assert found["entropy"][row].item() == pytest.approx(-(p * np.log(p)).sum())
        assert found["energy"][row].item() == pytest.approx(-math.log(sum(map(math.exp, z))))
        assert found["evidential"][row].item() == pytest.approx(3 / sum(map(math.exp, z)))
    assert "evidential" not in doubt_scores(logits, logits.softmax(-1), evidential=False)


def test_evidential_doubt_is_the_uncertainty_of_the_fused_opinion():
    """Dempster's rule multiplies the uncertainties of one input with certainty 0: u = C / S."""
    torch.manual_seed(0)
    encoder = TinyText(dim=8)
    head = Evidential({"text": 8}, 3).eval()
    encoded = encoder(**encoder.processor(["a", "long text"]))
    logits = head({"text": encoded}).logits
    evidence = torch.nn.functional.softplus(head.unimodal({"text": encoded}))[:, 0]
    found = doubt_scores(logits, logits.softmax(-1), evidential=True)["evidential"]
    assert found.tolist() == pytest.approx((3 / (evidence + 1).sum(-1)).tolist(), rel=1e-5)


def slow_area(doubts, wrong):
    """Average the curve over many orders of the samples with equal doubt."""
    rng, areas = np.random.default_rng(0), []
    for _ in range(4000):
        order = sorted(rng.permutation(len(doubts)).tolist(), key=lambda row: doubts[row])
        errors = np.cumsum([wrong[row] for row in order])
        areas.append(np.mean(errors / np.arange(1, len(doubts) + 1)))
    return np.mean(areas)


def test_the_area_under_the_risk_coverage_curve_equals_a_slow_restatement():
    doubts = [0.1, 0.4, 0.4, 0.4, 0.9, 0.2, 0.9]
    wrong = [False, True, False, True, True, False, False]
    area = area_under_risk_coverage(torch.tensor(doubts), torch.tensor(wrong))
    assert area == pytest.approx(slow_area(doubts, wrong), abs=0.005)
    curve = risk_coverage(torch.tensor(doubts), torch.tensor(wrong))
    assert curve[[1, 4, 6]].tolist() == pytest.approx([0.0, 2 / 5, 3 / 7])
    assert math.isnan(area_under_risk_coverage(torch.zeros(0), torch.zeros(0, dtype=torch.bool)))


@pytest.mark.parametrize(("share", "answered"), [(0.7, 7), (0.65, 7), (0.01, 1), (0.99, 10)])
def test_the_threshold_answers_that_share_of_the_validation(share, answered):
    doubts = torch.tensor([5.0, 1, 9, 2, 8, 3, 7, 4, 6, 0]).double()
    assert int((doubts <= abstention_threshold(doubts, share)).sum()) == answered


def test_doubt_of_several_labels_is_that_of_all_sets_of_labels():
    logits = torch.tensor([[2.0, -0.3, 0.1], [0.0, 5.0, -1.0]]).double()
    p = logits.sigmoid()
    found = doubt_scores(logits, p, evidential=False, exclusive_classes=False)
    for row in range(2):
        joint = [
            math.prod(float(p[row, c] if has else 1 - p[row, c]) for c, has in enumerate(members))
            for members in itertools.product((0, 1), repeat=3)
        ]
        assert float(found["probability"][row]) == pytest.approx(1 - max(joint))
        assert float(found["entropy"][row]) == pytest.approx(-sum(q * math.log(q) for q in joint))
        assert float(found["energy"][row]) == pytest.approx(-sum(math.log(1 + math.exp(z)) for z in logits[row]))
