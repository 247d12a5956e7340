"""Decision-level heads of independent labels, as ``FusionClassifier`` builds them for ``MultiLabel``."""

from __future__ import annotations

import pytest
import torch

import fusion_pl.fusion
from fusion_pl import FusionClassifier
from fusion_pl.encoders import TinyText
from fusion_pl.fusion import Average, Fusion, ProductOfExperts, Stacking, Vote
from fusion_pl.tasks import MultiLabel
from fusion_pl.training.loss import total_loss

from .reference import mlp, randomised
from .reference_late import FixedLogits, batch_of, unimodal_logits

PRESENT = [[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0]]
HEADS = [
    head
    for name in fusion_pl.fusion.__all__
    if (head := getattr(fusion_pl.fusion, name)) is not Fusion and head.several_labels
]


def for_labels(head):
    head.exclusive_classes = False
    return head


def sigmoid(logits):
    return 1 / (1 + (-logits).exp())


def average(head, own):
    return sum(sigmoid(one) for one in own.values()) / len(own) if own else torch.full((4,), 0.5).double()


def vote(head, own):
    if not own:
        return torch.full((4,), 0.5).double()
    votes = sum((sigmoid(one) > 0.5).double() for one in own.values()) / len(own)
    return (votes + 0.01 * average(head, own)) / 1.01


def product_of_experts(head, own):
    prior = sigmoid(head.prior)
    odds = prior / (1 - prior)
    for one in own.values():
        odds = odds * sigmoid(one) / (1 - sigmoid(one)) / (prior / (1 - prior))
    return odds / (1 + odds)


def stacking(head, own):
    known = [own.get(name, torch.zeros(4).double()) for name in head.names]
    present = torch.tensor([float(name in own) for name in head.names]).double()
    return sigmoid(mlp(head.meta_classifier, torch.cat([*known, present])))


FORMULAS = {Average: average, Vote: vote, ProductOfExperts: product_of_experts, Stacking: stacking}


def test_every_head_has_a_formula():
    assert set(HEADS) == set(FORMULAS)


@pytest.mark.parametrize("cls", HEADS)
def test_equals_its_formula(cls, dims, make):
    head, inputs = for_labels(randomised(cls(dims, num_classes=4, dim=7))), make(PRESENT)
    probabilities = head(inputs).logits.sigmoid()
    for row in range(len(PRESENT)):
        expected = FORMULAS[cls](head, unimodal_logits(head.unimodal, inputs, row))
        torch.testing.assert_close(probabilities[row], expected)


@pytest.mark.parametrize("cls", [Average, Vote, ProductOfExperts])
def test_a_label_depends_on_no_other_label(cls, dims, make):
    logits = torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    changed = logits.clone()
    changed[..., 1:] *= -2
    found = []
    for fixed in (logits, changed):
        head = for_labels(cls(dims, num_classes=4).double())
        head.unimodal = FixedLogits(fixed)
        if cls is Average:
            head.unimodal.compute_hidden = lambda inputs: torch.zeros(4, 3, 128).double()
            head.unimodal.logits_from_hidden = lambda hidden, inputs, fixed=fixed: fixed
        found.append(head(make(PRESENT)).logits)
    torch.testing.assert_close(found[0][:, 0], found[1][:, 0])
    assert (found[0][:3, 1:] != found[1][:3, 1:]).any()


@pytest.mark.parametrize("cls", HEADS)
def test_sure_predictions_are_finite_and_have_gradients(cls, dims, make):
    head, inputs = for_labels(cls(dims, num_classes=4, dim=7)), make([[1, 1, 1], [1, 0, 1]], torch.float32)
    with torch.no_grad():
        for classify in head.unimodal.classifier.values():
            classify.bias.copy_(torch.tensor([500.0, -500.0, 0.0, 50.0]))
    batch, target = batch_of(inputs, [0, 0]), torch.tensor([[0.0, 1, 1, 0]] * 2)

    def criterion(logits, mask=None):
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)
        return (losses if mask is None else losses * mask).mean()

    head.held_out = 0.0  # of Stacking: all samples train the inputs' classifiers
    fused = head.train()(inputs)
    assert fused.logits.isfinite().all()
    total_loss(head.loss(fused, batch, criterion)).backward()
    gradients = [classify.bias.grad for classify in head.unimodal.classifier.values()]
    gradient = sum(one for one in gradients if one is not None)
    assert gradient.isfinite().all()
    assert gradient[0] > 0 > gradient[1]


@pytest.mark.parametrize("cls", HEADS)
def test_the_model_tells_the_head_that_labels_are_independent(cls):
    encoders = {"text": TinyText(dim=8)}
    assert not FusionClassifier(encoders, cls, ["a", "b"], task=MultiLabel()).fusion.exclusive_classes
    assert FusionClassifier(encoders, cls, ["a", "b"]).fusion.exclusive_classes
