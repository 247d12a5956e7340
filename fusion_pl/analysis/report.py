"""Write the report of a comparison: ``results.csv``, ``report.md`` and a self-contained ``report.html``."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fusion_pl.analysis.page import Picture, Section, Table, write_pages
from fusion_pl.analysis.plots import plot_score_against_cost, plot_score_by_subset, to_svg
from fusion_pl.analysis.result import RunResult
from fusion_pl.analysis.statistics import wilson_interval
from fusion_pl.analysis.summary import COSTS, Row, Summary, group_by_label, summarise
from fusion_pl.analysis.tables import EMPTY_CELL, failure_table, ranking_table, subset_table, unranked_table
from fusion_pl.training.figures import plot_missing_inputs

TERM_EXPLANATIONS = (
    (
        "best",
        "the row with the best validation {metric}; the checkpoint of each run is selected on validation as well. "
        "The test split is used once per run, at its end. Only rows measured on the same validation and test samples "
        "are ranked; the other rows are in a separate table",
    ),
    ("±", "the standard deviation over seeds; omitted for one seed"),
    (
        "95 % interval",
        "the confidence interval of the test {score}. One seed: Wilson's interval, over the samples. Several seeds: a "
        "bootstrap (2,000 resamples, with a fixed seed) over both samples and seeds, widened to Wilson's interval; "
        "with two or three seeds it underestimates the variation between seeds. Overlapping intervals do not mean that "
        "two rows are equally good: rows share their samples, so the paired p-value is more sensitive",
    ),
    (
        "p-value against the best",
        "from Wilcoxon's signed-rank test (two-sided) against the best row, on the number of correct predictions per "
        "test sample over the seeds that both rows have; corrected for the number of rows by Holm's method. A small "
        "value, such as below 0.05, means that such a difference is unlikely if both are equally good on samples like "
        "these; a large value does not mean that they are equally good. The test is about the trained models; the "
        "variation between seeds is in the standard deviation",
    ),
    (
        "costs",
        "parameters are the trainable ones of the whole model; FLOPs are per sample of a forward pass, milliseconds "
        "per forward pass of one batch. Memory is the peak of the run on a GPU; on a CPU it is the memory between "
        "forward and backward pass of a batch: weights, gradients, activations. With frozen encoders, the first run "
        "fills the cache for the others, so its training takes longer",
    ),
)
UNRANKED_TEXT = (
    "These runs were validated and tested on other samples than the ranked ones: a run on fewer inputs leaves out the "
    "samples that have none of them. Numbers on different samples cannot be compared, so none of these rows is the "
    "best. "
)
SAME_SAMPLES_TEXT = "The last column has the {score} of the best row on the test samples of the same line."
COST_CAPTION = (
    "Validation {score} against {cost}. Blue: the Pareto front. The figure shows validation {score}, because a head "
    "selected on test {score} would have an optimistic test {score}. It has only rows measured on the same samples."
)
SUBSETS_TEXT = (
    "Each trained head, tested with only some of its inputs: mean over seeds, over the test samples that have at least "
    f"one of them; the first line has their number. {EMPTY_CELL}: the head was not trained on all of these inputs."
)
SUBSETS_CAPTION = "Test {score} in % per head (row) and set of inputs (column)."
MISSING_CAPTION = (
    "Expected test {score} of {head} when cells are missing at random. Each straight line connects the measured "
    "values with all inputs and without one; the dashed curve, for cells of every input, is a mixture of all "
    "subsets of inputs. Both are exact if every test sample has all inputs."
)


def write_report(
    results: Sequence[RunResult], all_inputs: Sequence[str], folder: Path, config_name: str, note: str = ""
) -> Summary:
    """Write the report, and return its summary.

    Args:
        results: Results of all runs, including failed runs.
        all_inputs: Names of all inputs, in the order of the configuration.
        folder: Output folder; created if it does not exist.
        config_name: Name of the configuration, shown in the title.
        note: Sentence that is added to the first section.
    """
    title = f"Comparison of fusions: {config_name}"
    summary = summarise(results, all_inputs)
    sections = _sections(results, summary, all_inputs, note)
    write_pages(folder, title, sections, {"results.csv": _csv_text(results, summary, all_inputs)})
    return summary


def _sections(results: Sequence[RunResult], summary: Summary, all_inputs: Sequence[str], note: str) -> list[Section]:
    finished = [*summary.ranked, *summary.unranked]
    commands = [
        (f"{label}, seed {result.seed}", result.command)
        for label, group in group_by_label(results, all_inputs).items()
        for result in group
        if result.command
    ]
    score, metric = finished[0].names if finished else ("accuracy", "accuracy")
    terms = [(term, meaning.format(score=score, metric=metric)) for term, meaning in TERM_EXPLANATIONS]
    explanations = Table(("", "meaning"), terms, text=True) if finished else None
    unranked_text = UNRANKED_TEXT + SAME_SAMPLES_TEXT.format(score=score) * bool(summary.ranked)
    sections = [
        Section("Results", tables=_tables(ranking_table(summary.ranked))),
        Section("Measured on other samples", unranked_text, _tables(unranked_table(summary))),
        Section("How to read it", tables=_tables(explanations)),
        Section("Failed runs", tables=_tables(failure_table(summary.rows))),
        Section(
            f"{score.capitalize()} per set of inputs",
            SUBSETS_TEXT,
            _tables(subset_table(finished, all_inputs)),
            _svg_pictures(("inputs", SUBSETS_CAPTION.format(score=score), plot_score_by_subset(finished, all_inputs))),
        ),
        Section(f"{score.capitalize()} against cost", pictures=_cost_pictures(summary.ranked)),
        Section("Missing inputs", pictures=_missing_pictures(summary.ranked, all_inputs)),
        Section("Command of each run", commands=commands),
    ]
    overview = Section("What was compared", f"{_overview_text(results, summary)} {note}".strip())
    return [overview, *(section for section in sections if section.tables or section.pictures or section.commands)]


def _tables(table: Table | None) -> list[Table]:
    return [] if table is None else [table]


def _overview_text(results: Sequence[RunResult], summary: Summary) -> str:
    seeds = ", ".join(str(seed) for seed in sorted({result.seed for result in results})) or "none"
    versions = ", ".join(sorted({result.version for result in results if result.version})) or "unknown"
    done = sum(result.status == "done" for result in results)
    return (
        f"{summary.headline()} {len(summary.rows)} rows, seeds {seeds}; {done} of {len(results)} runs finished; "
        f"fusion-pl {versions}."
    )


def _cost_pictures(rows: Sequence[Row]) -> list[Picture]:
    score = rows[0].names[0] if rows else ""
    parameters = COST_CAPTION.format(score=score, cost="trainable parameters")
    latency = COST_CAPTION.format(score=score, cost="milliseconds per forward pass of one batch")
    return _svg_pictures(
        ("parameters", parameters, plot_score_against_cost(rows, "parameters")),
        ("latency", latency, plot_score_against_cost(rows, "latency_ms")),
    )


def _missing_pictures(rows: Sequence[Row], all_inputs: Sequence[str]) -> list[Picture]:
    best = next((row for row in rows if len(row.inputs) > 1), None)  # rows are sorted by validation metric
    if best is None:
        return []
    score = best.names[0]
    inputs = [name for name in all_inputs if name in best.inputs]
    figure = plot_missing_inputs(best.subsets, inputs, best.label, score)
    return _svg_pictures(("missing", MISSING_CAPTION.format(score=score, head=best.label), figure))


def _svg_pictures(*figures: tuple[str, str, Figure | None]) -> list[Picture]:
    return [Picture(name, caption, to_svg(figure)) for name, caption, figure in figures if figure]


def _csv_text(results: Sequence[RunResult], summary: Summary, all_inputs: Sequence[str]) -> str:
    ranked = {row.label for row in summary.ranked}
    metrics = sorted({name for result in results for name in result.test})
    subsets = sorted({subset for result in results for subset in result.subsets})
    score = next((result.score for result in results if result.status == "done"), "accuracy")
    lines: list[dict[str, Any]] = [
        {
            "label": label, "fusion": result.head, "class_path": result.class_path, "inputs": "+".join(result.inputs),
            "seed": result.seed, "status": result.status, "reason": result.reason, "version": result.version,
            "config": result.key, "validation": result.validation_score,
            "validation_metric": result.validation_metric,
            **{metric: result.test.get(metric) for metric in metrics},
            **{f"test/{score}({subset})": result.subsets.get(subset) for subset in subsets},
            "test_samples": len(result.correct) or None, "validation_samples": result.validation_samples,
            "ranked": result.status == "done" and label in ranked, **_wilson_columns(result, score),
            **{cost: getattr(result, cost) for cost in COSTS},
            "batch_size": result.batch_size, "command": result.command,
        }
        for label, group in group_by_label(results, all_inputs).items()
        for result in group
    ]  # fmt: skip
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]) if lines else ["label"])
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _wilson_columns(result: RunResult, score: str) -> dict[str, float | None]:
    ends = wilson_interval(result.test_score, len(result.correct)) if result.status == "done" else (None, None)
    return {f"test/{score}/{name}": end for name, end in zip(("low", "high"), ends, strict=True)}
