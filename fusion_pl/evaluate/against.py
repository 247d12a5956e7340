"""A second checkpoint beside the first one, on the same rows: paired tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from scipy.stats import binomtest

from fusion_pl.analysis.page import Table
from fusion_pl.evaluate.evaluation import Evaluation
from fusion_pl.evaluate.predict_rows import EvaluatedModel
from fusion_pl.evaluate.scores import Samples, measure, metric_interval, resample
from fusion_pl.evaluate.section import ALPHA, EvaluationSection, interval_text, p_value_text
from fusion_pl.predict import Predictor
from fusion_pl.types import UserError

TEXT = (
    "Both checkpoints on the {rows:,} rows that both predict. The difference is the first minus the second; its "
    "interval is that of a paired bootstrap, in which both have the same resamples of the rows. McNemar's test is "
    "about the rows on which only one is right: {first:,} for the first, {second:,} for the second; if both were "
    "equally good, such a difference or a larger one would have a probability of {p_value}."
)


def check_comparable(first: EvaluatedModel, second: EvaluatedModel) -> None:
    """Raise a ``UserError`` if two checkpoints have other classes or another task."""
    if _describe(first.predictor) != _describe(second.predictor):
        raise UserError(
            f"--against {second.name} is a model of {_describe(second.predictor)}, and {first.name} of "
            f"{_describe(first.predictor)}: give a checkpoint with the same task and classes"
        )


def _describe(predictor: Predictor) -> str:
    return f"{type(predictor.task).__name__} with the classes {', '.join(predictor.classes)}"


def against_section(first: Evaluation, second: Evaluation, console: Console | None = None) -> EvaluationSection:
    """Return the section of the differences between two checkpoints on the rows that both predict."""
    first, second = first.select(second.rows), second.select(first.rows)
    metrics = [measure(one.task, one.logits, one.target) for one in (first, second)]
    differences = difference_samples(resample(first, console), resample(second, console))
    intervals = {name: metric_interval(differences.get(name)) for name in metrics[0]}
    lines = [
        (name, f"{value:.4f}", f"{metrics[1][name]:.4f}", f"{value - metrics[1][name]:+.4f}",
         interval_text(intervals[name], 1.0, 4))
        for name, value in metrics[0].items()
    ]  # fmt: skip
    only_first, only_second, p_value = mcnemar(first.correct.numpy(), second.correct.numpy())
    text = TEXT.format(rows=len(first), first=only_first, second=only_second, p_value=p_value_text(p_value))
    warnings = []
    if p_value <= ALPHA and only_second > only_first:
        warnings.append(
            f"{second.name} is right more often than {first.name}: McNemar's test has a p-value of "
            f"{p_value_text(p_value)}"
        )
    results = {
        "checkpoint": second.name,
        "rows": len(first),
        "mcnemar": {"only_first_correct": only_first, "only_second_correct": only_second, "p_value": p_value},
        "metrics": {
            name: {"first": value, "second": metrics[1][name], "difference": value - metrics[1][name],
                   "interval": intervals[name]}
            for name, value in metrics[0].items()
        },
    }  # fmt: skip
    table = Table(("metric", first.name, second.name, "difference", "95 % interval"), lines)
    title = f"Against {second.name}"
    return EvaluationSection(title, text, [table], warnings=warnings, key="against", results=results)


def difference_samples(first: Samples, second: Samples) -> Samples:
    """Return the differences of the metrics in each resample, which are the same rows for both."""
    return {name: values - second[name] for name, values in first.items()}


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> tuple[int, int, float]:
    """Return the number of rows on which only the first is right, only the second, and the exact p-value.

    Source: McNemar 1947, *Note on the sampling error of the difference between correlated proportions*; exact: the
    two-sided binomial test of the rows on which the predictions differ.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    total = only_first + only_second
    return only_first, only_second, float(binomtest(only_first, total).pvalue) if total else 1.0
