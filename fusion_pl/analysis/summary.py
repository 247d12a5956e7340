"""Aggregate runs over seeds into one row per head and set of inputs, and rank the rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev

import numpy as np
from jaxtyping import Shaped
from numpy.typing import NDArray

from fusion_pl.analysis.result import RunResult, run_label
from fusion_pl.analysis.statistics import accuracy_interval, holm_correction, signed_rank_p_value
from fusion_pl.metrics import subsets
from fusion_pl.types import UserError

COSTS = ("parameters", "head_parameters", "flops", "latency_ms", "step_ms", "seconds", "memory_mb")


@dataclass(frozen=True)
class MeanStd:
    """Mean and sample standard deviation (n − 1; 0 for one seed) of a number over ``count`` seeds."""

    mean: float
    std: float
    count: int

    def format_percent(self) -> str:
        """Return ``mean ± std`` in percent; one seed has no standard deviation."""
        return f"{100 * self.mean:.2f}" + (f" ± {100 * self.std:.2f}" if self.count > 1 else "")


@dataclass(frozen=True)
class Row:
    """All runs of one head on the same inputs, with a label from ``group_by_label``."""

    label: str
    inputs: tuple[str, ...]
    runs: dict[int, RunResult]  # seed -> finished run
    failed: dict[int, str]  # seed -> error message

    @property
    def split_hashes(self) -> tuple[str, str] | None:
        """Hashes of the test and validation samples; None if no run finished or the runs differ in samples."""
        hashes = {(run.test_hash, run.validation_hash) for run in self.runs.values()}
        return hashes.pop() if len(hashes) == 1 else None

    @property
    def test_set_sizes(self) -> list[int]:
        """Test set sizes; a single value unless the runs differ."""
        return sorted({len(run.correct) for run in self.runs.values()})

    @property
    def validation_set_sizes(self) -> list[int]:
        """Validation set sizes; a single value unless the runs differ."""
        return sorted({run.validation_samples or 0 for run in self.runs.values()})

    @property
    def names(self) -> tuple[str, str]:
        """Names of the score of a sample and of the metric that ranks; requires a finished run."""
        run = next(iter(self.runs.values()))
        return run.score.replace("_", " "), run.metric.replace("_", " ")

    @property
    def validation_score(self) -> MeanStd:
        """Mean score of the validation samples, 0 to 1; requires a finished run."""
        return _mean_std([run.validation_score for run in self.runs.values() if run.validation_score is not None])

    @property
    def validation_metric(self) -> MeanStd:
        """The metric of the validation samples; requires a finished run."""
        return _mean_std([run.validation_metric for run in self.runs.values() if run.validation_metric is not None])

    @property
    def test_score(self) -> MeanStd:
        """Mean score of the test samples, 0 to 1; requires a finished run."""
        return _mean_std([run.test_score for run in self.runs.values()])

    @property
    def test_metric(self) -> MeanStd:
        """The metric of the test samples; requires a finished run."""
        return _mean_std([run.test[f"test/{run.metric}"] for run in self.runs.values()])

    @property
    def rank_key(self) -> tuple[float, float, str]:
        """Key by which rows are sorted, best first: validation metric, number of parameters, label."""
        sign = -1 if next(iter(self.runs.values())).mode == "max" else 1
        return sign * self.validation_metric.mean, self.costs.get("parameters", float("inf")), self.label

    @cached_property
    def test_score_interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the mean test score; None if the runs differ in samples."""
        return (
            accuracy_interval(np.stack([*map(correct_predictions, self.runs.values())])) if self.split_hashes else None
        )

    @property
    def subsets(self) -> dict[str, float]:
        """Mean test score per subset of inputs, whose names are joined by ``+``."""
        runs = self.runs.values()
        names = dict.fromkeys(name for run in runs for name in run.subsets)
        return {name: fmean(run.subsets[name] for run in runs if name in run.subsets) for name in names}

    @property
    def costs(self) -> dict[str, float]:
        """Mean over seeds of each measured cost in ``COSTS``."""
        values = {name: [v for run in self.runs.values() if (v := getattr(run, name)) is not None] for name in COSTS}
        return {name: fmean(measured) for name, measured in values.items() if measured}

    @property
    def batch_size(self) -> int | None:
        """Number of samples in the batch on which latency was measured."""
        return next((run.batch_size for run in self.runs.values()), None)


def _mean_std(values: list[float]) -> MeanStd:
    return MeanStd(fmean(values), stdev(values) if len(values) > 1 else 0.0, len(values))


def correct_predictions(result: RunResult) -> Shaped[NDArray[np.int64], " N"]:
    """Return an array with one number per test sample: 1 if it is classified correctly, else 0."""
    return np.frombuffer(result.correct.encode(), dtype=np.uint8).astype(np.int64) - ord("0")


@dataclass(frozen=True)
class Summary:
    """The rows of a comparison.

    Attributes:
        ranked: Rows measured on the same validation and test samples, sorted by the *validation* metric, never by a
            test metric; ties are sorted by the number of parameters.
        unranked: Rows measured on other samples; their accuracies are not comparable with those in ``ranked``.
        failed: Rows without a finished run.
    """

    ranked: list[Row]
    unranked: list[Row]
    failed: list[Row]

    @property
    def rows(self) -> list[Row]:
        """All rows."""
        return [*self.ranked, *self.unranked, *self.failed]

    @property
    def best(self) -> Row | None:
        """The row with the best validation metric; None if no rows are ranked."""
        return self.ranked[0] if self.ranked else None

    def headline(self) -> str:
        """Return a sentence with the label of the best row, or with the reason why no row is best."""
        if best := self.best:
            ranked = f" of the {len(self.ranked)} rows measured on the same samples" if self.unranked else ""
            return (
                f"The best{ranked} on validation is {best.label}: {best.validation_set_sizes[0]:,} validation and "
                f"{best.test_set_sizes[0]:,} test samples."
            )
        if self.unranked:
            return "No two heads were measured on the same samples, so there is no best head."
        return "No run finished, so there is nothing to compare."


def summarise(results: Sequence[RunResult], all_inputs: Sequence[str]) -> Summary:
    """Aggregate and rank the runs.

    A row is ranked if it has the same samples as most of the rows with all inputs. If no row with all inputs finished,
    all rows are ranked if they share their samples, otherwise none.
    """
    rows = []
    for label, group in group_by_label(results, all_inputs).items():
        runs = {result.seed: result for result in group if result.status == "done"}
        failed = {result.seed: result.reason for result in group if result.status == "failed"}
        rows.append(Row(label, group[0].inputs, runs, failed))
    done = sorted(
        (row for row in rows if row.runs),
        key=lambda row: row.rank_key,
    )
    counts = Counter(row.split_hashes for row in done if row.split_hashes and set(row.inputs) == set(all_inputs))
    common = done[0].split_hashes if len({row.split_hashes for row in done}) == 1 else None
    split_hashes = counts.most_common(1)[0][0] if counts else common
    ranked = [row for row in done if split_hashes and row.split_hashes == split_hashes]
    return Summary(ranked, [row for row in done if row not in ranked], [row for row in rows if not row.runs])


def group_by_label(results: Sequence[RunResult], all_inputs: Sequence[str]) -> dict[str, list[RunResult]]:
    """Group the results by label: one group per head and set of inputs, in the order of the results.

    If two heads would have the same label (two heads on the same subset of inputs, or two classes with the same name),
    the name of the head or its class path is added to the label.

    Raises:
        UserError: If a head has two results with the same seed.
    """
    class_paths: dict[str, set[str]] = defaultdict(set)  # head or label -> class paths
    for result in results:
        class_paths[result.head].add(result.class_path)
        class_paths[run_label(result, all_inputs)].add(result.class_path)
    groups: dict[str, list[RunResult]] = {}
    for result in results:
        name = run_label(result, all_inputs)
        if len(class_paths[name]) > 1:
            head = result.head if len(class_paths[result.head]) == 1 else result.class_path
            name = head if set(result.inputs) == set(all_inputs) else f"{name} ({head})"
        group = groups.setdefault(name, [])
        if any(other.seed == result.seed for other in group):
            raise UserError(f"{name} has two results with seed {result.seed}: keep one of them")
        group.append(result)
    return groups


def measured_subsets(rows: Iterable[Row], all_inputs: Sequence[str]) -> list[str]:
    """Return the subsets of inputs that at least one row was tested with, sorted by size."""
    tested = {name for row in rows for name in row.subsets}
    return [name for name in map("+".join, subsets(all_inputs)) if name in tested]


def paired_p_values(rows: Sequence[Row]) -> dict[str, float]:
    """Return label -> p-value of a paired test of each row against the first row, the best.

    For each test sample, correct predictions are summed over the seeds that both rows have. The differences are tested
    with Wilcoxon's signed-rank test (two-sided), and the p-values are corrected with Holm's method. The test is over
    samples, so it applies to these trained models only. Rows without a common seed are omitted.
    """
    p_values = {}
    for row in rows[1:]:
        assert row.split_hashes == rows[0].split_hashes
        if seeds := sorted(rows[0].runs.keys() & row.runs.keys()):
            # Sums instead of means: the ranks are equal, and ties are exact.
            differences = [
                correct_predictions(rows[0].runs[seed]) - correct_predictions(row.runs[seed]) for seed in seeds
            ]
            p_values[row.label] = signed_rank_p_value(np.sum(differences, axis=0))
    return holm_correction(p_values)


def score_on_same_samples(best_row: Row, other_row: Row) -> float | None:
    """Return the mean score of the best row on the test samples of another row, averaged over the best row's seeds.

    None if the best row was not tested on all of these samples, or if ids are not unique.
    """
    ids, *others = {run.ids for run in other_row.runs.values()}
    unique = all(len(set(run.ids)) == len(run.ids) for run in [*best_row.runs.values(), *other_row.runs.values()])
    correct = [dict(zip(run.ids, correct_predictions(run).tolist(), strict=True)) for run in best_row.runs.values()]
    if others or not unique or not all(by_id.keys() >= set(ids) for by_id in correct):
        return None
    return fmean(by_id[sample_id] for by_id in correct for sample_id in ids)
