from __future__ import annotations

import itertools

import pytest
import torch

from fusion_pl.fusion import ProductOfExperts
from fusion_pl.types import UserError

from .reference import randomised
from .reference_late import FixedLogits, softmax, unimodal_logits

PRESENT = [[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_equals_the_product_over_the_prior(dims, make, count):
    chosen = dict(list(dims.items())[:count])
    head, inputs = (
        randomised(ProductOfExperts(chosen, num_classes=4, dim=7)),
        make([table[:count] for table in PRESENT]),
    )
    fused = head(inputs)
    prior = softmax(head.prior)
    for row, table in enumerate(PRESENT):
        own = unimodal_logits(head.unimodal, inputs, row)
        assert len(own) == sum(table[:count])
        expected = prior
        for logits in own.values():
            expected = expected * softmax(logits) / prior
        torch.testing.assert_close(fused.logits[row].log_softmax(-1), (expected / expected.sum()).log())
        for name in chosen:
            torch.testing.assert_close(fused.input_logits[name][row], own.get(name, torch.zeros(4).double()))
    assert fused.embedding is None
    assert fused.weights is None


def test_equals_the_posterior_for_inputs_independent_given_the_class(dims, make):
    generator = torch.Generator().manual_seed(3)
    prior = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    seen = torch.rand(3, 4, 5, generator=generator, dtype=torch.float64)  # input, class, what the input shows
    likelihood = seen / seen.sum(-1, keepdim=True)
    joint = torch.einsum("c,ci,cj,ck->cijk", prior, *likelihood)  # of everything at once
    cases = list(itertools.product(range(5), repeat=3))
    expected = torch.stack([joint[:, i, j, k] / joint[:, i, j, k].sum() for i, j, k in cases])
    without_the_last = torch.stack([joint[:, i, j].sum(-1) / joint[:, i, j].sum() for i, j, _ in cases])

    alone = [joint.sum([axis for axis in (1, 2, 3) if axis != m + 1]) for m in range(3)]  # each: class, shown
    posterior = torch.stack([torch.stack([alone[m][:, case[m]] for m in range(3)]) for case in cases])
    head = ProductOfExperts(dims, num_classes=4).double()
    head.unimodal = FixedLogits(posterior.log() + 3.0)  # a classifier knows its posterior up to a factor
    with torch.no_grad():
        head.prior.copy_(prior.log() - 1.0)
    for present, wanted in (([1, 1, 1], expected), ([1, 1, 0], without_the_last)):
        torch.testing.assert_close(head(make([present] * len(cases))).logits.softmax(-1), wanted)


def test_refuses_invalid_arguments(dims):
    with pytest.raises(UserError, match="ProductOfExperts was given dim=0, expected a whole number of at least 1"):
        ProductOfExperts(dims, num_classes=4, dim=0)
    with pytest.raises(UserError, match=r"ProductOfExperts was given dropout=1\.5, expected a probability"):
        ProductOfExperts(dims, num_classes=4, dropout=1.5)
