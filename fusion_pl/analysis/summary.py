"""What a set of runs says: one row per head, which row is best, and which rows can be ranked against each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped
from numpy.typing import NDArray

from fusion_pl.analysis.result import ACCURACY, Result, label
from fusion_pl.analysis.statistics import accuracy_interval, holm, signed_rank
from fusion_pl.metrics import subsets
from fusion_pl.types import UserError

COSTS = ("parameters", "head_parameters", "flops", "latency_ms", "step_ms", "seconds", "memory_mb")


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds.

    Attributes:
        mean: over the seeds.
        deviation: of the sample (n − 1); 0 where there is one seed, which says nothing about the spread.
        count: of seeds.
    """

    mean: float
    deviation: float
    count: int


class Samples(NamedTuple):
    """What accuracies were measured on: hashes of the ids and classes of the test and the validation samples."""

    tested: str
    validated: str


@dataclass(frozen=True)
class Row:
    """All runs of one head on the same inputs.

    Attributes:
        label: the head, or the inputs where it did not get all of them.
        inputs: what it was trained on.
        runs: those that finished, by seed.
        failed: seed -> why it failed.
    """

    label: str
    inputs: tuple[str, ...]
    runs: dict[int, Result]
    failed: dict[int, str]

    @property
    def samples(self) -> Samples | None:
        """What all of its runs were measured on; None where no run finished, or they do not agree."""
        found = {Samples(one.tested, one.validated) for one in self.runs.values()}
        return found.pop() if len(found) == 1 else None

    @property
    def test_samples(self) -> list[int]:
        """How many test samples its runs had: one number, unless they do not agree."""
        return sorted({len(one.correct) for one in self.runs.values()})

    @property
    def validation_samples(self) -> list[int]:
        """How many validation samples its runs had: one number, unless they do not agree."""
        return sorted({one.validation_samples or 0 for one in self.runs.values()})

    @property
    def validation(self) -> Spread | None:
        """Accuracy on validation, 0 to 1; None where no run finished."""
        return _spread([one.validation for one in self.runs.values() if one.validation is not None])

    @property
    def test(self) -> Spread | None:
        """Accuracy on test, 0 to 1; None where no run finished."""
        return _spread([one.test[ACCURACY] for one in self.runs.values()])

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the accuracy on test; None where there are no samples that all runs share."""
        return accuracy_interval(np.stack([correct(one) for one in self.runs.values()])) if self.samples else None

    @property
    def subsets(self) -> dict[str, float]:
        """Mean accuracy on test by the inputs that were left, joined by ``+``."""
        runs = self.runs.values()
        return {
            key: fmean(one.subsets[key] for one in runs if key in one.subsets) for one in runs for key in one.subsets
        }

    @property
    def costs(self) -> dict[str, float]:
        """Mean of each of ``COSTS`` that was measured."""
        found = {key: [v for one in self.runs.values() if (v := getattr(one, key)) is not None] for key in COSTS}
        return {key: fmean(values) for key, values in found.items() if values}

    @property
    def batch_size(self) -> int | None:
        """Samples of the batch that ``costs["latency_ms"]`` was measured with."""
        return next((one.batch_size for one in self.runs.values()), None)


def _spread(values: list[float]) -> Spread | None:
    if not values:
        return None
    return Spread(fmean(values), stdev(values) if len(values) > 1 else 0.0, len(values))


def correct(result: Result) -> Shaped[NDArray[np.int64], " N"]:
    """Return which test samples a run classified rightly."""
    return np.frombuffer(result.correct.encode(), dtype=np.uint8).astype(np.int64) - ord("0")


@dataclass(frozen=True)
class Summary:
    """The rows of a comparison.

    Attributes:
        ranked: measured on the same validation and test samples; the best on *validation* first, never looking at test.
            Of equal rows the one with fewer parameters comes first.
        apart: measured on other samples, so that their accuracies cannot be held against those of ``ranked``.
        failed: without a finished run.
    """

    ranked: list[Row]
    apart: list[Row]
    failed: list[Row]

    @property
    def rows(self) -> list[Row]:
        """All of them."""
        return [*self.ranked, *self.apart, *self.failed]

    @property
    def best(self) -> Row | None:
        """The row that validation chose, or None where there is nothing to choose from."""
        return self.ranked[0] if self.ranked else None


def summarise(results: Iterable[Result], all_inputs: Sequence[str]) -> Summary:
    """Summarise the runs.

    Ranked are the rows that share their samples with most of the rows that got all inputs; where no such row finished,
    all rows if they share their samples, else none.

    Args:
        results: of the runs.
        all_inputs: of the configuration.
    """
    rows = [
        Row(
            name,
            group[0].inputs,
            {one.seed: one for one in group if one.status == "done"},
            {one.seed: one.reason for one in group if one.status == "failed"},
        )
        for name, group in grouped(results, all_inputs).items()
    ]
    done = sorted((row for row in rows if row.runs), key=_rank)
    samples = _reference([row for row in done if set(row.inputs) == set(all_inputs)])
    if samples is None and len({row.samples for row in done}) == 1:
        samples = done[0].samples
    ranked = [row for row in done if samples and row.samples == samples]
    return Summary(ranked, [row for row in done if row not in ranked], [row for row in rows if not row.runs])


def _rank(row: Row) -> tuple[float, float, str]:
    return (-row.validation.mean if row.validation else 1.0, row.costs.get("parameters", float("inf")), row.label)


def _reference(rows: Sequence[Row]) -> Samples | None:
    counts = Counter(row.samples for row in rows if row.samples)
    return counts.most_common(1)[0][0] if counts else None


def grouped(results: Iterable[Result], all_inputs: Sequence[str]) -> dict[str, list[Result]]:
    """Put the seeds of one head on the same inputs together, by label, in the order in which they came.

    Heads that would share a label (two heads on the same subset of inputs, two classes of one name) are told apart.

    Raises:
        UserError: where one seed of a head is there twice.
    """
    results = list(results)
    paths: dict[str, set[str]] = {}
    for one in results:
        paths.setdefault(one.fusion, set()).add(one.class_path)
        paths.setdefault(label(one, all_inputs), set()).add(one.class_path)
    groups: dict[str, list[Result]] = {}
    for one in results:
        name = label(one, all_inputs)
        if len(paths[name]) > 1:
            head = one.fusion if len(paths[one.fusion]) == 1 else one.class_path
            name = head if set(one.inputs) == set(all_inputs) else f"{name} ({head})"
        group = groups.setdefault(name, [])
        if any(other.seed == one.seed for other in group):
            raise UserError(f"{name} has two results with seed {one.seed}: keep one of them")
        group.append(one)
    return groups


def subsets_of(rows: Iterable[Row], all_inputs: Sequence[str]) -> list[str]:
    """Return the subsets of inputs that some row was tested with, the small ones first."""
    known = {key for row in rows for key in row.subsets}
    return [key for key in map("+".join, subsets(all_inputs)) if key in known]


def paired(rows: Sequence[Row]) -> dict[str, float]:
    """Test each row against the first one: the chance of such a difference if both were equally good.

    On every test sample the correctness is averaged over the seeds that both rows have; the differences go through
    Wilcoxon's signed-rank test (two-sided), the p-values through Holm's correction. The samples are what is drawn at
    random here: it is a statement about these trained models. Left out are rows that share no seed with the first one.

    Source: Wilcoxon 1945, Holm 1979.

    Args:
        rows: measured on the same samples, the best one first.

    Returns:
        Label -> corrected p-value; the first row is not in it.
    """
    values = {}
    for row in rows[1:]:
        assert row.samples == rows[0].samples
        if shared := sorted(rows[0].runs.keys() & row.runs.keys()):
            # Sums instead of means: the ranks are the same, and equal ones stay exactly equal.
            values[row.label] = signed_rank(
                np.sum([correct(rows[0].runs[seed]) - correct(row.runs[seed]) for seed in shared], axis=0)
            )
    return holm(values)


def on_the_same(best: Row, other: Row) -> float | None:
    """Return the best row's accuracy on the samples that another row was tested on, over its own seeds.

    None where it was not tested on all of them, or where names of samples say nothing, since some have the same.
    """
    shares = []
    wanted = {one.ids for one in other.runs.values()}
    for one in best.runs.values():
        right = dict(zip(one.ids, correct(one).tolist(), strict=True))
        if len(wanted) != 1 or len(right) != len(one.ids):
            return None
        (ids,) = wanted
        if len(set(ids)) != len(ids) or not right.keys() >= set(ids):
            return None
        shares.append(fmean(right[name] for name in ids))
    return fmean(shares)
