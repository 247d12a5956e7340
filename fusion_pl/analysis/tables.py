"""The tables of a comparison's report: what is ranked, what stands apart, what failed, accuracy by inputs."""

from __future__ import annotations

from collections.abc import Sequence

from fusion_pl.analysis.page import Table
from fusion_pl.analysis.summary import Row, Spread, Summary, on_the_same, paired, subsets_of

NONE = "–"


def ranking(rows: Sequence[Row]) -> Table:
    """Return the rows that were measured on the same samples, the best one first and marked.

    Args:
        rows: see ``Summary.ranked``; at least one.
    """
    header = (
        "head", "seeds", "test samples", "test accuracy in %", "95 % interval", "validation accuracy in %",
        "p against the best", "parameters", "of the head", "FLOPs a sample", "ms a batch (samples)", "training in s",
        "memory in MB",
    )  # fmt: skip
    chances = paired(rows) | {rows[0].label: None}
    return Table(header, [(*_measured(row), _chance(row, chances), *_costs(row)) for row in rows], best=True)


def apart(summary: Summary) -> Table | None:
    """Return the rows that were measured on other samples; none of them is best."""
    if not summary.apart:
        return None
    best = summary.best
    header = ["head", "seeds", "test samples", "test accuracy in %", "95 % interval", "validation accuracy in %"]
    header.append("validation samples")
    lines = [[*_measured(row), _counts(row.validation_samples)] for row in summary.apart]
    if best:
        header.append(f"{best.label} on the same test samples, in %")
        for row, line in zip(summary.apart, lines, strict=True):
            share = on_the_same(best, row)
            line.append(NONE if share is None else f"{100 * share:.2f}")
    return Table(tuple(header), [tuple(line) for line in lines])


def _measured(row: Row) -> tuple[str, ...]:
    count = len(row.runs) + len(row.failed)
    return (
        row.label,
        str(len(row.runs)) if not row.failed else f"{len(row.runs)} of {count}",
        _counts(row.test_samples),
        _percent(row.test),
        NONE if row.interval is None else " to ".join(f"{100 * end:.1f}" for end in row.interval),
        _percent(row.validation),
    )


def _costs(row: Row) -> tuple[str, ...]:
    cost = row.costs
    milliseconds = _number(cost.get("latency_ms"))
    return (
        _short(cost.get("parameters")),
        _short(cost.get("head_parameters")),
        _short(cost.get("flops")),
        f"{milliseconds} ({row.batch_size})" if row.batch_size else milliseconds,
        _number(cost.get("seconds")),
        _number(cost.get("memory_mb"), digits=0),
    )


def _chance(row: Row, chances: dict[str, float | None]) -> str:
    if row.label not in chances:
        return NONE
    chance = chances[row.label]
    if chance is None:
        return "best"
    return "< 0.001" if chance < 0.001 else f"{chance:.3f}"


def _counts(counts: Sequence[int]) -> str:
    return " to ".join(f"{count:,}" for count in dict.fromkeys([counts[0], counts[-1]])) if counts else NONE


def _percent(spread: Spread | None) -> str:
    if spread is None:
        return NONE
    return f"{100 * spread.mean:.2f}" + (f" ± {100 * spread.deviation:.2f}" if spread.count > 1 else "")


def _number(value: float | None, digits: int = 1) -> str:
    return NONE if value is None else f"{value:,.{digits}f}"


def _short(value: float | None) -> str:
    if value is None:
        return NONE
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:,.1f}{unit}"
    return f"{value:.0f}"


def failures(rows: Sequence[Row]) -> Table | None:
    """Return why runs failed."""
    lines = []
    for row in rows:
        for reason in dict.fromkeys(row.failed.values()):
            seeds = ", ".join(str(seed) for seed, why in row.failed.items() if why == reason)
            lines.append((row.label, seeds, reason))
    return Table(("head", "seeds", "reason"), lines, text=True) if lines else None


def by_inputs(rows: Sequence[Row], all_inputs: Sequence[str]) -> Table | None:
    """Return the accuracy of each trained head with each subset of its inputs, over the samples that have one."""
    if not (subsets := subsets_of(rows, all_inputs)):
        return None
    shares = [(row.label, *(_share(row.subsets.get(key)) for key in subsets)) for row in rows if row.subsets]
    runs = [one for row in rows for one in row.runs.values()]
    counts = [sorted({int(one.subset_samples[key]) for one in runs if key in one.subset_samples}) for key in subsets]
    lines = [("test samples", *map(_counts, counts)), *shares]
    return Table(("test accuracy in %", *(key.replace("+", " + ") for key in subsets)), lines)


def _share(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f}"
