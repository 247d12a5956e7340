"""Metrics, their intervals, and the comparison of two checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from fusion_pl.evaluate import scores
from fusion_pl.evaluate.against import against_section, difference_samples, mcnemar
from fusion_pl.evaluate.scores import draw_resamples, measure, metric_interval, metrics_section, resample
from fusion_pl.tasks import MultiLabel, Ordinal


def test_the_metrics_are_those_of_their_formulas(evaluation):
    found = measure(evaluation.task, evaluation.logits, evaluation.target)
    probabilities, target = evaluation.probabilities.numpy().astype(float), evaluation.target.numpy()
    events = target if target.ndim > 1 else np.eye(probabilities.shape[1])[target]
    brier = ((probabilities - events) ** 2).sum() / (events.size if target.ndim > 1 else len(target))
    assert found["brier"] == pytest.approx(brier, rel=1e-5)
    assert found["nll"] == pytest.approx(evaluation.losses.mean().item(), rel=1e-5)
    assert found[evaluation.task.score] == pytest.approx(evaluation.correct.double().mean().item())
    if isinstance(evaluation.task, Ordinal):
        assert found["mae"] == pytest.approx(evaluation.errors.mean().item())


def test_the_interval_of_a_mean_is_that_of_scipy(evaluation, monkeypatch):
    """The negative log-likelihood is a mean, which scipy's bootstrap knows; both are estimates."""
    monkeypatch.setattr(scores, "NUM_RESAMPLES", 500)
    low, high = metric_interval(resample(evaluation)["nll"])
    losses = evaluation.losses.numpy()
    other = stats.bootstrap((losses,), np.mean, method="percentile", n_resamples=4_000, rng=1).confidence_interval
    width = other.high - other.low
    assert low == pytest.approx(other.low, abs=0.15 * width)
    assert high == pytest.approx(other.high, abs=0.15 * width)


def test_the_interval_of_the_score_is_wilsons(evaluation):
    found = metrics_section(evaluation, {}).results[evaluation.task.score]
    right = int(evaluation.correct.sum())
    ends = stats.binomtest(right, len(evaluation)).proportion_ci(0.95, "wilson")
    assert found["interval"] == pytest.approx((ends.low, ends.high))


def test_resamples_have_every_class_and_a_fixed_seed():
    target = np.array([0] * 10 + [1, 2])
    drawn = list(draw_resamples(target, True, 50))
    assert len(drawn) == 50
    assert all(set(target[rows]) == {0, 1, 2} for rows in drawn)
    assert all(map(np.array_equal, drawn, draw_resamples(target, True, 50)))
    rare = np.arange(12)
    assert not list(draw_resamples(rare, True, 50))  # a resample with all of them is a permutation
    assert len(list(draw_resamples(rare, False, 50))) == 50


def test_metrics_without_resamples_have_no_interval():
    assert metric_interval(None) is None
    assert metric_interval(np.full(scores.NUM_RESAMPLES, np.nan)) is None


@pytest.mark.parametrize("seed", range(4))
def test_mcnemars_test_is_the_sum_of_binomial_probabilities(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.random(40) < 0.8, rng.random(40) < 0.6
    only_first, only_second, p_value = mcnemar(first, second)
    assert (only_first, only_second) == (sum(first & ~second), sum(~first & second))
    total = only_first + only_second
    larger = stats.binom.pmf(np.arange(max(only_first, only_second), total + 1), total, 0.5).sum()
    assert p_value == pytest.approx(min(1.0, 2 * larger))
    assert mcnemar(first, first) == (0, 0, 1.0)


def test_a_checkpoint_is_equal_to_itself(evaluation, monkeypatch):
    monkeypatch.setattr(scores, "NUM_RESAMPLES", 20)
    section = against_section(evaluation, evaluation)
    assert section.results["mcnemar"]["p_value"] == 1
    assert all(one["difference"] == 0 and one["interval"] == (0, 0) for one in section.results["metrics"].values())
    assert not section.warnings


def test_differences_are_paired(evaluation, monkeypatch):
    """Their interval is that of the mean of the differences of the losses, row by row."""
    monkeypatch.setattr(scores, "NUM_RESAMPLES", 300)
    rows = evaluation.rows[::2]
    first, second = evaluation.select(rows), evaluation.select(rows)
    flat = second.outputs._replace(logits=second.outputs.logits / 2)
    second = type(second)(second.name, second.predictor, second.data, second.rows, flat, {}, {})
    differences = difference_samples(resample(first), resample(second))
    low, high = metric_interval(differences["nll"])
    other = (first.losses - second.losses).numpy()
    ends = stats.bootstrap((other,), np.mean, method="percentile", n_resamples=4_000, rng=1).confidence_interval
    width = ends.high - ends.low
    assert (low, high) == pytest.approx((ends.low, ends.high), abs=0.2 * width)
    assert high - low < metric_interval(resample(first)["nll"])[1] * 2


def test_the_error_of_several_labels_is_the_share_of_wrong_known_labels():
    task = MultiLabel()
    task.set_num_classes(3)
    logits = torch.tensor([[1.0, -1.0, 1.0], [1.0, 1.0, -1.0], [-1.0, -1.0, -1.0]])
    target = torch.tensor([[1, 0, 1], [0, -1, 1], [1, -1, -1]])
    assert task.sample_errors(logits, target).tolist() == [0, 1, 1]
    assert task.sample_errors(logits, torch.tensor([[0, 0, -1], [0, 0, 0], [0, 0, 1]])).tolist() == pytest.approx(
        [1 / 2, 2 / 3, 1 / 3]
    )
    losses = -torch.where(target == 1, logits.sigmoid(), 1 - logits.sigmoid()).log()
    expected = [losses[row][target[row] >= 0].mean().item() for row in range(3)]
    assert task.sample_losses(logits, target).tolist() == pytest.approx(expected)
