"""Metric of a task over severities of corruptions, subsets of the inputs, and rates of missing inputs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from fusion_pl.analysis.statistics import accuracy_interval, percentile_interval
from fusion_pl.evaluate.corruption import Sweep
from fusion_pl.evaluate.missing import MissingAtRandom, Subset
from fusion_pl.evaluate.scores import draw_resamples
from fusion_pl.evaluate.sweeps import Outcomes, RobustnessRun
from fusion_pl.tasks import Task

MEAN_RESAMPLES = 2_000  # of the bootstrap of a mean
METRIC_RESAMPLES = 100  # of the bootstrap of other metrics, which takes seconds


class Estimate(NamedTuple):
    """The metric that chooses the checkpoint, with its 95 % interval over the samples.

    Attributes:
        value: metric; NaN without samples.
        interval: lower and upper bound; None if it is unknown.
        samples: number of samples.
    """

    value: float
    interval: tuple[float, float] | None
    samples: int


class SweepCurve(NamedTuple):
    """Metric with the severities 0 to 5 of a corruption, on the n samples that have the input.

    Attributes:
        sweep: corruption and input.
        estimates: metric with each severity.
        samples: values whose means over the samples are the metric, (n, 6); None if the metric is no mean.
    """

    sweep: Sweep
    estimates: list[Estimate]
    samples: Float[NDArray[np.float64], "n 6"] | None

    @property
    def values(self) -> list[float]:
        """Metric with each severity."""
        return [estimate.value for estimate in self.estimates]


@dataclass(frozen=True)
class Curves:
    """All curves of a model.

    Attributes:
        sweeps: one curve per corruption of an input.
        subsets: subset of the inputs -> metric on the samples that have an input of it.
        rates: input that is missing at random, None = every input -> metric with each rate.
    """

    sweeps: list[SweepCurve]
    subsets: dict[tuple[str, ...], Estimate]
    rates: dict[str | None, list[Estimate]]


@dataclass(frozen=True)
class MeasuredModel:
    """A model with its curves.

    Attributes:
        name: name of the checkpoint.
        curves: its curves.
        notes: input that cannot be corrupted -> sentence that says why.
    """

    name: str
    curves: Curves
    notes: dict[str, str]


def estimate_metric(task: Task, logits: Float[Tensor, "N L"], target: Tensor, resamples: int = 0) -> Estimate:
    """Return the metric that chooses the checkpoint: ``task.monitor``.

    The interval is Wilson's of a share of correct predictions, and that of a bootstrap for other metrics.

    Args:
        task: task on the device of the logits.
        logits: calibrated logits.
        target: targets.
        resamples: number of resamples for which a metric that is no mean over samples is computed again; 0 = such a
            metric has no interval.
    """
    size = len(target)
    if not size:
        return Estimate(float("nan"), None, 0)
    metric = task.metrics(task.probabilities(logits[:1]).shape[-1], prefix="")[task.monitor]
    value = _measure(metric, task, logits, target)
    if task.monitor == task.score:
        return Estimate(value, accuracy_interval(task.is_correct(logits, target).long().numpy()[None]), size)
    if (values := sample_values(task, logits, target)) is not None:
        return Estimate(value, mean_interval(values), size)
    draws = draw_resamples(target.numpy(), task.exclusive_classes, resamples)
    found = np.array([_measure(metric, task, logits[rows], target[rows]) for rows in map(torch.from_numpy, draws)])
    finite = found[np.isfinite(found)]
    return Estimate(value, percentile_interval(finite) if len(finite) > resamples / 2 else None, size)


def sample_values(task: Task, logits: Float[Tensor, "N L"], target: Tensor) -> Float[NDArray[np.float64], " N"] | None:
    """Return the values of the samples whose mean is the metric; None if it is no mean over samples."""
    if task.monitor not in (task.score, task.error):
        return None
    is_score = task.monitor == task.score
    values = task.is_correct(logits, target).double() if is_score else task.sample_errors(logits, target).double()
    found: NDArray[np.float64] = values.numpy()
    return found


def mean_interval(values: Float[NDArray[np.float64], " N"]) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean, from how often each distinct value is drawn."""
    distinct, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(values), counts / len(values), size=MEAN_RESAMPLES)
    return percentile_interval(drawn @ distinct / len(values))


def _measure(metric: Metric, task: Task, logits: Float[Tensor, "N L"], target: Tensor) -> float:
    metric.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of torchmetrics, about classes without samples
        metric.update(task.probabilities(logits), target)
        return float(metric.compute())


def make_curves(run: RobustnessRun, outcomes: Outcomes, task: Task, target: Tensor) -> Curves:
    """Return the curves of a model.

    Args:
        run: what was measured.
        outcomes: its logits.
        task: task of the model, on the CPU.
        target: targets of the samples.
    """
    inputs = list(run.predictor.processors)
    sweeps = []
    for index, sweep in enumerate(run.sweeps):
        rows = outcomes.present[:, inputs.index(sweep.input)]
        corrupted = outcomes.corrupted[rows, index].unbind(1)
        logits = [outcomes.clean[rows], *corrupted]
        estimates = [estimate_metric(task, values, target[rows]) for values in logits]
        samples = [found for values in logits if (found := sample_values(task, values, target[rows])) is not None]
        sweeps.append(SweepCurve(sweep, estimates, np.stack(samples, axis=1) if samples else None))
    subsets: dict[tuple[str, ...], Estimate] = {}
    rates: dict[str | None, list[Estimate]] = {}
    for index, selection in enumerate(run.selections):
        rows = outcomes.counted[:, index]
        estimate = estimate_metric(task, outcomes.selected[rows, index], target[rows], METRIC_RESAMPLES)
        match selection:
            case Subset(names):
                subsets[names] = estimate
            case MissingAtRandom():
                rates.setdefault(selection.name, []).append(estimate)
    return Curves(sweeps, subsets, rates)


def find_baseline(curve: SweepCurve, others: Sequence[SweepCurve]) -> SweepCurve | None:
    """Return the curve of another model with the same corruption of the same input; None if it has no such input."""
    name, corruption = curve.sweep.input, curve.sweep.corruption.name
    return next(
        (other for other in others if (other.sweep.input, other.sweep.corruption.name) == (name, corruption)), None
    )
