from __future__ import annotations

import pytest
import torch

from fusion_pl.fusion import Vote
from fusion_pl.training.loss import total_loss
from fusion_pl.types import UserError

from .reference import randomised
from .reference_late import FixedLogits, batch_of, cross_entropy_of, softmax, unimodal_logits

PRESENT = [[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0]]


def voting(dims, probabilities, dtype=torch.float64):
    """A head whose inputs have these probabilities (B, M, C)."""
    head = Vote(dims, num_classes=4).to(dtype)
    head.unimodal = FixedLogits(torch.tensor(probabilities, dtype=dtype).log())
    return head


def test_equals_its_formula(dims, make):
    head, inputs = randomised(Vote(dims, num_classes=4, dim=7)), make(PRESENT)
    fused = head(inputs)
    for row, table in enumerate(PRESENT):
        own = [softmax(logits) for logits in unimodal_logits(head.unimodal, inputs, row).values()]
        assert len(own) == sum(table)
        expected = [0.25] * 4
        if own:
            votes = [[int(max(range(4), key=one.__getitem__)) == c for one in own].count(True) for c in range(4)]
            means = [sum(one[c] for one in own).item() / len(own) for c in range(4)]
            expected = [(v / len(own) + 0.01 * p) / 1.01 for v, p in zip(votes, means, strict=True)]
        torch.testing.assert_close(fused.logits[row].exp(), torch.tensor(expected).double())


def test_a_majority_wins_whatever_the_probabilities(dims, make):
    sure, barely = [1e-9, 1 - 3e-9, 1e-9, 1e-9], [0.26, 0.25, 0.245, 0.245]
    head = voting(dims, [[sure, barely, barely], [barely, sure, barely], [barely, barely, sure]])
    fused = head(make([[1, 1, 1]] * 3))
    assert fused.logits.argmax(-1).tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_tie_goes_to_the_larger_mean_probability(dims, make, dtype):
    doubtful, surer = [0.40, 0.35, 0.15, 0.10], [0.20, 0.50, 0.20, 0.10]
    three = [[0.4, 0.3, 0.3, 0.0], [0.1, 0.5, 0.4, 0.0], [0.2, 0.1, 0.7, 0.0]]  # 0, 1 and 2: means 0.23, 0.3, 0.47
    head = voting(dims, [[doubtful, surer, doubtful], [surer, doubtful, doubtful], three], dtype)
    fused = head(make([[1, 1, 0], [1, 0, 1], [1, 1, 1]], dtype))
    assert fused.logits.argmax(-1).tolist() == [1, 1, 2]


def test_the_logit_of_a_class_without_probability_is_finite(dims, make):
    head = Vote(dims, num_classes=4)
    head.unimodal = FixedLogits(torch.tensor([[[0.0, 500.0, 0.0, 0.0]] * 3]))
    assert head(make([[1, 1, 1]], torch.float32)).logits.isfinite().all()


def test_each_classifier_is_trained_on_the_samples_that_have_its_input(dims, make):
    head, inputs, target = randomised(Vote(dims, num_classes=4, dim=7)), make(PRESENT), [2, 0, 1, 3]
    loss = total_loss(head.loss(head(inputs), batch_of(inputs, target), cross_entropy_of(target)))
    own = [unimodal_logits(head.unimodal, inputs, row) for row in range(4)]
    expected = sum(-softmax(one[name])[target[row]].log() for row, one in enumerate(own) for name in one) / 4
    torch.testing.assert_close(loss, expected)

    loss.backward()
    name = next(iter(dims))
    found = head.unimodal.classifier[name].weight.grad.clone()
    head.zero_grad()
    (sum(-softmax(one[name])[target[row]].log() for row, one in enumerate(own) if name in one) / 4).backward()
    torch.testing.assert_close(found, head.unimodal.classifier[name].weight.grad)


def test_refuses_invalid_arguments(dims):
    with pytest.raises(UserError, match="Vote was given dim=0, expected a whole number of at least 1"):
        Vote(dims, num_classes=4, dim=0)
