"""Realised coverage of prediction sets on ten random divisions of validation and test.

With n scores and m new samples from the same distribution, the number of covered ones is beta-binomial with
k = ⌈(n + 1) · coverage⌉ and n + 1 - k, if scores differ. Called by ``python -m benchmarks.calibration``, with the
models that it trains.
"""

from __future__ import annotations

import math

import torch
from scipy.stats import betabinom

from benchmarks.outliers import Run
from fusion_pl.metrics import subsets
from fusion_pl.uncertainty.conformal import conformity_scores, prediction_sets, set_thresholds

COVERAGE, DIVISIONS = 0.9, 10


def measure_divisions(run: Run) -> dict[str, dict[str, list[float]]]:
    """Return for each subset of the inputs: coverage and size of each division, and its place in the 95 % interval."""
    samples, measured = run.samples("val") + run.samples("test"), {}
    for subset in subsets(list(run.predictor.processors)):
        found = run.outputs(samples, subset)
        rows = torch.stack([found[f"present/{name}"] for name in subset]).any(0)
        probabilities, target = found["probabilities"][rows], found["target"][rows]
        scores = conformity_scores(probabilities).gather(1, target.unsqueeze(1)).squeeze(1)
        result = measured.setdefault("+".join(subset), {"coverage": [], "size": [], "below": [], "above": []})
        for division in range(DIVISIONS):
            order = torch.randperm(len(target), generator=torch.Generator().manual_seed(division))
            first, second = order.tensor_split(2)
            num_classes, count = probabilities.shape[1], len(first)
            thresholds = set_thresholds(scores[first], target[first], num_classes, COVERAGE, by_class=False)
            sets = prediction_sets(probabilities[second], thresholds)
            covered = int(sets.gather(1, target[second].unsqueeze(1)).sum())
            rank = math.ceil(round((count + 1) * COVERAGE, 9))
            low, high = betabinom.ppf([0.025, 0.975], len(second), rank, count + 1 - rank)
            result["coverage"].append(100 * covered / len(second))
            result["size"].append(float(sets.sum(1).double().mean()))
            result["below"].append(float(covered < low))
            result["above"].append(float(covered > high))
    return measured
