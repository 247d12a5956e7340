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
from fusion_pl.analysis.result import Result
from fusion_pl.analysis.statistics import COSTS, Row, Spread, best_of, grouped, paired, subsets_of, summarise
from fusion_pl.files import whole
from fusion_pl.training.pictures import missing_picture

NONE = "–"
HOW_TO_READ = (
    "Every run had the same configuration and budget but for its head, its inputs and its seed. Each run's checkpoint, "
    "and the best row, were chosen by accuracy on validation alone; the test split was used once for each run, at its "
    "end. ± is the standard deviation over seeds, and is left out where there is one. p comes from Wilcoxon's "
    "signed-rank test (two-sided) of a row against the best one: for each test sample, how often it was classified "
    "rightly over the seeds that both rows have; Holm's method corrects for the number of rows. A small p, below 0.05 "
    "say, means such a difference would be rare if both were equally good on samples like these; a large one means "
    "that these samples show no difference, not that there is none. It speaks of the models that were trained: what "
    "another seed can change, the ± says. Parameters are the trainable ones of the whole model; FLOPs are of a forward "
    "of one sample, milliseconds of a forward of one batch. Memory is the peak of the run on a GPU; on a CPU it is "
    "what lives between forward and backward of a batch: weights, gradients, activations. Where encoders are frozen, "
    "the first run encodes for all others, so its training in seconds is longer."
)
COST_CAPTION = (
    "Validation accuracy against {}. Blue: the Pareto front, which no other row beats in both. It shows validation, "
    "since to choose by it on test would spoil the test."
)
MISSING_CAPTION = (
    "Expected test accuracy of {} when cells go missing at random. Each straight line joins measured ends, with all "
    "inputs and without that one; the dashed curve is for cells of every input, and mixes all choices of inputs. Both "
    "are exact where every test sample has all inputs."
)


def write(results: Sequence[Result], all_inputs: Sequence[str], folder: Path, base_config_name: str) -> None:
    """Write the report; nothing is written where the runs cannot be compared.

    Args:
        results: of all runs, failed ones too.
        all_inputs: names in the order of the configuration.
        folder: where to; it is made where it is not there.
        base_config_name: what people know the configuration by.

    Raises:
        UserError: where runs cannot be compared.
    """
    title = f"Comparison of fusions: {base_config_name}"
    sections = _sections(results, all_inputs)
    files = {f"{PICTURES}/{one.name}.svg": one.image.decode() for section in sections for one in section.pictures}
    files["results.csv"] = _csv(results, all_inputs)
    files["report.md"] = markdown(title, sections)
    files["report.html"] = html(title, sections)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as file:
            file.write(content)


def _sections(results: Sequence[Result], all_inputs: Sequence[str]) -> list[Section]:
    rows = summarise(results, all_inputs)
    finished = [row for row in rows if row.done]
    sections = [Section("What was compared", _facts(results, rows))]
    if finished:
        table = _main_table(finished, paired(results, all_inputs))
        sections += [Section("Results", table=table), Section("How to read it", HOW_TO_READ)]
    if failed := _failures(rows):
        sections.append(Section("What failed", table=failed))
    if by_inputs := _by_inputs(finished, all_inputs):
        sections.append(by_inputs)
    if costs := _costs(finished):
        sections.append(Section("What accuracy costs", pictures=costs))
    if missing := _missing(finished, all_inputs):
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


def _facts(results: Sequence[Result], rows: Sequence[Row]) -> str:
    seeds = ", ".join(str(seed) for seed in sorted({one.seed for one in results})) or "none"
    versions = ", ".join(sorted({one.version for one in results if one.version})) or "unknown"
    sizes = sorted({len(one.correct) for one in results if one.status == "done"})
    samples = " to ".join(f"{size:,}" for size in dict.fromkeys([sizes[0], sizes[-1]])) if sizes else "no"
    best = best_of(rows)
    done = sum(one.status == "done" for one in results)
    said = (
        f"The best on validation is {best.label}."
        if best
        else "No run came to its end, so there is nothing to compare."
    )
    return (
        f"{said} {len(rows)} rows, seeds {seeds}; {done} of {len(results)} runs came to their end; {samples} test "
        f"samples; fusion-pl {versions}."
    )


def _main_table(rows: Sequence[Row], chances: dict[str, float]) -> Table:
    header = (
        "head", "seeds", "test accuracy in %", "validation accuracy in %", "p against the best", "parameters",
        "of the head", "FLOPs a sample", "ms a batch (samples)", "training in s", "memory in MB",
    )  # fmt: skip
    return Table(header, [_main_row(row, _chance(row, rows[0], chances)) for row in rows], best=True)


def _main_row(row: Row, chance: str) -> tuple[str, ...]:
    cost, count = row.costs, len(row.done) + len(row.failed)
    milliseconds = _number(cost.get("latency_ms"))
    return (
        row.label,
        str(len(row.done)) if not row.failed else f"{len(row.done)} of {count}",
        _percent(row.test),
        _percent(row.validation),
        chance,
        _short(cost.get("parameters")),
        _short(cost.get("head_parameters")),
        _short(cost.get("flops")),
        f"{milliseconds} ({row.batch_size})" if row.batch_size else milliseconds,
        _number(cost.get("seconds")),
        _number(cost.get("memory_mb"), digits=0),
    )


def _chance(row: Row, best: Row, chances: dict[str, float]) -> str:
    if row is best:
        return "best"
    chance = chances.get(row.label)
    if chance is None:
        return NONE
    return "< 0.001" if chance < 0.001 else f"{chance:.3f}"


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


def _failures(rows: Sequence[Row]) -> Table | None:
    lines = []
    for row in rows:
        for reason in dict.fromkeys(row.failed.values()):
            seeds = ", ".join(str(seed) for seed, why in row.failed.items() if why == reason)
            lines.append((row.label, seeds, reason))
    return Table(("head", "seeds", "reason"), lines, text=True) if lines else None


def _by_inputs(rows: Sequence[Row], all_inputs: Sequence[str]) -> Section | None:
    if not (subsets := subsets_of(rows, all_inputs)):
        return None
    shares = [(row.label, *(_share(row.subsets.get(key)) for key in subsets)) for row in rows if row.subsets]
    table = Table(("test accuracy in %", *(key.replace("+", " + ") for key in subsets)), shares)
    text = (
        "Each trained head, tested with only some of its inputs: mean over seeds, over the test samples that have at "
        f"least one of them. {NONE}: the head was not trained on all of these."
    )
    caption = "Test accuracy in % of each head (down) with each set of inputs (across)."
    return Section(
        "Accuracy by inputs", text, table, _pictures("inputs", caption, accuracy_by_subset(rows, all_inputs))
    )


def _share(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f}"


def _costs(rows: Sequence[Row]) -> list[Picture]:
    parameters = _pictures(
        "parameters", COST_CAPTION.format("trainable parameters"), accuracy_against_cost(rows, "parameters")
    )
    latency = "milliseconds of a forward of one batch"
    return parameters + _pictures("latency", COST_CAPTION.format(latency), accuracy_against_cost(rows, "latency_ms"))


def _missing(rows: Sequence[Row], all_inputs: Sequence[str]) -> Picture | None:
    best = next((row for row in rows if len(row.inputs) > 1), None)  # rows come in the order of validation
    names = [name for name in all_inputs if best and name in best.inputs]
    figure = missing_picture(best.subsets, names, best.label) if best else None
    return Picture("missing", MISSING_CAPTION.format(best.label), svg(figure)) if best and figure else None


def _pictures(name: str, caption: str, figure: Figure | None) -> list[Picture]:
    return [Picture(name, caption, svg(figure))] if figure else []


def _csv(results: Sequence[Result], all_inputs: Sequence[str]) -> str:
    metrics = sorted({name for one in results for name in one.test})
    subsets = sorted({key for one in results for key in one.subsets})
    lines: list[dict[str, Any]] = [
        {
            "label": name, "fusion": one.fusion, "class_path": one.class_path, "inputs": "+".join(one.inputs),
            "seed": one.seed, "status": one.status, "reason": one.reason, "version": one.version,
            "config": one.config, "validation": one.validation,
            **{metric: one.test.get(metric) for metric in metrics},
            **{f"test/accuracy({key})": one.subsets.get(key) for key in subsets},
            "test_samples": len(one.correct) or None, **{key: getattr(one, key) for key in COSTS},
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
