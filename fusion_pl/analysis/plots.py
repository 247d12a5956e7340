"""Figures of a comparison: score against cost, and score per subset of inputs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fusion_pl.analysis.statistics import pareto_front
from fusion_pl.analysis.summary import Row, measured_subsets

COST_LABELS = {"parameters": "trainable parameters", "latency_ms": "ms per batch"}


def plot_score_against_cost(rows: Sequence[Row], cost: Literal["parameters", "latency_ms"]) -> Figure | None:
    """Plot the mean validation score against a cost, with the Pareto front; None if no cost was measured.

    The plot shows the validation score, not the test score, because readers use the plot to select a head.
    """
    points = {row.label: (100 * row.validation_score.mean, row.costs[cost]) for row in rows if cost in row.costs}
    if not points:
        return None
    front = sorted(pareto_front(points), key=lambda name: points[name][1])
    figure = Figure(figsize=(8, max(3.5, 1 + 0.22 * len(points))), layout="constrained")
    axes = figure.subplots()
    axes.plot([points[name][1] for name in front], [points[name][0] for name in front], "-", color="tab:blue", lw=1)
    for name, (score, value) in points.items():
        axes.plot(value, score, "o", color="tab:blue" if name in front else "silver", ms=6)
    values = [value for _, value in points.values()]
    if min(values) > 0 and max(values) > 10 * min(values):
        axes.set_xscale("log")
    axes.set(xlabel=COST_LABELS[cost], ylabel=f"validation {rows[0].names[0]} in %")
    axes.margins(0.08)
    _annotate_points(axes, points, front)
    return figure


def _annotate_points(axes: Axes, points: dict[str, tuple[float, float]], front: Sequence[str]) -> None:
    """Write the point labels in a column on the right, sorted by score, so that they do not overlap."""
    order = sorted(points, key=lambda name: (points[name][0], -points[name][1]))
    for index, name in enumerate(order):
        score, value = points[name]
        axes.annotate(
            name,
            xy=(value, score),
            xytext=(1.04, (index + 0.5) / len(order)),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            weight="bold" if name in front else "normal",
            parse_math=False,  # labels may contain $
            arrowprops={"arrowstyle": "-", "relpos": (0, 0.5), "color": "lightgrey", "lw": 0.6},
            zorder=0,
        )


def plot_score_by_subset(rows: Sequence[Row], all_inputs: Sequence[str]) -> Figure | None:
    """Plot a heatmap of the mean test score per row and subset of inputs; None if no subset was tested."""
    rows = [row for row in rows if row.subsets]
    subsets = measured_subsets(rows, all_inputs)
    if not subsets:
        return None
    values = np.array([[100 * row.subsets.get(subset, np.nan) for subset in subsets] for row in rows])
    figure = Figure(figsize=(3 + 0.9 * len(subsets), 1.6 + 0.26 * len(rows)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, cmap="Blues", aspect="auto", vmin=min(50.0, float(np.nanmin(values))), vmax=100)
    names = [subset.replace("+", " + ") for subset in subsets]
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", parse_math=False)
    axes.set_yticks(range(len(rows)), [row.label for row in rows], parse_math=False)
    low, high = image.get_clim()
    for (row_index, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            color = "white" if value > (low + high) / 2 else "black"
            axes.text(column, row_index, f"{value:.1f}", ha="center", va="center", color=color, fontsize=8)
    return figure


def to_svg(figure: Figure) -> bytes:
    """Return a figure as SVG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "fusion-pl"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
