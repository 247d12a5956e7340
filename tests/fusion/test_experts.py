from __future__ import annotations

import math

import pytest
import torch

from fusion_pl.fusion import Experts
from fusion_pl.training.loss import total_loss
from fusion_pl.types import Batch, Fused, UserError

from .reference import PRESENT, gelu, linear, mlp, projected_embeddings, randomised, zeros

DIM, EXPERTS = 5, 4
BATCH = Batch({}, {}, None, [], [])


def softmax(scores):
    powers = [math.exp(one.item()) for one in scores]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("top_k", [2, 3, 4])
def test_equals_its_formula(dims, make, top_k):
    head, inputs = randomised(Experts(dims, num_classes=4, dim=DIM, num_experts=EXPERTS, top_k=top_k)), make(PRESENT)
    fused = head(inputs)
    for row, table in enumerate(PRESENT):
        found = projected_embeddings(head, inputs, row)
        context = torch.cat([*(found.get(m, zeros(DIM)) for m in range(3)), torch.tensor(table).double()])
        routed = softmax(linear(head.router, context))
        chosen = sorted(range(EXPERTS), key=lambda k: -routed[k])[:top_k]
        total = sum(routed[k] for k in chosen)
        z = sum(routed[k] / total * mlp(head.experts[k], context) for k in chosen)
        torch.testing.assert_close(fused.embedding[row], z)
        torch.testing.assert_close(fused.logits[row], linear(head.classifier[2], gelu(z)))


def test_exactly_top_k_experts_affect_a_sample(dims, make):
    """Break one expert at a time: a sample changes where that one was among its ``top_k``, and nowhere else."""
    head, inputs = randomised(Experts(dims, num_classes=4, num_experts=EXPERTS, top_k=2)), make(PRESENT * 8)
    before = head(inputs).embedding
    shares = torch.zeros(len(before), dtype=torch.long)
    for expert in head.experts:
        original_bias = expert[3].bias.detach().clone()
        with torch.no_grad():
            expert[3].bias.add_(1.0)
            shares += (head(inputs).embedding != before).any(-1)
            expert[3].bias.copy_(original_bias)
    assert (shares == 2).all()


def test_loss_is_the_cross_entropy_plus_the_balancing_loss(dims, make):
    head, inputs = randomised(Experts(dims, num_classes=4, num_experts=EXPERTS, balance=0.3)), make(PRESENT * 4)
    fused, target = head(inputs), torch.arange(len(PRESENT) * 4) % 4
    probabilities = [softmax(linear(head.router, context)) for context in contexts(head, inputs)]
    balancing = 0.0
    for k in range(EXPERTS):
        first = sum(max(range(EXPERTS), key=lambda e: one[e]) == k for one in probabilities) / len(probabilities)
        balancing += EXPERTS * first * sum(one[k] for one in probabilities) / len(probabilities)
    cross = sum(-math.log(softmax(row)[label]) for row, label in zip(fused.logits, target, strict=True)) / len(target)
    cross_entropy = lambda logits, mask=None: torch.nn.functional.cross_entropy(logits, target)  # noqa: E731
    loss = total_loss(head.loss(fused, BATCH, cross_entropy))
    torch.testing.assert_close(loss, torch.tensor(cross + 0.3 * balancing).double())


def contexts(head, inputs):
    for row in range(len(next(iter(inputs.values())).mask)):
        found = projected_embeddings(head, inputs, row)
        flags = torch.tensor([m in found for m in range(3)]).double()
        yield torch.cat([*(found.get(m, zeros(head.router.in_features // 3 - 1)) for m in range(3)), flags])


@pytest.mark.parametrize(
    ("routed", "expected"),
    [
        (torch.eye(EXPERTS), 1.0),
        (torch.tensor([[1.0, 0, 0, 0]]).repeat(EXPERTS, 1), EXPERTS),
    ],
    ids=["equally often", "one is asked always"],
)
def test_balancing_loss_ranges_from_1_to_the_number_of_experts(dims, routed, expected):
    head = Experts(dims, num_classes=4, num_experts=EXPERTS, balance=1.0)
    fused = Fused(torch.zeros(EXPERTS, 4), extra={"router_probabilities": routed})
    assert total_loss(head.loss(fused, BATCH, lambda logits, mask=None: logits.sum())).item() == expected


def test_the_cross_entropy_has_a_gradient_for_the_router(dims, make):
    head = randomised(Experts(dims, num_classes=4, balance=0.0))
    head(make(PRESENT)).logits.log_softmax(-1)[:, 0].mean().backward()
    assert head.router.weight.grad.abs().max() > 1e-6


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"top_k": 5}, "Experts was given top_k=5, expected at least 2 .* and at most num_experts=4"),
        ({"top_k": 1}, r"Experts was given top_k=1, expected at least 2 \(the weight of a single expert is always 1"),
        ({"balance": -0.1}, r"Experts was given balance=-0\.1, expected a number that is 0 or more"),
        ({"balance": math.nan}, "Experts was given balance=nan, expected a number that is 0 or more"),
    ],
)
def test_refuses_invalid_arguments(dims, args, message):
    with pytest.raises(UserError, match=message):
        Experts(dims, num_classes=4, **args)
