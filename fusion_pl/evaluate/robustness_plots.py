"""Figures of a metric over severities, and over the rate of missing inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fusion_pl.evaluate.corruption import SEVERITIES
from fusion_pl.evaluate.missing import RATES
from fusion_pl.evaluate.robustness_curves import Estimate, SweepCurve
from fusion_pl.messages import escape_unprintable

COLUMNS = 2  # of the small multiples, which are then legible on a phone
MIN_RANGE = 0.1  # of the metric in a picture, so that small changes look small
MAX_LINES = 10  # with more inputs, only the curve of every input is drawn


def plot_sweeps(
    curves: Sequence[SweepCurve], metric: str, baselines: Sequence[SweepCurve | None], names: tuple[str, str]
) -> Figure:
    """Plot the metric over the severity, in one small picture per corruption of an input.

    Args:
        curves: curves of one input.
        metric: name of the metric.
        baselines: curve of the second model for each of them; None = there is none.
        names: names of the two models.
    """
    rows = -(-len(curves) // COLUMNS)
    columns = min(COLUMNS, len(curves))
    figure = Figure(figsize=(max(4.0, 2.7 * columns), 2.7 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, curve, baseline in zip(grid.flat, curves, baselines, strict=False):
        corruption = curve.sweep.corruption
        positions = [0, *SEVERITIES]
        _plot_line(axes, positions, curve.estimates, "tab:blue", names[0])
        if baseline is not None:
            axes.plot(positions, baseline.values, "s--", color="tab:orange", ms=3, lw=1, label=names[1])
        axes.set_title(corruption.name, fontsize=10)
        axes.set_xticks(positions, ["none", *(f"{level:g}" for level in corruption.levels)], fontsize=7)
        axes.set_xlabel(corruption.unit, fontsize=8)
        axes.grid(alpha=0.3)
    for axes in list(grid.flat)[len(curves) :]:
        axes.remove()
    _widen_range(grid[0, 0])
    for row in grid:
        row[0].set_ylabel(metric.replace("_", " "))
    if any(baseline is not None for baseline in baselines):
        legend = figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def plot_missing_rates(
    rates: Mapping[str | None, Sequence[Estimate]], metric: str, baseline: Sequence[Estimate], name_of_baseline: str
) -> Figure:
    """Plot the metric over the rate at which every input, and each alone, is missing.

    Args:
        rates: input, None = every input -> metric with each rate.
        metric: name of the metric.
        baseline: metric of the second model if every input may be missing; empty if there is none.
        name_of_baseline: name of the second model.
    """
    figure = Figure(figsize=(5.4, 3.5), layout="constrained")
    axes = figure.subplots()
    lines = {name: curve for name, curve in rates.items() if name is None or len(rates) <= MAX_LINES + 1}
    for number, (name, curve) in enumerate(lines.items()):
        label = "every input" if name is None else escape_unprintable(name)
        _plot_line(axes, [100 * rate for rate in RATES], curve, "black" if name is None else f"C{number - 1}", label)
    if baseline:
        label = f"every input, {escape_unprintable(name_of_baseline)}"
        axes.plot(
            [100 * rate for rate in RATES], [estimate.value for estimate in baseline], "--", color="grey", label=label
        )
    _widen_range(axes)
    axes.set(xlabel="missing in % of the samples", ylabel=metric.replace("_", " "))
    axes.grid(alpha=0.3)
    legend = axes.legend(fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _widen_range(axes: Axes) -> None:
    """Show at least ``MIN_RANGE`` of the metric."""
    low, high = axes.get_ylim()
    if (missing := MIN_RANGE - (high - low)) > 0:
        axes.set_ylim(low - missing, high)


def _plot_line(axes: Axes, x: Sequence[int | float], estimates: Sequence[Estimate], color: str, label: str) -> None:
    """Plot a curve over the band of its intervals."""
    ends = np.array([estimate.interval or (np.nan, np.nan) for estimate in estimates])
    axes.fill_between(x, ends[:, 0], ends[:, 1], color=color, alpha=0.15, lw=0)
    axes.plot(x, [estimate.value for estimate in estimates], "o-", color=color, ms=3, lw=1.2, label=label)
