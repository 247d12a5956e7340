"""Section of the page about corrupted inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fusion_pl.analysis.page import Picture, Table
from fusion_pl.analysis.plots import to_svg
from fusion_pl.evaluate.corruption import SEVERITIES
from fusion_pl.evaluate.robustness import effective_robustness, relative_robustness, robustness_interval
from fusion_pl.evaluate.robustness_curves import MeasuredModel, SweepCurve, find_baseline
from fusion_pl.evaluate.robustness_plots import plot_sweeps
from fusion_pl.evaluate.section import EMPTY_CELL, EvaluationSection, interval_text

SWEEPS_TEXT = (
    "{rows} Values of one input are corrupted before its processor, in the same way in every run, and the {metric} of "
    "the rows that have the input is measured; severity 0 is the unchanged value. Relative robustness, the area under "
    "the curve, is the mean of the {metric} over the severities. {effective}"
)
EFFECTIVE_TEXT = (
    "Effective robustness is the area between this curve and that of {name}, moved to the same {metric} at severity 0: "
    "above 0, the model loses less than {name}."
)
INTERVAL_TEXT = " Its 95 % interval is that of a paired bootstrap."
NO_BASELINE_TEXT = "Effective robustness needs a baseline: give a second checkpoint with --against."


def corrupted_section(
    measured: Sequence[MeasuredModel], metric: str, rows: str, results: dict[str, Any]
) -> EvaluationSection:
    """Return the section of the corruptions, with one table and one picture per input."""
    first, mode = measured[0], results["mode"]
    others = [curve for model in measured[1:] for curve in model.curves.sweeps]
    names = (first.name, measured[1].name if len(measured) > 1 else "")
    tables, pictures, content = list[Table](), list[Picture](), dict[str, Any]()
    header = ("corruption", *map(str, (0, *SEVERITIES)), "relative", "effective", "levels")
    for number, name in enumerate(dict.fromkeys(curve.sweep.input for curve in first.curves.sweeps)):
        curves = [curve for curve in first.curves.sweeps if curve.sweep.input == name]
        baselines = [find_baseline(curve, others) for curve in curves]
        content[name] = {
            curve.sweep.corruption.name: _describe_sweep(curve, baseline, mode)
            for curve, baseline in zip(curves, baselines, strict=True)
        }
        samples = curves[0].estimates[0].samples
        caption = f"{metric.capitalize()} of {samples:,} rows with {name}, by severity"
        tables.append(Table(header, [_sweep_row(curve, content[name]) for curve in curves], caption=caption))
        figure = plot_sweeps(curves, metric, baselines, names)
        has_bands = any(estimate.interval is not None for curve in curves for estimate in curve.estimates)
        caption = f"{metric.capitalize()} over corruptions of {name}{', with 95 % intervals' if has_bands else ''}"
        pictures.append(Picture(f"corruptions_{number}", caption, to_svg(figure)))
    effective = EFFECTIVE_TEXT.format(metric=metric, name=names[1]) if names[1] else NO_BASELINE_TEXT
    if any(curve["effective_interval"] is not None for described in content.values() for curve in described.values()):
        effective += INTERVAL_TEXT
    text = SWEEPS_TEXT.format(rows=rows, metric=metric, effective=effective)
    text = " ".join([text, *_most_harmful(first.curves.sweeps, metric, mode), *first.notes.values()])
    results = results | {"baseline": names[1] or None, "inputs": content, "not_corrupted": first.notes}
    return EvaluationSection("Corrupted inputs", text, tables, pictures, key="corrupted_inputs", results=results)


def _most_harmful(curves: Sequence[SweepCurve], metric: str, mode: Any) -> list[str]:
    """Return a sentence about the corruption with the greatest loss at the last severity; none if nothing is lost."""
    sign = 1 if mode == "max" else -1
    losses = [sign * (curve.values[0] - curve.values[-1]) for curve in curves]
    if not losses or not max(losses) > 0:
        return []
    curve = curves[losses.index(max(losses))]
    corruption, values = curve.sweep.corruption, curve.values
    return [
        f"Most harmful is {corruption.name} of {curve.sweep.input}: {metric} {values[0]:.3f} without, "
        f"{values[-1]:.3f} with severity {len(values) - 1}."
    ]


def _describe_sweep(curve: SweepCurve, baseline: SweepCurve | None, mode: Any) -> dict[str, Any]:
    """Return a curve as plain data."""
    corruption = curve.sweep.corruption
    return {
        "unit": corruption.unit,
        "levels": corruption.levels,
        "rows": curve.estimates[0].samples,
        "values": curve.values,
        "intervals": [estimate.interval for estimate in curve.estimates],
        "relative_robustness": relative_robustness(curve.values),
        "relative_interval": robustness_interval(curve),
        "baseline": None if baseline is None else baseline.values,
        "effective_robustness": None if baseline is None else effective_robustness(curve.values, baseline.values, mode),
        "effective_interval": None if baseline is None else robustness_interval(curve, baseline, mode),
    }


def _sweep_row(curve: SweepCurve, content: dict[str, Any]) -> tuple[str, ...]:
    corruption = curve.sweep.corruption
    described = content[corruption.name]
    effective, interval = described["effective_robustness"], described["effective_interval"]
    levels = f"{', '.join(f'{level:g}' for level in corruption.levels)} ({corruption.unit})"
    text = EMPTY_CELL if effective is None else f"{effective:+.3f}"
    text += "" if interval is None else f" ({interval_text(interval, 1.0, 3)})"
    values = (f"{value:.3f}" for value in (*curve.values, described["relative_robustness"]))
    return (corruption.name, *values, text, levels)
