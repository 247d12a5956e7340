from __future__ import annotations

import pytest
import torch

from fusion_pl.fusion import Stacking
from fusion_pl.training.loss import total_loss
from fusion_pl.types import UserError
from tests.commands import run_command

from .reference import mlp, randomised
from .reference_late import batch_of, cross_entropy_of, softmax, unimodal_logits

PRESENT = [[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0]]


def stacked(head, own):
    """Take one sample's decisions through the stacked classifier."""
    known = [softmax(own[name]).log() if name in own else torch.zeros(4).double() for name in head.names]
    return mlp(
        head.meta_classifier, torch.cat([*known, torch.tensor([float(name in own) for name in head.names]).double()])
    )


def parts(head, inputs, target, ids):
    """Return the loss of the inputs' classifiers and of the stacked one, sample by sample."""
    held = head.held_out_mask(batch_of(inputs, target, ids)).tolist()
    assert {*held} == {True, False}, "the test needs samples on both sides"
    base, top = [], []
    for row, out in enumerate(held):
        own = unimodal_logits(head.unimodal, inputs, row)
        if out:
            top.append(-softmax(stacked(head, own))[target[row]].log())
        else:
            base += [-softmax(one)[target[row]].log() for one in own.values()]
    return sum(base) / len(target), sum(top) / len(target), held


def gradients(head, module):
    return {name: one.grad for name, one in getattr(head, module).named_parameters()}


@pytest.fixture
def trained(dims, make):
    """A head in training, with what it gets."""
    head = randomised(Stacking(dims, num_classes=4, held_out=0.5, dim=7, dropout=0.0)).train()
    return head, make(PRESENT * 4), [row % 4 for row in range(16)], [f"sample {row}" for row in range(16)]


def test_equals_its_formula(dims, make):
    head, inputs = randomised(Stacking(dims, num_classes=4, dim=7)), make(PRESENT)
    fused = head(inputs)
    for row in range(len(PRESENT)):
        torch.testing.assert_close(fused.logits[row], stacked(head, unimodal_logits(head.unimodal, inputs, row)))
    assert fused.extra == {}


def test_loss_equals_its_formula_on_disjoint_samples(trained):
    head, inputs, target, ids = trained
    base, top, _ = parts(head, inputs, target, ids)
    loss = total_loss(head.loss(head(inputs), batch_of(inputs, target, ids), cross_entropy_of(target)))
    torch.testing.assert_close(loss, base + top)

    loss.backward()
    found = {module: gradients(head, module) for module in ("unimodal", "meta_classifier")}
    head.zero_grad()
    base, _, _ = parts(head, inputs, target, ids)
    base.backward()
    for name, gradient in gradients(head, "unimodal").items():  # nothing of the stacked one's loss comes down here
        torch.testing.assert_close(found["unimodal"][name], gradient)
    assert not any(gradient is not None for gradient in gradients(head, "meta_classifier").values())
    head.zero_grad()
    _, top, _ = parts(head, inputs, target, ids)
    top.backward()
    for name, gradient in gradients(head, "meta_classifier").items():  # and nothing of the classifiers' loss up there
        torch.testing.assert_close(found["meta_classifier"][name], gradient)


def test_held_out_samples_have_no_gradient_for_the_encoders(trained):
    head, inputs, target, ids = trained
    *_, held = parts(head, inputs, target, ids)
    for one in inputs.values():
        one.embedding.requires_grad_()
    total_loss(head.loss(head(inputs), batch_of(inputs, target, ids), cross_entropy_of(target))).backward()
    for one in inputs.values():
        for row, out in enumerate(held):
            assert one.embedding.grad[row].any() == (bool(one.mask[row].any()) and not out)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("name", ["{}", "s{:06d}", "train/photo {}.jpg"])
def test_the_given_fraction_is_held_out_by_id(dims, make, share, name):
    head, count = Stacking(dims, num_classes=4, held_out=share), 4000
    inputs = make([[1, 1, 1]] * count)
    ids = [name.format(row) for row in range(count)]
    held = head.held_out_mask(batch_of(inputs, [0] * count, ids))
    standard_deviation = (share * (1 - share) / count) ** 0.5
    assert abs(held.double().mean().item() - share) < 4 * standard_deviation
    again = Stacking(dims, num_classes=2, held_out=share).held_out_mask(batch_of(inputs, [1] * count, ids[::-1]))
    assert torch.equal(again.flip(0), held)


def test_another_process_holds_out_the_same_samples(dims, make):
    ids = [f"s{row}" for row in range(40)]
    held = Stacking(dims, num_classes=4, held_out=0.5).held_out_mask(batch_of(make([[1, 1, 1]] * 40), [0] * 40, ids))
    code = """
import torch
from fusion_pl.fusion import Stacking
from fusion_pl.types import Batch
present = {"a": torch.ones(40, dtype=torch.bool)}
batch = Batch({"a": {}}, present, None, [f"s{row}" for row in range(40)], [()] * 40)
print(Stacking({"a": 2}, 4, held_out=0.5).held_out_mask(batch).int().tolist())
"""
    found = run_command(code=code)
    assert found.stdout.strip() == str(held.int().tolist())


@pytest.mark.parametrize("share", [0.0, 1.0, float("nan")])
def test_refuses_a_fraction_of_none_or_all(dims, share):
    with pytest.raises(
        UserError, match=f"Stacking was given held_out={share}, expected a fraction above 0 and below 1"
    ):
        Stacking(dims, num_classes=4, held_out=share)
