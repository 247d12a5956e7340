"""The tables of the report: ranked rows, rows on other samples, failures, accuracy per subset of inputs."""

from __future__ import annotations

from collections.abc import Sequence

from fusion_pl.analysis.page import Table
from fusion_pl.analysis.summary import Row, Summary, accuracy_on_samples_of, measured_subsets, paired_p_values

NONE = "–"
ACCURACY_HEADER = ("head", "seeds", "test samples", "test accuracy in %", "95 % interval", "validation accuracy in %")
COSTS_HEADER = (
    "parameters", "of the head", "FLOPs per sample", "ms per batch (samples)", "training in s", "memory in MB"
)  # fmt: skip


def ranking_table(rows: Sequence[Row]) -> Table | None:
    """Return the table of ``Summary.ranked``, with the best row highlighted."""
    if not rows:
        return None
    header = (*ACCURACY_HEADER, "p-value against the best", *COSTS_HEADER)
    p_values = paired_p_values(rows)
    cells = ["best", *(_p_value(p_values.get(row.label)) for row in rows[1:])]
    lines = [(*_accuracy(row), cell, *_costs(row)) for row, cell in zip(rows, cells, strict=True)]
    return Table(header, lines, best=True)


def unranked_table(summary: Summary) -> Table | None:
    """Return the table of rows on other samples, with the accuracy of the best head on the same samples."""
    if not summary.unranked:
        return None
    header = [*ACCURACY_HEADER, "validation samples"]
    lines = [[*_accuracy(row), _counts(row.validation_samples)] for row in summary.unranked]
    if best := summary.best:
        header.append(f"{best.label} on the same test samples, in %")
        for row, line in zip(summary.unranked, lines, strict=True):
            line.append(_number(accuracy_on_samples_of(best, row), digits=2, scale=100.0))
    return Table(tuple(header), [tuple(line) for line in lines])


def failure_table(rows: Sequence[Row]) -> Table | None:
    """Return the table of failed runs and their reasons."""
    lines = [
        (row.label, ", ".join(str(seed) for seed, text in row.failed.items() if text == reason), reason)
        for row in rows
        for reason in dict.fromkeys(row.failed.values())
    ]
    return Table(("head", "seeds", "reason"), lines, text=True) if lines else None


def subset_table(rows: Sequence[Row], all_inputs: Sequence[str]) -> Table | None:
    """Return the table of the accuracy with each subset of inputs, over the samples that have at least one of them."""
    if not (subsets := measured_subsets(rows, all_inputs)):
        return None
    accuracies = [
        (row.label, *(_number(row.subsets.get(key), scale=100.0) for key in subsets)) for row in rows if row.subsets
    ]
    runs = [run for row in rows for run in row.runs.values()]
    counts = [sorted({run.subset_samples[key] for run in runs if key in run.subset_samples}) for key in subsets]
    lines = [("test samples", *map(_counts, counts)), *accuracies]
    return Table(("test accuracy in %", *(key.replace("+", " + ") for key in subsets)), lines)


def _accuracy(row: Row) -> tuple[str, ...]:
    return (
        row.label,
        f"{len(row.runs)} of {len(row.runs) + len(row.failed)}" if row.failed else str(len(row.runs)),
        _counts(row.test_samples),
        row.test.percent(),
        NONE if row.interval is None else " to ".join(f"{100 * end:.1f}" for end in row.interval),
        row.validation.percent(),
    )


def _costs(row: Row) -> tuple[str, ...]:
    costs = row.costs
    return (
        *(_with_unit(costs.get(name)) for name in ("parameters", "head_parameters", "flops")),
        _number(costs.get("latency_ms")) + (f" ({row.batch_size})" if row.batch_size else ""),
        _number(costs.get("seconds")),
        _number(costs.get("memory_mb"), digits=0),
    )


def _p_value(value: float | None) -> str:
    return "< 0.001" if value is not None and value < 0.001 else _number(value, digits=3)


def _counts(counts: Sequence[int]) -> str:
    return " to ".join(f"{count:,}" for count in dict.fromkeys([counts[0], counts[-1]])) if counts else NONE


def _number(value: float | None, digits: int = 1, scale: float = 1.0) -> str:
    return NONE if value is None else f"{scale * value:,.{digits}f}"


def _with_unit(value: float | None) -> str:
    if value is None:
        return NONE
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:,.1f}{unit}"
    return f"{value:.0f}"
