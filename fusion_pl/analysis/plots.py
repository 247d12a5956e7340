"""Pictures of a comparison: what accuracy costs, what each set of inputs gives, what a missing input takes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fusion_pl.analysis.statistics import pareto
from fusion_pl.analysis.summary import Row, subsets_of

AXES = {"parameters": "trainable parameters", "latency_ms": "milliseconds a batch"}


def accuracy_against_cost(rows: Sequence[Row], cost: Literal["parameters", "latency_ms"]) -> Figure | None:
    """Draw each row's validation accuracy against a cost, with the Pareto front; None where no cost is known.

    It is a picture to choose by, so it shows validation: to choose by it on test would spoil the test.
    """
    points = {
        row.label: (100 * row.validation.mean, row.costs[cost]) for row in rows if row.validation and cost in row.costs
    }
    if not points:
        return None
    front = sorted(pareto(points), key=lambda name: points[name][1])
    figure = Figure(figsize=(8, max(3.5, 1 + 0.22 * len(points))), layout="constrained")
    axes = figure.subplots()
    axes.plot([points[name][1] for name in front], [points[name][0] for name in front], "-", color="tab:blue", lw=1)
    for name, (accuracy, price) in points.items():
        axes.plot(price, accuracy, "o", color="tab:blue" if name in front else "silver", ms=6)
    prices = [price for _, price in points.values()]
    if min(prices) > 0 and max(prices) > 10 * min(prices):
        axes.set_xscale("log")
    axes.set(xlabel=AXES[cost], ylabel="validation accuracy in %")
    axes.margins(0.08)
    _label(axes, points, front)
    return figure


def _label(axes: Axes, points: dict[str, tuple[float, float]], front: Sequence[str]) -> None:
    """Write the names in a column on the right, in the order of accuracy, so that none covers another."""
    order = sorted(points, key=lambda name: (points[name][0], -points[name][1]))
    for place, name in enumerate(order):
        accuracy, price = points[name]
        axes.annotate(
            name,
            xy=(price, accuracy),
            xytext=(1.04, (place + 0.5) / len(order)),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            weight="bold" if name in front else "normal",
            parse_math=False,  # a $ in a name is a $
            arrowprops={"arrowstyle": "-", "relpos": (0, 0.5), "color": "lightgrey", "lw": 0.6},
            zorder=0,
        )


def accuracy_by_subset(rows: Sequence[Row], all_inputs: Sequence[str]) -> Figure | None:
    """Draw the test accuracy of each row (down) with each subset of inputs (across); None where there is none."""
    rows = [row for row in rows if row.subsets]
    subsets = subsets_of(rows, all_inputs)
    if not subsets:
        return None
    values = np.array([[100 * row.subsets.get(key, np.nan) for key in subsets] for row in rows])
    figure = Figure(figsize=(3 + 0.9 * len(subsets), 1.6 + 0.26 * len(rows)), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(values, cmap="Blues", aspect="auto", vmin=min(50.0, float(np.nanmin(values))), vmax=100)
    names = [key.replace("+", " + ") for key in subsets]
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", parse_math=False)
    axes.set_yticks(range(len(rows)), [row.label for row in rows], parse_math=False)
    low, high = shown.get_clim()
    for (down, across), value in np.ndenumerate(values):
        if not np.isnan(value):
            colour = "white" if value > (low + high) / 2 else "black"
            axes.text(across, down, f"{value:.1f}", ha="center", va="center", color=colour, fontsize=8)
    return figure


def svg(figure: Figure) -> bytes:
    """Return a picture as SVG, the same bytes for the same picture."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "fusion-pl"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
