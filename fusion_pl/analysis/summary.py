"""Aggregate runs over seeds: one row per head, the best row, and the rows that can be ranked against each other."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev

import numpy as np
from jaxtyping import Shaped
from numpy.typing import NDArray

from fusion_pl.analysis.result import ACCURACY, RunResult, run_label
from fusion_pl.analysis.statistics import accuracy_interval, holm, signed_rank
from fusion_pl.metrics import subsets
from fusion_pl.types import UserError

COSTS = ("parameters", "head_parameters", "flops", "latency_ms", "step_ms", "seconds", "memory_mb")


@dataclass(frozen=True)
class MeanStd:
    """Mean and sample standard deviation (n − 1; 0 for one seed) of an accuracy over ``count`` seeds."""

    mean: float
    std: float
    count: int

    def percent(self) -> str:
        """Return ``mean ± std`` in percent; one seed has no standard deviation."""
        return f"{100 * self.mean:.2f}" + (f" ± {100 * self.std:.2f}" if self.count > 1 else "")


@dataclass(frozen=True)
class Row:
    """All runs of one head on the same inputs; the label is from ``group_by_label``."""

    label: str
    inputs: tuple[str, ...]
    runs: dict[int, RunResult]  # seed -> finished run
    failed: dict[int, str]  # seed -> reason

    @property
    def splits(self) -> tuple[str, str] | None:
        """Hashes of the test and validation samples; None if no run finished, or their samples differ."""
        hashes = {(run.test_hash, run.validation_hash) for run in self.runs.values()}
        return hashes.pop() if len(hashes) == 1 else None

    @property
    def test_samples(self) -> list[int]:
        """Numbers of test samples: one, unless the runs differ."""
        return sorted({len(run.correct) for run in self.runs.values()})

    @property
    def validation_samples(self) -> list[int]:
        """Numbers of validation samples: one, unless the runs differ."""
        return sorted({run.validation_samples or 0 for run in self.runs.values()})

    @property
    def validation(self) -> MeanStd:
        """Validation accuracy, 0 to 1, of a row with a finished run."""
        return _mean_std([run.validation_accuracy for run in self.runs.values() if run.validation_accuracy is not None])

    @property
    def test(self) -> MeanStd:
        """Test accuracy, 0 to 1, of a row with a finished run."""
        return _mean_std([run.test[ACCURACY] for run in self.runs.values()])

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the test accuracy; None unless all runs have the same samples."""
        return accuracy_interval(np.stack([correct_array(run) for run in self.runs.values()])) if self.splits else None

    @property
    def subsets(self) -> dict[str, float]:
        """Inputs joined by ``+`` -> mean test accuracy with only these."""
        runs = self.runs.values()
        return {
            key: fmean(run.subsets[key] for run in runs if key in run.subsets) for one in runs for key in one.subsets
        }

    @property
    def costs(self) -> dict[str, float]:
        """Mean of each of ``COSTS`` that was measured."""
        values = {key: [v for run in self.runs.values() if (v := getattr(run, key)) is not None] for key in COSTS}
        return {key: fmean(measured) for key, measured in values.items() if measured}

    @property
    def batch_size(self) -> int | None:
        """Samples of the batch that ``costs["latency_ms"]`` was measured with."""
        return next((run.batch_size for run in self.runs.values()), None)


def _mean_std(values: list[float]) -> MeanStd:
    return MeanStd(fmean(values), stdev(values) if len(values) > 1 else 0.0, len(values))


def correct_array(result: RunResult) -> Shaped[NDArray[np.int64], " N"]:
    """Return 1 for each test sample that a run classified correctly, else 0."""
    return np.frombuffer(result.correct.encode(), dtype=np.uint8).astype(np.int64) - ord("0")


@dataclass(frozen=True)
class Summary:
    """The rows of a comparison.

    Attributes:
        ranked: rows measured on the same validation and test samples, sorted by *validation* accuracy, never by test;
            rows with equal accuracy by the number of parameters.
        unranked: rows measured on other samples, whose accuracies cannot be compared with those of ``ranked``.
        failed: rows without a finished run.
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
        """The row with the highest validation accuracy; None if no rows are ranked."""
        return self.ranked[0] if self.ranked else None

    def headline(self) -> str:
        """Return a sentence that names the best row, or says why there is none."""
        if best := self.best:
            ranked = f" of the {len(self.ranked)} rows measured on the same samples" if self.unranked else ""
            return (
                f"The best{ranked} on validation is {best.label}: {best.validation_samples[0]:,} validation and "
                f"{best.test_samples[0]:,} test samples."
            )
        if self.unranked:
            return "No two heads were measured on the same samples, so there is no best one."
        return "No run finished, so there is nothing to compare."


def summarise(results: Sequence[RunResult], all_inputs: Sequence[str]) -> Summary:
    """Aggregate and rank the runs.

    Ranked are the rows on the same samples as most of the rows with all inputs; if no row with all inputs finished,
    all rows if they have the same samples, else none.
    """
    rows = []
    for label, group in group_by_label(results, all_inputs).items():
        runs = {result.seed: result for result in group if result.status == "done"}
        failed = {result.seed: result.reason for result in group if result.status == "failed"}
        rows.append(Row(label, group[0].inputs, runs, failed))
    done = sorted(
        (row for row in rows if row.runs),
        key=lambda row: (-row.validation.mean, row.costs.get("parameters", float("inf")), row.label),
    )
    counts = Counter(row.splits for row in done if row.splits and set(row.inputs) == set(all_inputs))
    same = done[0].splits if len({row.splits for row in done}) == 1 else None
    splits = counts.most_common(1)[0][0] if counts else same
    ranked = [row for row in done if splits and row.splits == splits]
    return Summary(ranked, [row for row in done if row not in ranked], [row for row in rows if not row.runs])


def group_by_label(results: Sequence[RunResult], all_inputs: Sequence[str]) -> dict[str, list[RunResult]]:
    """Group the seeds of one head on the same inputs by label, in the order of the results.

    Labels that two heads would share (two heads on the same subset of inputs, two classes of one name) are extended by
    the head or its class path.

    Raises:
        UserError: if a head has two results with the same seed.
    """
    class_paths: dict[str, set[str]] = defaultdict(set)  # of each label
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
    """Return the subsets of inputs that some row was tested with, by increasing size."""
    tested = {key for row in rows for key in row.subsets}
    return [key for key in map("+".join, subsets(all_inputs)) if key in tested]


def paired_p_values(rows: Sequence[Row]) -> dict[str, float]:
    """Return the p-value of each row after the first by its label, from a test against the first, the best.

    Per test sample, the number of correct predictions is summed over the seeds that both rows have; the differences are
    tested by Wilcoxon's signed-rank test (two-sided), and the p-values corrected by Holm's method. The test is over
    samples, so it is a statement about these trained models. Rows without a common seed are left out.
    """
    p_values = {}
    for row in rows[1:]:
        assert row.splits == rows[0].splits
        if seeds := sorted(rows[0].runs.keys() & row.runs.keys()):
            # Sums instead of means: the ranks are the same, and ties stay exact.
            differences = [correct_array(rows[0].runs[seed]) - correct_array(row.runs[seed]) for seed in seeds]
            p_values[row.label] = signed_rank(np.sum(differences, axis=0))
    return holm(p_values)


def accuracy_on_samples_of(best: Row, other: Row) -> float | None:
    """Return the accuracy of the best row on the test samples of another row, averaged over its own seeds.

    None if it was not tested on all of them, or if ids are not unique.
    """
    ids, *others = {run.ids for run in other.runs.values()}
    unique = all(len(set(run.ids)) == len(run.ids) for run in [*best.runs.values(), *other.runs.values()])
    correct = [dict(zip(run.ids, correct_array(run).tolist(), strict=True)) for run in best.runs.values()]
    if others or not unique or not all(by_id.keys() >= set(ids) for by_id in correct):
        return None
    return fmean(by_id[name] for by_id in correct for name in ids)
