"""Tables of the report: ranked rows, rows measured on other samples, failures, score per subset of inputs."""

from __future__ import annotations

from collections.abc import Sequence

from fusion_pl.analysis.page import Table
from fusion_pl.analysis.summary import MeanStd, Row, Summary, measured_subsets, paired_p_values, score_on_same_samples

EMPTY_CELL = "–"
COSTS_HEADER = (
    "parameters", "of the head", "FLOPs per sample", "ms per batch (samples)", "training in s", "memory in MB"
)  # fmt: skip


def ranking_table(rows: Sequence[Row]) -> Table | None:
    """Return the table of ``Summary.ranked``, with the best row highlighted."""
    if not rows:
        return None
    header = (*_score_header(rows[0]), "p-value against the best", *COSTS_HEADER)
    p_values = paired_p_values(rows)
    cells = ["best", *(_format_p_value(p_values.get(row.label)) for row in rows[1:])]
    lines = [(*_score_cells(row), cell, *_cost_cells(row)) for row, cell in zip(rows, cells, strict=True)]
    return Table(header, lines, best=True)


def unranked_table(summary: Summary) -> Table | None:
    """Return the table of the rows that are not ranked because they were measured on other samples than the best row.

    Each also has the score of the best head on its samples.
    """
    if not summary.unranked:
        return None
    header = [*_score_header(summary.unranked[0]), "validation samples"]
    lines = [[*_score_cells(row), _format_counts(row.validation_set_sizes)] for row in summary.unranked]
    if best := summary.best:
        header.append(f"{best.label} on the same test samples, in %")
        for row, line in zip(summary.unranked, lines, strict=True):
            line.append(_format_number(score_on_same_samples(best, row), digits=2, scale=100.0))
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
    """Return the table of the mean test score per subset of inputs, over the samples that have at least one of them."""
    if not (subsets := measured_subsets(rows, all_inputs)):
        return None
    scores = [
        (row.label, *(_format_number(row.subsets.get(name), scale=100.0) for name in subsets))
        for row in rows
        if row.subsets
    ]
    runs = [run for row in rows for run in row.runs.values()]
    counts = [sorted({run.subset_samples[name] for run in runs if name in run.subset_samples}) for name in subsets]
    lines = [("test samples", *map(_format_counts, counts)), *scores]
    name = next(row.names[0] for row in rows if row.subsets)
    return Table((f"test {name} in %", *(name.replace("+", " + ") for name in subsets)), lines)


def _score_header(row: Row) -> tuple[str, ...]:
    """Return the header of ``_score_cells``; a metric that is the score itself has no columns."""
    score, metric = row.names
    others = () if metric == score else (f"validation {metric}", f"test {metric}")
    return ("head", "seeds", "test samples", f"test {score} in %", "95 % interval", f"validation {score} in %", *others)


def _score_cells(row: Row) -> tuple[str, ...]:
    score, metric = row.names
    others = () if metric == score else (_format_mean(row.validation_metric), _format_mean(row.test_metric))
    return (
        row.label,
        f"{len(row.runs)} of {len(row.runs) + len(row.failed)}" if row.failed else str(len(row.runs)),
        _format_counts(row.test_set_sizes),
        row.test_score.format_percent(),
        EMPTY_CELL
        if row.test_score_interval is None
        else " to ".join(f"{100 * end:.1f}" for end in row.test_score_interval),
        row.validation_score.format_percent(),
        *others,
    )


def _format_mean(value: MeanStd) -> str:
    return f"{value.mean:.4f}" + (f" ± {value.std:.4f}" if value.count > 1 else "")


def _cost_cells(row: Row) -> tuple[str, ...]:
    costs = row.costs
    return (
        *(_format_with_unit(costs.get(name)) for name in ("parameters", "head_parameters", "flops")),
        _format_number(costs.get("latency_ms")) + (f" ({row.batch_size})" if row.batch_size else ""),
        _format_number(costs.get("seconds")),
        _format_number(costs.get("memory_mb"), digits=0),
    )


def _format_p_value(value: float | None) -> str:
    return "< 0.001" if value is not None and value < 0.001 else _format_number(value, digits=3)


def _format_counts(counts: Sequence[int]) -> str:
    return " to ".join(f"{count:,}" for count in dict.fromkeys([counts[0], counts[-1]])) if counts else EMPTY_CELL


def _format_number(value: float | None, digits: int = 1, scale: float = 1.0) -> str:
    return EMPTY_CELL if value is None else f"{scale * value:,.{digits}f}"


def _format_with_unit(value: float | None) -> str:
    if value is None:
        return EMPTY_CELL
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:,.1f}{unit}"
    return f"{value:.0f}"
