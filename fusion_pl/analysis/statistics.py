"""What a set of runs says: means, spreads, which head is best, and whether another is worse beyond chance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from jaxtyping import Shaped
from numpy.typing import NDArray

from fusion_pl.analysis.result import ACCURACY, Result, label
from fusion_pl.metrics import subsets
from fusion_pl.types import UserError


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


@dataclass(frozen=True)
class Row:
    """All runs of one head on the same inputs.

    Attributes:
        label: the head, or the inputs where it did not get all of them.
        inputs: what it was trained on.
        done: seeds that came to their end.
        failed: seed -> why it failed.
        validation: accuracy, 0 to 1; None where no seed came to its end, as in everything below.
        test: accuracy, 0 to 1.
        subsets: mean accuracy on test by the inputs that were left, joined by ``+``.
        costs: mean of each of ``COSTS`` that was measured.
        batch_size: of ``latency_ms``.
    """

    label: str
    inputs: tuple[str, ...]
    done: tuple[int, ...]
    failed: dict[int, str]
    validation: Spread | None
    test: Spread | None
    subsets: dict[str, float]
    costs: dict[str, float]
    batch_size: int | None


COSTS = ("parameters", "head_parameters", "flops", "latency_ms", "step_ms", "seconds", "memory_mb")


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


def summarise(results: Iterable[Result], all_inputs: Sequence[str]) -> list[Row]:
    """Summarise the runs, the best first: the row of the highest mean *validation* accuracy, never looking at test.

    Of equal rows the one with fewer parameters comes first; rows without a finished run come last.

    Args:
        results: of the runs.
        all_inputs: of the configuration.
    """
    rows = [_row(name, group) for name, group in grouped(results, all_inputs).items()]
    return sorted(rows, key=lambda row: (-row.validation.mean if row.validation else 1.0, _size(row), row.label))


def best_of(rows: Sequence[Row]) -> Row | None:
    """Return the row that validation chose, or None where nothing came to its end."""
    return rows[0] if rows and rows[0].done else None


def _size(row: Row) -> float:
    return row.costs.get("parameters", float("inf"))


def _row(name: str, group: list[Result]) -> Row:
    done = [one for one in group if one.status == "done"]
    subsets = {key: [one.subsets[key] for one in done if key in one.subsets] for one in done for key in one.subsets}
    costs = {key: [value for one in done if (value := getattr(one, key)) is not None] for key in COSTS}
    return Row(
        label=name,
        inputs=group[0].inputs,
        done=tuple(one.seed for one in done),
        failed={one.seed: one.reason for one in group if one.status == "failed"},
        validation=_spread([one.validation for one in done if one.validation is not None]),
        test=_spread([one.test[ACCURACY] for one in done]),
        subsets={key: fmean(values) for key, values in subsets.items()},
        costs={key: fmean(values) for key, values in costs.items() if values},
        batch_size=next((one.batch_size for one in done), None),
    )


def _spread(values: list[float]) -> Spread | None:
    if not values:
        return None
    return Spread(fmean(values), stdev(values) if len(values) > 1 else 0.0, len(values))


def subsets_of(rows: Iterable[Row], all_inputs: Sequence[str]) -> list[str]:
    """Return the subsets of inputs that some row was tested with, the small ones first."""
    known = {key for row in rows for key in row.subsets}
    return [key for key in map("+".join, subsets(all_inputs)) if key in known]


def paired(results: Iterable[Result], all_inputs: Sequence[str]) -> dict[str, float]:
    """Test each row against the best one: the chance of such a difference if both were equally good.

    On every test sample the correctness is averaged over the seeds that both rows have; the differences go through
    Wilcoxon's signed-rank test (two-sided), the p-values through Holm's correction. The samples are what is drawn at
    random here: it is a statement about these trained models. Left out are rows that share no seed with the best one,
    and rows on other inputs that were tested on other samples (those without any of their inputs drop out).

    Source: Wilcoxon 1945, Holm 1979.

    Args:
        results: of the runs.
        all_inputs: of the configuration.

    Returns:
        Label -> corrected p-value; the best row, and those without a finished run, are not in it.

    Raises:
        UserError: where two runs on the same inputs were tested on different samples.
    """
    results = list(results)
    best = best_of(summarise(results, all_inputs))
    if best is None:
        return {}
    _refuse_other_samples(results)
    finished = {
        name: {(one.seed, one.tested): _bits(one) for one in group if one.status == "done"}
        for name, group in grouped(results, all_inputs).items()
    }
    reference = finished.pop(best.label)
    values = {}
    for name, runs in finished.items():
        if shared := sorted(reference.keys() & runs.keys()):
            # Sums instead of means: the ranks are the same, and equal ones stay exactly equal.
            values[name] = _wilcoxon(np.sum([reference[key] - runs[key] for key in shared], axis=0))
    return holm(values)


def _refuse_other_samples(results: list[Result]) -> None:
    first: dict[tuple[str, ...], Result] = {}
    for one in (one for one in results if one.status == "done"):
        other = first.setdefault(one.inputs, one)
        if (one.tested, len(one.correct)) != (other.tested, len(other.correct)):
            raise UserError(
                f"{one.fusion} (seed {one.seed}) was tested on {len(one.correct)} samples and {other.fusion} (seed "
                f"{other.seed}) on {len(other.correct)} others: runs can be compared only on the same samples; compare "
                "into another folder, or run the older ones again"
            )


def _bits(result: Result) -> Shaped[NDArray[np.int64], " N"]:
    return np.frombuffer(result.correct.encode(), dtype=np.uint8).astype(np.int64) - ord("0")


def _wilcoxon(differences: Shaped[NDArray[np.int64], " N"]) -> float:
    from scipy.stats import wilcoxon  # a second of import that only the report needs

    return float(wilcoxon(differences).pvalue) if differences.any() else 1.0


def holm(values: Mapping[str, float]) -> dict[str, float]:
    r"""Correct p-values for their number: the chance that even one of those below α is a false alarm stays below α.

    Of the sorted values :math:`p_1 \le … \le p_m`, the k-th becomes :math:`\max_{j \le k} \min(1, (m - j + 1)\, p_j)`.

    Source: Holm 1979, *A simple sequentially rejective multiple test procedure*.

    Example:
        >>> holm({"a": 0.01, "b": 0.5, "c": 0.02})
        {'a': 0.03, 'c': 0.04, 'b': 0.5}
    """
    corrected, largest = {}, 0.0
    for rank, name in enumerate(sorted(values, key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[name]))
        corrected[name] = largest
    return corrected


def pareto(points: Mapping[str, tuple[float, float]]) -> set[str]:
    """Return the labels that nobody beats: none is as accurate and as cheap, and better in one of the two.

    Args:
        points: label -> (accuracy, cost).

    Example:
        >>> sorted(pareto({"small": (0.8, 1.0), "large": (0.9, 5.0), "waste": (0.8, 5.0)}))
        ['large', 'small']
    """
    return {
        name
        for name, (accuracy, cost) in points.items()
        if not any(a >= accuracy and c <= cost and (a, c) != (accuracy, cost) for a, c in points.values())
    }
