from __future__ import annotations

import math

import pytest
import torch

from fusion_pl.fusion import QualityAware
from fusion_pl.training.loss import total_loss
from fusion_pl.types import UserError

from .reference import randomised
from .reference_late import FixedLogits, batch_of, cross_entropy_of, softmax, unimodal_logits

PRESENT = [[1, 1, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]]


def confidence(logits):
    return (1 + logits.exp().sum()).log()  # softplus(log Σ exp f)


def test_equals_its_formula(dims, make):
    head, inputs = randomised(QualityAware(dims, num_classes=4, dim=7)), make(PRESENT)
    fused = head(inputs)
    for row, table in enumerate(PRESENT):
        own = unimodal_logits(head.unimodal, inputs, row)
        assert len(own) == sum(table)
        sure = {name: confidence(logits) for name, logits in own.items()}
        weights = [sure[name] / sum(sure.values()) if name in sure else torch.tensor(0.0).double() for name in dims]
        torch.testing.assert_close(fused.weights[row], torch.stack(weights))
        expected = sum((w * own[name] for w, name in zip(weights, dims, strict=True) if name in own), torch.zeros(4))
        torch.testing.assert_close(fused.logits[row], expected.double())


def test_weights_sum_to_one_where_confidences_underflow(dims, make):
    decisions = torch.tensor([[-100.0] * 4, [-101.0] * 4, [-104.0] * 4]).unsqueeze(0)
    head = QualityAware(dims, num_classes=4)
    head.unimodal = FixedLogits(decisions)
    fused = head(make([[1, 1, 1]], torch.float32))
    expected = torch.tensor([0.0, -1.0, -4.0]).softmax(0)  # softplus is the exponential there, and log Σ exp adds log 4
    torch.testing.assert_close(fused.weights[0], expected)
    assert abs(fused.logits).min() > 100


def test_no_gradient_goes_through_the_weights(dims, make):
    decisions = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).double()
    head = QualityAware(dims, num_classes=4)
    head.unimodal = FixedLogits(decisions)
    fused = head(make([[1, 1, 1], [1, 0, 1]]))
    assert not fused.weights.requires_grad
    fused.logits[:, 1].sum().backward()
    expected = torch.zeros(2, 3, 4).double()
    expected[:, :, 1] = fused.weights  # what is left of the derivative when w is a constant
    torch.testing.assert_close(head.unimodal.logits.grad, expected)


def ranked(own, target):
    """Return the ranking of one input: each sample that has it beside the one before, the first beside the last."""
    total = 0.0
    for i in range(len(target)):
        here, there = own[i], own[i - 1]
        if here is None or there is None:
            continue
        right, other = softmax(here)[target[i]], softmax(there)[target[i - 1]]
        lead = (confidence(here) - confidence(there)) / 10
        lead = lead if right > other else -lead
        total = total + max(abs(right - other) - lead, torch.tensor(0.0).double()) * (right != other)
    return total / len(target)


@pytest.mark.parametrize("rank", [0.0, 0.6])
def test_loss_equals_its_formula(dims, make, rank):
    head, inputs = randomised(QualityAware(dims, num_classes=4, rank=rank, dim=7)), make([*PRESENT, [1, 1, 1]])
    target = [2, 0, 1, 3, 1, 1]
    fused, cross_entropy = head(inputs), cross_entropy_of(target)
    own = [unimodal_logits(head.unimodal, inputs, row) for row in range(len(target))]
    expected = cross_entropy(fused.logits)
    for name in dims:
        mine = [one.get(name) for one in own]
        alone = sum(-softmax(x)[c].log() for x, c in zip(mine, target, strict=True) if x is not None) / len(target)
        order = ranked(mine, target)
        assert order > 0, "the test needs a pair in the wrong order"
        expected = expected + alone + rank * order
    torch.testing.assert_close(total_loss(head.loss(fused, batch_of(inputs, target), cross_entropy)), expected)


def ranking_loss(decisions, dims, make, target):
    """Return what ``rank`` adds to the loss of two samples of one input."""
    name = next(iter(dims))
    losses, inputs = [], make([[1], [1]])
    for rank in (1.0, 0.0):
        head = QualityAware({name: dims[name]}, num_classes=4, rank=rank)
        head.unimodal = FixedLogits(decisions.unsqueeze(1))
        losses.append(total_loss(head.loss(head(inputs), batch_of(inputs, target), cross_entropy_of(target))))
    return losses[0] - losses[1]


def test_ranking_loss_needs_confidence_to_follow_the_probability_of_the_true_class(dims, make):
    right, wrong = torch.tensor([5.0, 0.0, 0.0, 0.0]).double(), torch.tensor([0.0, 5.0, 0.0, 0.0]).double()
    gap = (softmax(right)[0] - softmax(wrong)[0]).item()
    # Adding a number to all logits leaves the probabilities and raises the confidence by nearly that number.
    ordered = ranking_loss(torch.stack([right + 20, wrong]), dims, make, [0, 0])
    not_enough = ranking_loss(torch.stack([right + 2, wrong]), dims, make, [0, 0])
    reverse = ranking_loss(torch.stack([right, wrong + 20]), dims, make, [0, 0])
    assert ordered.item() == pytest.approx(0.0, abs=1e-12)
    assert 0 < not_enough.item() < gap
    assert reverse.item() > gap
    assert ranking_loss(torch.stack([right, right]), dims, make, [0, 0]).item() == 0.0


def test_ranking_loss_has_no_gradient_for_the_probability(dims, make):
    decisions = torch.stack([torch.tensor([5.0, 0.0, 0.0, 0.0]), torch.tensor([0.0, 5.0, 0.0, 0.0])]).double()
    name = next(iter(dims))
    head, inputs = QualityAware({name: dims[name]}, num_classes=4, rank=1.0), make([[1], [1]])
    head.unimodal = FixedLogits(decisions.unsqueeze(1))
    losses = head.loss(head(inputs), batch_of(inputs, [0, 0]), lambda logits, mask=None: 0 * logits.sum())
    total_loss(losses).backward()
    # Up where it is right, down where it is wrong, and each class by no more than its share in log Σ exp.
    gradient = head.unimodal.logits.grad.squeeze(1)
    assert (gradient[0] < 0).all()
    assert (gradient[1] > 0).all()
    for moved, logits in zip(gradient, decisions, strict=True):
        torch.testing.assert_close(moved / moved.sum(), softmax(logits))


@pytest.mark.parametrize("rank", [-1.0, math.nan, math.inf])
def test_refuses_invalid_arguments(dims, rank):
    with pytest.raises(UserError, match=f"QualityAware was given rank={rank}, expected a number that is 0 or more"):
        QualityAware(dims, num_classes=4, rank=rank)
