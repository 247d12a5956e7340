"""Section of the page about missing inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fusion_pl.analysis.page import Picture, Table
from fusion_pl.analysis.plots import to_svg
from fusion_pl.evaluate.missing import EXACT_INPUTS, RATES
from fusion_pl.evaluate.robustness_curves import Curves, Estimate, MeasuredModel
from fusion_pl.evaluate.robustness_plots import plot_missing_rates
from fusion_pl.evaluate.section import EMPTY_CELL, EvaluationSection, interval_text

MISSING_TEXT = (
    "{rows} {subsets} In the picture, every input, or only one of them, is missing at random at a rate; a row that "
    "would lose all of its inputs keeps one."
)
BANDS_TEXT = " The bands are 95 % intervals."
ALL_SUBSETS_TEXT = "The {metric} if only some of the inputs are there, on the rows that have one of these."
SOME_SUBSETS_TEXT = ALL_SUBSETS_TEXT + " Of the {total:,} subsets, {count} are measured, some of them drawn at random."


def missing_section(
    measured: Sequence[MeasuredModel], inputs: list[str], metric: str, rows: str, results: dict[str, Any]
) -> EvaluationSection:
    """Return the section of the subsets of the inputs, and of inputs that are missing at random."""
    subsets, rates = measured[0].curves.subsets, measured[0].curves.rates
    others, unknown = measured[1:], Estimate(float("nan"), None, 0)
    lines = [
        (
            " + ".join(names),
            *_estimate_cells(estimate),
            f"{estimate.samples:,}",
            *(_estimate_cells(other.curves.subsets.get(names, unknown))[0] for other in others),
        )
        for names, estimate in sorted(subsets.items(), key=lambda item: len(item[0]))
    ]
    header = ("inputs", metric, "95 % interval", "rows", *(other.name for other in others))
    table = Table(header, lines, caption=f"{metric.capitalize()} by subset of the inputs")
    baseline, name = (others[0].curves.rates[None], others[0].name) if others else ([], "")
    figure = plot_missing_rates(rates, metric, baseline, name)
    picture = Picture("missing_inputs", f"{metric.capitalize()} over the rate of missing inputs", to_svg(figure))
    subsets_text = ALL_SUBSETS_TEXT if len(inputs) <= EXACT_INPUTS else SOME_SUBSETS_TEXT
    subsets_text = subsets_text.format(metric=metric, total=2 ** len(inputs) - 1, count=len(subsets))
    results = results | {
        **_describe_missing(measured[0].curves),
        "baseline": {"checkpoint": others[0].name, **_describe_missing(others[0].curves)} if others else None,
    }
    text = MISSING_TEXT.format(rows=rows, subsets=subsets_text)
    if any(estimate.interval is not None for curve in rates.values() for estimate in curve):
        text += BANDS_TEXT
    return EvaluationSection("Missing inputs", text, [table], [picture], key="missing_inputs", results=results)


def _describe_missing(curves: Curves) -> dict[str, Any]:
    """Return the metric by subset and by rate as plain data."""
    return {
        "subsets": {"+".join(names): estimate._asdict() for names, estimate in curves.subsets.items()},
        "rates": [
            {
                "input": name,
                "rates": RATES,
                "values": [estimate.value for estimate in curve],
                "intervals": [estimate.interval for estimate in curve],
            }
            for name, curve in curves.rates.items()
        ],
    }


def _estimate_cells(estimate: Estimate) -> tuple[str, str]:
    """Return metric and interval."""
    value = EMPTY_CELL if not estimate.samples else f"{estimate.value:.3f}"
    return value, interval_text(estimate.interval, 1.0, 3)
