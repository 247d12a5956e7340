from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.distributions import Dirichlet

from fusion_pl.fusion import Evidential
from fusion_pl.fusion.evidential import kl_from_uniform
from fusion_pl.training.loss import total_loss
from fusion_pl.types import UserError

from .reference import randomised
from .reference_late import FixedLogits, batch_of, cross_entropy_of, unimodal_logits

PRESENT = [[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 0, 0], [0, 0, 0]]
CLASSES = 4
ALL = frozenset(range(CLASSES))


def masses(logits):
    """Return the mass function of an input: belief in each class, and uncertainty as the mass of all classes."""
    evidence = (1 + logits.exp()).log()
    total = (evidence + 1).sum()
    return {frozenset({c}): evidence[c] / total for c in range(CLASSES)} | {ALL: CLASSES / total}


def dempster(mass_functions):
    """Apply Dempster's rule: intersect all pairs of sets, drop empty intersections, and normalise the rest."""
    joint = {ALL: torch.tensor(1.0).double()}
    for mass_function in mass_functions:
        met = {}
        for (one, here), (other, there) in itertools.product(joint.items(), mass_function.items()):
            met[one & other] = met.get(one & other, 0.0) + here * there
        conflict = met.pop(frozenset(), torch.tensor(0.0).double())
        joint = {subset: mass / (1 - conflict) for subset, mass in met.items()}
    return joint


def alpha_of(joint):
    return torch.stack([CLASSES * joint.get(frozenset({c}), 0 * joint[ALL]) / joint[ALL] + 1 for c in range(CLASSES)])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_equals_dempsters_rule_over_explicit_subsets(dims, make, count):
    chosen = dict(list(dims.items())[:count])
    head, inputs = randomised(Evidential(chosen, CLASSES, dim=7)), make([table[:count] for table in PRESENT])
    fused = head(inputs)
    for row, table in enumerate(PRESENT):
        mass_functions = {name: masses(logits) for name, logits in unimodal_logits(head.unimodal, inputs, row).items()}
        assert len(mass_functions) == sum(table[:count])
        torch.testing.assert_close(fused.logits[row].exp(), alpha_of(dempster(mass_functions.values())))
        known = {name: 1 - mass_function[ALL] for name, mass_function in mass_functions.items()}
        for m, name in enumerate(chosen):
            own = alpha_of(mass_functions[name]) if name in mass_functions else torch.ones(CLASSES).double()
            torch.testing.assert_close(fused.input_logits[name][row].exp(), own)
            share = known[name] / sum(known.values()) if name in known else torch.tensor(0.0).double()
            torch.testing.assert_close(fused.weights[row, m], share)


def test_the_order_of_the_inputs_does_not_matter(dims, make):
    logits = torch.randn(6, 3, CLASSES, generator=torch.Generator().manual_seed(0)) * 3
    inputs, found = make([[1, 1, 1], [1, 1, 1]] * 3, torch.float32), []
    for order in itertools.permutations(range(3)):
        head = Evidential(dims, CLASSES)
        head.unimodal = FixedLogits(logits[:, list(order)])
        found.append(head(inputs).logits)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-6, atol=1e-6)


def test_a_missing_input_changes_nothing(dims, make):
    names, logits = list(dims), torch.randn(5, 3, CLASSES, generator=torch.Generator().manual_seed(0)).double()
    inputs = make([[1, 0, 1]] * 5)
    with_gap, without = Evidential(dims, CLASSES), Evidential({name: dims[name] for name in names[::2]}, CLASSES)
    with_gap.unimodal, without.unimodal = FixedLogits(logits), FixedLogits(logits[:, ::2])
    expected = without({name: inputs[name] for name in names[::2]})
    torch.testing.assert_close(with_gap(inputs).logits, expected.logits)
    torch.testing.assert_close(with_gap(inputs).weights[:, ::2], expected.weights)


def test_agreement_reduces_uncertainty_and_conflict_keeps_both_classes(dims, make):
    logits = torch.full((2, 3, CLASSES), -9.0).double()
    logits[0, :, 2] = 5.0
    logits[1, 0, 2] = logits[1, 1, 3] = 5.0
    head = Evidential(dims, CLASSES)
    head.unimodal = FixedLogits(logits)
    fused = head(make([[1, 1, 0]] * 2))
    joint, own = fused.logits.softmax(-1), next(iter(fused.input_logits.values())).softmax(-1)
    assert joint[0, 2] > own[0, 2] + 0.1
    torch.testing.assert_close(joint[1, 2], joint[1, 3])
    assert joint[1, 2] > 0.4


def test_large_evidence_of_many_inputs_is_finite(make):
    many = {f"input {i}": 3 for i in range(30)}
    head = Evidential(many, CLASSES)
    head.unimodal = FixedLogits(torch.full((1, 30, CLASSES), -1e4).index_fill(2, torch.tensor([1]), 1e6))
    one = next(iter(make([[1]], torch.float32).values()))
    fused = head(dict.fromkeys(many, one))
    assert fused.logits.isfinite().all()
    torch.nn.functional.cross_entropy(fused.logits, torch.tensor([0])).backward()
    assert head.unimodal.logits.grad.isfinite().all()


def test_kl_from_uniform_equals_torch_distributions():
    alpha = torch.tensor([[3.0, 1.5, 1.2], [1.0, 1.0, 1.0], [1.0, 1.0, 6.0]]).double()
    steps = 400
    middle = (torch.arange(steps).double() + 0.5) / steps
    first, second = torch.meshgrid(middle, middle, indexing="ij")
    inside = first + second < 1 - 0.5 / steps  # a grid of points all over the simplex
    points = torch.stack([first[inside], second[inside], 1 - first[inside] - second[inside]], dim=-1)
    for row, found in zip(alpha, kl_from_uniform(alpha), strict=True):
        log_density = Dirichlet(row).log_prob(points)
        integrand = log_density.exp() * (log_density - math.log(2))  # the flat one has density 2! everywhere
        assert found.item() == pytest.approx(integrand.mean().item() / 2, abs=0.01)  # the triangle's area is 1/2


@pytest.mark.parametrize("kl_weight", [0.0, 0.7])
def test_loss_equals_its_formula(dims, make, kl_weight):
    head, inputs = randomised(Evidential(dims, CLASSES, kl_weight=kl_weight, dim=7)), make(PRESENT)
    target = [2, 0, 1, 3, 1]
    fused = head(inputs)
    expected = torch.tensor(0.0).double()
    for row, c in enumerate(target):
        mass_functions = [masses(logits) for logits in unimodal_logits(head.unimodal, inputs, row).values()]
        for alpha in [alpha_of(dempster(mass_functions)), *map(alpha_of, mass_functions)]:
            expected = expected - (alpha[c] / alpha.sum()).log() / len(target)
        for alpha in map(alpha_of, mass_functions):
            wrong = [1.0 if i == c else alpha[i].item() for i in range(CLASSES)]
            flat, believed = Dirichlet(torch.ones(CLASSES).double()), Dirichlet(torch.tensor(wrong).double())
            expected = expected + kl_weight * torch.distributions.kl_divergence(believed, flat) / len(target)
    torch.testing.assert_close(
        total_loss(head.loss(fused, batch_of(inputs, target), cross_entropy_of(target))), expected
    )


@pytest.mark.parametrize("kl_weight", [-0.1, math.nan, math.inf])
def test_refuses_invalid_arguments(dims, kl_weight):
    with pytest.raises(
        UserError, match=f"Evidential was given kl_weight={kl_weight}, expected a number that is 0 or more"
    ):
        Evidential(dims, CLASSES, kl_weight=kl_weight)
