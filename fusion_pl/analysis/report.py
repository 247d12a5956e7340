"""The report of a comparison: ``results.csv``, ``report.md`` and a self-contained ``report.html``."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fusion_pl.analysis.page import PICTURES, Picture, Section, Table, html, markdown
from fusion_pl.analysis.plots import accuracy_against_cost, accuracy_by_subset, svg
from fusion_pl.analysis.result import ACCURACY, Result
from fusion_pl.analysis.statistics import wilson
from fusion_pl.analysis.summary import COSTS, Row, Summary, grouped, summarise
from fusion_pl.analysis.tables import NONE, apart, by_inputs, failures, ranking
from fusion_pl.files import atomic_write
from fusion_pl.training.figures import plot_missing_inputs

HOW_TO_READ = (
    (
        "best",
        "the row of the highest accuracy on validation; each run's checkpoint, too, was chosen on validation alone. "
        "The test split was used once for each run, at its end. Only rows that were measured on the same validation "
        "and test samples are ranked; what was measured on others has a table of its own",
    ),
    ("±", "the standard deviation over seeds, which is left out where there is one"),
    (
        "95 % interval",
        "how far the test accuracy could lie from the figure with other samples of the same kind. One seed: Wilson's "
        "interval, which covers the samples alone. Several seeds: a bootstrap (2,000 draws, with a fixed seed) that "
        "draws both the samples and the seeds again, widened to Wilson's interval where that is wider; with two or "
        "three seeds it still knows little of what further seeds would bring. Intervals that overlap do not say that "
        "two rows are alike: rows share their samples, so p is the sharper question",
    ),
    (
        "p against the best",
        "from Wilcoxon's signed-rank test (two-sided) against the best row: for each test sample, how often it was "
        "classified rightly over the seeds that both rows have; Holm's method corrects for the number of rows. A small "
        "p, below 0.05 say, means such a difference would be rare if both were equally good on samples like these; a "
        "large one means that these samples show no difference, not that there is none. It speaks of the models that "
        "were trained: what another seed can change, the ± says",
    ),
    (
        "costs",
        "parameters are the trainable ones of the whole model; FLOPs are of a forward of one sample, milliseconds of a "
        "forward of one batch. Memory is the peak of the run on a GPU; on a CPU it is what lives between forward and "
        "backward of a batch: weights, gradients, activations. Where encoders are frozen, the first run encodes for "
        "all others, so its training in seconds is longer",
    ),
)
APART = (
    "These runs were validated and tested on other samples than the ranked ones: a run on fewer inputs leaves out the "
    "samples that have none of them. Accuracies on other samples cannot be held against each other, so none of these "
    "rows is ever the best. "
)
ON_THE_SAME = "What the other inputs add is seen in the last column: the best row on the test samples of this one."
COST_CAPTION = (
    "Validation accuracy against {}. Blue: the Pareto front, which no other row beats in both. It shows validation, "
    "since to choose by it on test would spoil the test. Only rows measured on the same samples are in it."
)
INPUTS = (
    "Each trained head, tested with only some of its inputs: mean over seeds, over the test samples that have at least "
    f"one of them, of which the first line says how many. {NONE}: the head was not trained on all of these."
)
INPUTS_CAPTION = "Test accuracy in % of each head (down) with each set of inputs (across)."
MISSING_CAPTION = (
    "Expected test accuracy of {} when cells go missing at random. Each straight line joins measured ends, with all "
    "inputs and without that one; the dashed curve is for cells of every input, and mixes all choices of inputs. Both "
    "are exact where every test sample has all inputs."
)


def write(
    results: Sequence[Result], all_inputs: Sequence[str], folder: Path, base_config_name: str, besides: str = ""
) -> None:
    """Write the report.

    Args:
        results: of all runs, failed ones too.
        all_inputs: names in the order of the configuration.
        folder: where to; it is made where it is not there.
        base_config_name: what people know the configuration by.
        besides: what else is in the folder, a sentence.
    """
    title = f"Comparison of fusions: {base_config_name}"
    sections = _sections(results, all_inputs, besides)
    files = {f"{PICTURES}/{one.name}.svg": one.image.decode() for section in sections for one in section.pictures}
    files["results.csv"] = _csv(results, all_inputs)
    files["report.md"] = markdown(title, sections)
    files["report.html"] = html(title, sections)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(content)


def _sections(results: Sequence[Result], all_inputs: Sequence[str], besides: str) -> list[Section]:
    found = summarise(results, all_inputs)
    finished = [*found.ranked, *found.apart]
    sections = [Section("What was compared", f"{_facts(results, found)} {besides}".strip())]
    if found.ranked:
        sections.append(Section("Results", table=ranking(found.ranked)))
    if others := apart(found):
        sections.append(Section("Measured on other samples", APART + (ON_THE_SAME if found.best else ""), others))
    if finished:
        sections.append(Section("How to read it", table=Table(("", "what it says"), HOW_TO_READ, text=True)))
    if failed := failures(found.rows):
        sections.append(Section("What failed", table=failed))
    if subsets := by_inputs(finished, all_inputs):
        pictures = _pictures("inputs", INPUTS_CAPTION, accuracy_by_subset(finished, all_inputs))
        sections.append(Section("Accuracy by inputs", INPUTS, subsets, pictures))
    if costs := _costs(found.ranked):
        sections.append(Section("What accuracy costs", pictures=costs))
    if missing := _missing(found.ranked, all_inputs):
        sections.append(Section("When inputs are missing", pictures=[missing]))
    commands = [
        (f"{name}, seed {one.seed}", one.command)
        for name, group in grouped(results, all_inputs).items()
        for one in group
        if one.command
    ]
    if commands:
        sections.append(Section("The command of each run", commands=commands))
    return sections


def _facts(results: Sequence[Result], found: Summary) -> str:
    seeds = ", ".join(str(seed) for seed in sorted({one.seed for one in results})) or "none"
    versions = ", ".join(sorted({one.version for one in results if one.version})) or "unknown"
    done = sum(one.status == "done" for one in results)
    if best := found.best:
        among = f" of the {len(found.ranked)} that were measured on the same samples" if found.apart else ""
        said = (
            f"The best on validation{among} is {best.label}: {best.validation_samples[0]:,} validation and "
            f"{best.test_samples[0]:,} test samples."
        )
    elif found.apart:
        said = "No two heads were measured on the same samples, so there is no best one."
    else:
        said = "No run finished, so there is nothing to compare."
    return (
        f"{said} {len(found.rows)} rows, seeds {seeds}; {done} of {len(results)} runs finished; fusion-pl {versions}."
    )


def _costs(rows: Sequence[Row]) -> list[Picture]:
    parameters = _pictures(
        "parameters", COST_CAPTION.format("trainable parameters"), accuracy_against_cost(rows, "parameters")
    )
    latency = "milliseconds of a forward of one batch"
    return parameters + _pictures("latency", COST_CAPTION.format(latency), accuracy_against_cost(rows, "latency_ms"))


def _missing(rows: Sequence[Row], all_inputs: Sequence[str]) -> Picture | None:
    best = next((row for row in rows if len(row.inputs) > 1), None)  # rows come in the order of validation
    names = [name for name in all_inputs if best and name in best.inputs]
    figure = plot_missing_inputs(best.subsets, names, best.label) if best else None
    return Picture("missing", MISSING_CAPTION.format(best.label), svg(figure)) if best and figure else None


def _pictures(name: str, caption: str, figure: Figure | None) -> list[Picture]:
    return [Picture(name, caption, svg(figure))] if figure else []


def _csv(results: Sequence[Result], all_inputs: Sequence[str]) -> str:
    ranked = {row.label for row in summarise(results, all_inputs).ranked}
    metrics = sorted({name for one in results for name in one.test})
    subsets = sorted({key for one in results for key in one.subsets})
    lines: list[dict[str, Any]] = [
        {
            "label": name, "fusion": one.fusion, "class_path": one.class_path, "inputs": "+".join(one.inputs),
            "seed": one.seed, "status": one.status, "reason": one.reason, "version": one.version,
            "config": one.config, "validation": one.validation,
            **{metric: one.test.get(metric) for metric in metrics},
            **{f"test/accuracy({key})": one.subsets.get(key) for key in subsets},
            "test_samples": len(one.correct) or None, "validation_samples": one.validation_samples,
            "ranked": one.status == "done" and name in ranked, **_wilson(one),
            **{key: getattr(one, key) for key in COSTS},
            "batch_size": one.batch_size, "command": one.command,
        }
        for name, group in grouped(results, all_inputs).items()
        for one in group
    ]  # fmt: skip
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]) if lines else ["label"])
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _wilson(result: Result) -> dict[str, float | None]:
    ends = wilson(result.test[ACCURACY], len(result.correct)) if result.status == "done" else (None, None)
    return {f"{ACCURACY}/{name}": end for name, end in zip(("low", "high"), ends, strict=True)}
