"""Sections of the page about corrupted and missing inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from fusion_pl.analysis.page import Picture, Table
from fusion_pl.analysis.plots import to_svg
from fusion_pl.evaluate.choose_sweeps import Choice, choose_sweeps, draw_rows
from fusion_pl.evaluate.corruption import SEVERITIES
from fusion_pl.evaluate.evaluation import Evaluation
from fusion_pl.evaluate.missing import EXACT_INPUTS, RATES, Selection, measured_subsets, missing_rates
from fusion_pl.evaluate.parts import Parts
from fusion_pl.evaluate.predict_rows import EvaluatedModel
from fusion_pl.evaluate.robustness import effective_robustness, relative_robustness, robustness_interval
from fusion_pl.evaluate.robustness_curves import Curves, Estimate, SweepCurve, find_baseline, make_curves
from fusion_pl.evaluate.robustness_plots import plot_missing_rates, plot_sweeps
from fusion_pl.evaluate.section import EMPTY_CELL, EvaluationSection, interval_text
from fusion_pl.evaluate.sweeps import RobustnessRun

SEED = 0  # of the drawn rows, the corruptions and the missing inputs
SWEEPS_TEXT = (
    "{rows} Values of one input are corrupted before its processor, in the same way in every run, and the {metric} of "
    "the rows that have the input is measured; severity 0 is the unchanged value. Relative robustness, the area under "
    "the curve, is the mean of the {metric} over the severities. {effective}"
)
EFFECTIVE_TEXT = (
    "Effective robustness is the area between this curve and that of {name}, moved to the same {metric} at severity 0: "
    "above 0, the model loses less than {name}. Its 95 % interval is that of a paired bootstrap."
)
NO_BASELINE_TEXT = "Effective robustness needs a baseline: give a second checkpoint with --against."
MISSING_TEXT = (
    "{rows} {subsets} In the picture, every input, or only one of them, is missing at random at a rate; a row that "
    "would lose all of its inputs keeps one. The bands are 95 % intervals."
)
ALL_SUBSETS_TEXT = "The {metric} if only some of the inputs are there, on the rows that have one of these."
SOME_SUBSETS_TEXT = ALL_SUBSETS_TEXT + " Of the {total:,} subsets, {count} are measured, some of them drawn at random."


@dataclass(frozen=True)
class MeasuredModel:
    """A model with its curves.

    Attributes:
        name: name of the checkpoint.
        curves: its curves.
        notes: input that cannot be corrupted -> sentence that says why.
    """

    name: str
    curves: Curves
    notes: dict[str, str]


def robustness_sections(
    models: Sequence[tuple[EvaluatedModel, Evaluation]],
    choice: Choice,
    max_samples: int,
    folder: Path,
    console: Console,
) -> list[EvaluationSection]:
    """Return the sections of corrupted and of missing inputs.

    Args:
        models: the checkpoint, and perhaps a second one as baseline, with their predictions.
        choice: inputs and corruptions to measure.
        max_samples: maximum number of rows, at least 1.
        folder: folder of the parts that are stored.
        console: console of the progress bar.
    """
    first, evaluation = models[0]
    common = evaluation.rows
    for _, other in models[1:]:
        common = np.intersect1d(common, other.rows)
    rows = np.array(draw_rows(first.data.samples("predict"), common.tolist(), max_samples, SEED), np.int64)
    measured = [_measure(model, one, rows, choice, folder, console) for model, one in models]
    task = evaluation.task
    metric = task.monitor.replace("_", " ")
    kept = f"{len(rows):,} of the {len(common):,} rows, drawn with a fixed seed (--max_samples {max_samples})."
    text = f"All {len(common):,} rows." if len(rows) == len(common) else kept
    common_results = {"metric": task.monitor, "mode": task.mode, "rows": len(rows), "seed": SEED}
    return [
        _sweeps_section(measured, metric, text, common_results),
        _missing_section(measured, list(first.predictor.processors), metric, text, common_results),
    ]


def _measure(
    model: EvaluatedModel,
    evaluation: Evaluation,
    rows: NDArray[np.int64],
    choice: Choice,
    folder: Path,
    console: Console,
) -> MeasuredModel:
    """Return the curves of a model."""
    inputs, samples = list(model.predictor.processors), model.data.samples("predict")
    choice = choice._replace(inputs=[name for name in choice.inputs if name in inputs])
    sweeps, notes = choose_sweeps(samples, rows.tolist(), choice)
    selections: list[Selection] = [*measured_subsets(inputs, SEED), *missing_rates(inputs, SEED)]
    data = model.data
    run = RobustnessRun(
        model.predictor, samples, rows.tolist(), selections, sweeps, data.batch_size, data.num_loader_workers, SEED
    )
    measured = [[sweep.input, sweep.corruption.name, sweep.corruption.levels] for sweep in sweeps]
    contents = [model.key, hashlib.sha256(rows.tobytes()).hexdigest(), measured, data.batch_size, SEED]
    outcomes = run.measure(Parts(folder, json.dumps(contents)), console)
    chosen = evaluation.select(rows)
    return MeasuredModel(model.name, make_curves(run, outcomes, chosen.task, chosen.target), notes)


def _sweeps_section(
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
        caption = f"{metric.capitalize()} over corruptions of {name}, with 95 % intervals"
        pictures.append(Picture(f"corruptions_{number}", caption, to_svg(figure)))
    effective = EFFECTIVE_TEXT.format(metric=metric, name=names[1]) if names[1] else NO_BASELINE_TEXT
    text = SWEEPS_TEXT.format(rows=rows, metric=metric, effective=effective)
    text = " ".join([text, *first.notes.values()])
    results = results | {"baseline": names[1] or None, "inputs": content, "not_corrupted": first.notes}
    return EvaluationSection("Corrupted inputs", text, tables, pictures, key="corrupted_inputs", results=results)


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


def _missing_section(
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
