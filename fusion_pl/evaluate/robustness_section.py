"""Measure models with corrupted and missing inputs, for two sections of the page."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from fusion_pl.evaluate.choose_sweeps import Choice, choose_sweeps, draw_rows
from fusion_pl.evaluate.corrupted_section import corrupted_section
from fusion_pl.evaluate.evaluation import Evaluation
from fusion_pl.evaluate.missing import Selection, measured_subsets, missing_rates
from fusion_pl.evaluate.missing_section import missing_section
from fusion_pl.evaluate.parts import Parts
from fusion_pl.evaluate.predict_rows import EvaluatedModel
from fusion_pl.evaluate.robustness_curves import MeasuredModel, make_curves
from fusion_pl.evaluate.section import EvaluationSection
from fusion_pl.evaluate.sweeps import RobustnessRun

SEED = 0  # of the drawn rows, the corruptions and the missing inputs


def robustness_sections(
    models: Sequence[tuple[EvaluatedModel, Evaluation]],
    choice: Choice,
    max_samples: int,
    folder: Path,
    console: Console,
) -> list[EvaluationSection]:
    """Return the sections of corrupted and, if the model has several inputs, of missing inputs.

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
    sections = [corrupted_section(measured, metric, text, common_results)]
    if len(inputs := list(first.predictor.processors)) > 1:
        sections.append(missing_section(measured, inputs, metric, text, common_results))
    return sections


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
