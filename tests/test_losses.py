"""What training minimises, where a head has a say in it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy

from fusion_pl import fusion
from fusion_pl.fusion import Concat, Fusion, Stacking, Vote
from fusion_pl.module import FusionClassifier
from fusion_pl.training import Loss

from .conftest import CLASSES

HEADS = [getattr(fusion, name) for name in fusion.__all__]


class Doubled(Concat):
    """Asks for twice the cross-entropy, and keeps the first two samples of a batch from the encoders."""

    def loss(self, fused, batch, cross_entropy):
        return {"fused": 2 * cross_entropy(fused.logits)}

    def held_out_mask(self, batch):
        return torch.arange(len(batch.ids)) < 2


def classifier(encoders, head, **loss):
    model = FusionClassifier(encoders, head, CLASSES, loss=Loss(**loss))
    model.log = lambda *args, **kwargs: None
    return model


def summed(classify, encoded, batch, mask):
    """Return the summed cross-entropy of one input's own decisions over chosen samples that have it."""
    found = encoded.mask.any(-1)
    rows = [row for row in range(len(batch.ids)) if mask[row] and found[row]]
    return sum(cross_entropy(classify(encoded.embedding[row]), batch.target[row]) for row in rows)


def gradients(model, *parts):
    return [one.grad.clone() for part in parts for one in model.get_submodule(part).parameters()]


def test_training_uses_the_loss_of_the_head(encoders, batch):
    model = classifier(encoders, Doubled).eval()
    expected = 2 * cross_entropy(model(batch).logits, batch.target)
    torch.testing.assert_close(model.training_step(batch, 0), expected)


def test_auxiliary_loss_excludes_held_out_samples(encoders, batch):
    model = classifier(encoders, Doubled, auxiliary_weight=0.7).eval()
    encoded = model.encode(batch)
    expected = 2 * cross_entropy(model(batch).logits, batch.target)
    for name, classify in model.auxiliary_heads.items():
        mask = [row >= 2 for row in range(len(batch.ids))]
        expected = expected + 0.7 * summed(classify, encoded[name], batch, mask) / len(batch.ids)
    torch.testing.assert_close(model.training_step(batch, 0), expected)


def test_smoothing_and_class_weights_apply_to_the_loss_of_the_head(encoders, batch):
    model = classifier(encoders, Vote, label_smoothing=0.2, class_weights=[1.0, 3.0]).eval()
    model.setup("fit")
    decisions = model(batch).input_logits
    weights, expected = torch.tensor([1.0, 3.0]), 0.0
    for name, present in batch.present.items():
        for row in present.nonzero().flatten().tolist():
            # Smoothed by hand: a share of each class's loss, weighted by that class.
            target = torch.full((2,), 0.1).index_fill(0, batch.target[row], 0.9)
            expected = expected - (target * weights * decisions[name][row].log_softmax(-1)).sum()
    torch.testing.assert_close(model.training_step(batch, 0), expected / weights[batch.target].sum())


@pytest.mark.parametrize("head", [Concat, *(head for head in HEADS if head.loss is not Fusion.loss)])
def test_the_scale_of_class_weights_does_not_matter(encoders, batch, head):
    """In every head's own loss and in the inputs', as in the cross-entropy of the decision."""

    def loss(weights):
        torch.manual_seed(0)
        model = classifier(encoders, head, label_smoothing=0.1, auxiliary_weight=0.5, class_weights=weights).eval()
        model.setup("fit")
        return model.train(head is Stacking).training_step(batch, 0)  # which stacks in training only

    for encoder in encoders.values():
        encoder.register_forward_pre_hook(lambda part, given: part.eval() and None)  # so that nothing is dropped
    plain, skewed = loss(None), loss([1.0, 3.0])
    torch.testing.assert_close(loss([10.0, 10.0]), plain)
    torch.testing.assert_close(loss([10.0, 30.0]), skewed)
    assert not torch.isclose(plain, skewed)


def test_held_out_samples_train_neither_encoders_nor_auxiliary_heads(encoders, batch):
    model = classifier(encoders, partial(Stacking, held_out=0.5, dropout=0.0), auxiliary_weight=0.7).train()
    held = model.fusion.held_out_mask(batch)
    assert held.any()
    assert not held.all()
    found = []
    for target in (batch.target, torch.where(held, 1 - batch.target, batch.target)):
        model.zero_grad()
        torch.manual_seed(0)  # the encoders drop out
        model.training_step(batch._replace(target=target), 0).backward()
        found.append(
            (
                gradients(model, "encoders", "auxiliary_heads", "fusion.unimodal"),
                gradients(model, "fusion.meta_classifier"),
            )
        )
    (below, above), (other_below, other_above) = found
    assert all(torch.equal(one, other) for one, other in zip(below, other_below, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(above, other_above, strict=True))
    assert all(any(one.grad.any() for one in encoder.parameters()) for encoder in model.encoders.values())
