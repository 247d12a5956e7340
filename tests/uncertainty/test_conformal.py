"""Prediction sets: a slow restatement of the paper's algorithm, and realised coverage on random divisions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from mapie.classification import SplitConformalClassifier
from scipy.stats import beta, binom
from sklearn.base import BaseEstimator, ClassifierMixin

from fusion_pl.types import UserError
from fusion_pl.uncertainty.conformal import (
    conformal_quantile,
    conformity_scores,
    measure_coverage,
    prediction_sets,
    sample_scores,
    set_thresholds,
)


def draw(samples, seed=0, classes=6):
    """Return probabilities of a model that is right in about half of the samples, and classes drawn from them."""
    random = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(samples, classes, generator=random)
    return logits.softmax(-1), logits.double().softmax(-1).multinomial(1, generator=random).squeeze(1)


def smallest_set(probabilities, tau):
    """Return the generalised quantile of the paper: the most probable classes until their sum exceeds tau."""
    members, total = [], 0.0
    for name in sorted(range(len(probabilities)), key=lambda c: (-probabilities[c], c)):
        members.append(name)
        total += probabilities[name]
        if total > tau:
            break
    return members


def slow_sets(validation, target, probabilities, coverage):
    """Search for the smallest tau whose sets contain the class of enough validation samples; then form the sets."""
    needed = math.ceil((len(target) + 1) * coverage - 1e-9)
    scores = []
    for p, y in zip(validation, target, strict=True):
        ordered = sorted(range(len(p)), key=lambda c: (-p[c], c))
        scores.append(sum(p[c] for c in ordered[: ordered.index(y)]))
    tau = sorted(scores)[needed - 1]
    return [smallest_set(p, tau) for p in probabilities]


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9])
def test_sets_are_those_of_a_slow_restatement(coverage):
    validation, target = draw(199)
    probabilities, _ = draw(100, seed=1)
    thresholds = set_thresholds(own_scores(validation, target), target, 6, coverage, by_class=False)
    found = prediction_sets(probabilities, thresholds)
    expected = slow_sets(validation.double().tolist(), target.tolist(), probabilities.double().tolist(), coverage)
    for row, members in zip(found, expected, strict=True):
        assert row.nonzero().squeeze(1).tolist() == sorted(members)


def own_scores(probabilities, target):
    return conformity_scores(probabilities).gather(1, target.unsqueeze(1)).squeeze(1)


class GivenProbabilities(ClassifierMixin, BaseEstimator):
    """A classifier of mapie whose features are the probabilities."""

    def fit(self, x, y):
        self.classes_ = np.arange(x.shape[1])
        return self

    def predict(self, x):
        return x.argmax(1)

    def predict_proba(self, x):
        return x


class Ones(np.random.RandomState):
    """APS subtracts a random share of the class's own probability from its score; our score is without all of it."""

    def uniform(self, low=0.0, high=1.0, size=None):
        return np.ones(size)


@pytest.mark.parametrize("coverage", [0.7, 0.8, 0.95])
def test_sets_are_those_of_mapie(coverage):
    (validation, target), (probabilities, _) = draw(200), draw(300, seed=1)
    validation, probabilities = validation.double(), probabilities.double()
    thresholds = set_thresholds(own_scores(validation, target), target, 6, coverage, by_class=False)
    found = prediction_sets(probabilities, thresholds)
    model = GivenProbabilities().fit(validation.numpy(), target.numpy())
    other = SplitConformalClassifier(model, confidence_level=coverage, conformity_score="aps", random_state=Ones())
    other.conformalize(validation.numpy(), target.numpy())
    _, sets = other.predict_set(probabilities.numpy(), conformity_score_params={"include_last_label": "randomized"})
    assert found.tolist() == sets[:, :, 0].tolist()
    assert len(set(found.sum(1).tolist())) > 2


def test_coverage_of_ten_random_divisions_is_within_the_binomial_interval():
    """Given the validation samples, coverage has a Beta distribution; each division is drawn anew."""
    probabilities, target = draw(4000)
    rng = np.random.default_rng(0)
    total = 0
    for _ in range(10):
        order = torch.tensor(rng.permutation(4000))
        validation, test = order[:2000], order[2000:]
        scores = own_scores(probabilities[validation], target[validation])
        thresholds = set_thresholds(scores, target[validation], 6, 0.9, by_class=False)
        covered = prediction_sets(probabilities[test], thresholds).gather(1, target[test].unsqueeze(1)).squeeze(1)
        share = covered.double().mean().item()
        low, high = beta.ppf([0.001, 0.999], 1801, 200)  # of the coverage that these validation samples give
        noise = binom.ppf([0.001, 0.999], 2000, 0.9) / 2000 - 0.9
        assert low + noise[0] <= share <= high + noise[1]
        total += int(covered.sum())
    assert abs(total / 20_000 - 0.9) < 0.01


def test_sets_by_class_cover_each_class():
    probabilities, target = draw(12_000)
    probabilities = (probabilities.log() + torch.tensor([2.0, 0, 0, 0, 0, -2.0])).softmax(-1)  # wrong about two classes
    half = slice(0, 6000), slice(6000, None)
    scores = own_scores(probabilities[half[0]], target[half[0]])
    shares = {}
    for by_class in (False, True):
        sets = prediction_sets(probabilities[half[1]], set_thresholds(scores, target[half[0]], 6, 0.8, by_class))
        covered = sets.gather(1, target[half[1]].unsqueeze(1)).squeeze(1).double()
        shares[by_class] = [covered[target[half[1]] == name].mean().item() for name in range(6)]
    assert min(shares[False]) < 0.7
    assert all(share == pytest.approx(0.8, abs=0.06) or share > 0.8 for share in shares[True])


def test_a_set_has_at_least_the_most_probable_class():
    probabilities, _ = draw(50)
    sets = prediction_sets(probabilities, torch.zeros(6).double())
    assert torch.equal(sets, torch.nn.functional.one_hot(probabilities.argmax(1), 6).bool())


def test_too_few_samples_and_impossible_coverages_are_refused():
    scores, target = torch.rand(20).double(), torch.arange(20) % 2
    with pytest.raises(UserError, match=r"a coverage of 0\.99 needs at least 99 validation samples"):
        set_thresholds(scores, target, 2, 0.99, by_class=False)
    with pytest.raises(UserError, match="at least 19 validation samples in each class"):
        set_thresholds(scores, target, 2, 0.95, by_class=True)
    for share in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(UserError, match="expected a share above 0 and below 1"):
            set_thresholds(scores, target, 2, share, by_class=False)
    assert conformal_quantile(scores, 0.95) == scores.max()
    rare = set_thresholds(scores, torch.tensor([1] + [0] * 19), 2, 0.9, by_class=True)
    assert math.isinf(rare[1])
    assert math.isfinite(rare[0])


@pytest.mark.parametrize(("count", "total"), [(0, 10), (7, 10), (10, 10)])
def test_the_interval_is_that_of_clopper_and_pearson(count, total):
    measured = measure_coverage(torch.arange(total) < count)
    low = 0.0 if count == 0 else beta.ppf(0.025, count, total - count + 1)
    high = 1.0 if count == total else beta.ppf(0.975, count + 1, total - count)
    assert measured["interval"] == pytest.approx([low, high])
    assert (measured["samples"], measured["coverage"]) == (total, count / total)


# ------------------------------------------------------------------------------------------------------- several labels
def draw_labels(samples, seed=0, labels=5):
    """Return probabilities, and labels that are drawn from them; an eighth is unknown."""
    random = torch.Generator().manual_seed(seed)
    probabilities = torch.randn(samples, labels, generator=random).double().sigmoid()
    target = (torch.rand(samples, labels, generator=random) < probabilities).long()
    return probabilities, target.masked_fill(torch.rand(samples, labels, generator=random) < 0.125, -1)


@pytest.mark.parametrize("coverage", [0.5, 0.9])
def test_sets_of_labels_are_those_of_a_slow_restatement(coverage):
    (validation, target), (probabilities, _) = draw_labels(199), draw_labels(100, seed=1)
    thresholds = set_thresholds(sample_scores(validation, target, False), None, 5, coverage, by_class=False)
    found = prediction_sets(probabilities, thresholds, exclusive_classes=False)
    needed = math.ceil(200 * coverage - 1e-9)
    for smallest in sorted({*validation.flatten().tolist(), 1.0}, reverse=True):  # the strictest that covers enough
        sets = [[p >= smallest for p in row] for row in validation.tolist()]
        if (
            sum(all(m for m, t in zip(s, y, strict=True) if t == 1) for s, y in zip(sets, target, strict=True))
            >= needed
        ):
            break
    assert found.tolist() == [[p >= smallest for p in row] for row in probabilities.tolist()]


def test_sets_of_labels_cover_on_random_divisions():
    probabilities, target = draw_labels(4000)
    total = 0
    for seed in range(10):
        order = torch.randperm(4000, generator=torch.Generator().manual_seed(seed))
        scores = sample_scores(probabilities[order], target[order], False)
        thresholds = set_thresholds(scores[:2000], None, 5, 0.9, by_class=False)
        sets = prediction_sets(probabilities[order[2000:]], thresholds, exclusive_classes=False)
        total += int((sets | (target[order[2000:]] != 1)).all(1).sum())
    assert abs(total / 20_000 - 0.9) < 0.01
