"""Metrics of an evaluation, with bootstrap intervals."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torchmetrics import MetricCollection

from fusion_pl.analysis.page import Table
from fusion_pl.analysis.statistics import accuracy_interval, percentile_interval
from fusion_pl.evaluate.evaluation import Evaluation
from fusion_pl.evaluate.section import EvaluationSection, interval_text
from fusion_pl.tasks import Task

NUM_RESAMPLES = 1_000  # of the bootstrap of metrics, each of which is computed from all samples
MAX_DRAWS = 20  # of a resample that lacks a class
Samples = dict[str, NDArray[np.float64]]  # name of the metric -> its value in each resample
METRICS_TEXT = (
    "95 % intervals over the rows: Wilson's interval of {score}; of the other metrics, percentiles of a bootstrap "
    "({resamples:,} resamples of the rows, with a fixed seed). They say how much a metric would differ for other rows "
    "that are drawn in the same way; they do not contain the differences between trainings."
)


def measure(
    task: Task, logits: Float[Tensor, "N L"], target: Tensor, collection: MetricCollection | None = None
) -> dict[str, float]:
    """Return all metrics of the task for calibrated logits, and the means of negative log-likelihood and Brier score.

    Args:
        task: task on the device of the logits.
        logits: calibrated logits.
        target: targets.
        collection: metrics of the task, to construct them once for many calls.
    """
    probabilities = task.probabilities(logits)
    collection = collection or task.metrics(probabilities.shape[-1], prefix="")
    collection.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of torchmetrics, about classes without samples
        collection.update(probabilities, target)
        computed = {name: float(value) for name, value in collection.compute().items()}
    for name, (total, count) in {
        "nll": task.sum_losses(logits, target),
        "brier": task.sum_squared_errors(probabilities, target),
    }.items():
        computed[name] = float(total / count)
    return computed


def resample(evaluation: Evaluation, console: Console | None = None) -> Samples:
    """Return the metrics of bootstrap resamples of the rows; equal rows have equal resamples for every model.

    A resample that lacks one of the classes of the rows is drawn again, and left out after ``MAX_DRAWS`` draws, because
    metrics that are averaged over classes are not defined for it.
    """
    draws = draw_resamples(evaluation.target.numpy(), evaluation.task.exclusive_classes, NUM_RESAMPLES)
    tracked = track(draws, "Bootstrap", NUM_RESAMPLES, console=console, transient=True, disable=console is None)
    collection = evaluation.task.metrics(len(evaluation.classes), prefix="")
    measured = [
        measure(evaluation.task, evaluation.logits[rows], evaluation.target[rows], collection)
        for rows in map(torch.from_numpy, tracked)
    ]
    return {name: np.array([values[name] for values in measured]) for name in (measured[0] if measured else {})}


def draw_resamples(target: NDArray[np.int64], exclusive_classes: bool, count: int) -> Iterator[NDArray[np.int64]]:
    """Yield the indices of resamples with replacement, from a generator with a fixed seed.

    Args:
        target: targets of the rows.
        exclusive_classes: whether the targets are classes, all of which each resample has.
        count: number of resamples.
    """
    generator = np.random.default_rng(0)
    num_classes = len(np.unique(target)) if exclusive_classes else 0
    for _ in range(count):
        for _ in range(MAX_DRAWS):
            rows = generator.integers(len(target), size=len(target))
            if not exclusive_classes or len(np.unique(target[rows])) == num_classes:
                yield rows
                break


def metric_interval(values: NDArray[np.float64] | None) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of resampled metrics; None if most of the resamples are not defined."""
    finite = np.array([]) if values is None else values[np.isfinite(values)]
    return percentile_interval(finite) if len(finite) >= NUM_RESAMPLES / 2 else None


def metrics_section(evaluation: Evaluation, samples: Mapping[str, NDArray[np.float64]]) -> EvaluationSection:
    """Return the section of the metrics.

    Args:
        evaluation: the predictions.
        samples: result of ``resample``.
    """
    task, measured = evaluation.task, measure(evaluation.task, evaluation.logits, evaluation.target)
    intervals = {name: metric_interval(samples.get(name)) for name in measured}
    intervals[task.score] = accuracy_interval(evaluation.correct.long().numpy()[None])
    results = {name: {"value": value, "interval": intervals[name]} for name, value in measured.items()}
    lines = [(name, f"{value:.4f}", interval_text(intervals[name], 1.0, 4)) for name, value in measured.items()]
    table = Table(("metric", "value", "95 % interval"), lines)
    text = METRICS_TEXT.format(score=task.score, resamples=NUM_RESAMPLES)
    return EvaluationSection("Metrics", text, [table], key="metrics", results=results)
