"""``fusion-pl evaluate``, which writes one page about a checkpoint."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from fusion_pl.checkpoint import read_checkpoint
from fusion_pl.cli.checkpoint_options import (
    TRAINING_OPTIONS,
    add_checkpoint_option,
    add_model_options,
    checkpoint_path,
    set_up_rows,
)
from fusion_pl.cli.parsing import parse_checkpoint_command
from fusion_pl.data.manifest import ManifestData
from fusion_pl.evaluate.against import against_section, check_comparable
from fusion_pl.evaluate.choose_sweeps import parse_sweeps
from fusion_pl.evaluate.curves import calibration_section, class_section, doubt_section, precision_recall_section
from fusion_pl.evaluate.evaluation import Evaluation
from fusion_pl.evaluate.group_section import group_section
from fusion_pl.evaluate.groups import groupings, parse_columns
from fusion_pl.evaluate.overview import overview_section
from fusion_pl.evaluate.parts import Parts
from fusion_pl.evaluate.predict_rows import EvaluatedModel, predict_rows
from fusion_pl.evaluate.report import write_report
from fusion_pl.evaluate.robustness_section import robustness_sections
from fusion_pl.evaluate.rows import EvaluatedSplit, LabelledRows, select_rows, training_warnings
from fusion_pl.evaluate.samples import doubtful_section, hardest_section
from fusion_pl.evaluate.scores import metrics_section, resample
from fusion_pl.evaluate.section import EvaluationSection
from fusion_pl.files import check_output_folder, sha256
from fusion_pl.messages import escape_unprintable
from fusion_pl.predict import Predictor
from fusion_pl.tables.columns import check_input_names
from fusion_pl.tables.split_record import SplitRecord, find_split_record
from fusion_pl.tables.table import raise_problems
from fusion_pl.training.interrupt import StopSignals
from fusion_pl.types import MissingFileError, UserError

PARTS = "partial"  # folder of what is stored until the report is written


def evaluate_parser() -> ArgumentParser:
    """Return the parser of ``fusion-pl evaluate``."""
    parser = ArgumentParser(prog="fusion-pl evaluate", exit_on_error=False, allow_abbrev=False)
    add_checkpoint_option(parser)
    parser.add_argument("--output", type=str, required=True, help="folder of report.html, report.md and results.json")
    parser.add_argument(
        "--split",
        type=EvaluatedSplit,
        default="test",
        help="rows to evaluate: by the split column, or, without one, by the splits that the checkpoint records",
    )
    parser.add_argument(
        "--groups",
        type=list[str] | str,
        default=[],
        help="columns of the table by which metrics are reported, separated by commas, such as speaker,source",
    )
    parser.add_argument(
        "--against",
        type=str | None,
        default=None,
        help="second checkpoint, which is compared with the first on the same rows",
    )
    parser.add_argument(
        "--sweeps",
        type=bool | list[str] | str,
        default=True,
        help="corrupted and missing inputs, or some: image,noise",
    )
    parser.add_argument(
        "--max_samples",
        type=int,
        default=500,
        help="maximum number of rows for --sweeps, at random",
    )
    parser.add_argument(
        "--data.label",
        type=list[str] | str | None,
        default=None,
        help="label column, or columns of 1 and 0; by default those of the training",
    )
    add_model_options(parser, TRAINING_OPTIONS - {"split"})
    return parser


@StopSignals().handle_signals()
def evaluate_command(arguments: list[str]) -> int:
    """Run ``fusion-pl evaluate``."""
    config = parse_checkpoint_command(evaluate_parser(), arguments)
    output = Path(config.output)
    check_output_folder(output)
    if config.max_samples < 1:
        raise UserError(f"--max_samples is {config.max_samples}, expected a number of rows of at least 1")
    model, record = load_evaluated_model(config, config.ckpt_path)
    columns = parse_columns(config.groups, model.data.table)
    selected = select_rows(model.data, config.split, record)
    models = [model]
    if config.against is not None:
        other, other_record = load_other_model(config, model)
        warnings = training_warnings(other.data, selected.rows, other_record, config.split)
        selected = replace(selected, warnings=[*selected.warnings, *(f"{other.name}: {text}" for text in warnings)])
        models.append(other)
    choice = parse_sweeps(config.sweeps, list(model.predictor.processors))
    console = Console(stderr=True)
    parts = [rows_parts(output, one, selected) for one in models]
    evaluations = [predict_rows(one, selected.rows, part, console) for one, part in zip(models, parts, strict=True)]
    evaluation = evaluations[0]
    sections = make_sections(evaluation, columns, evaluations[1] if len(evaluations) > 1 else None, console)
    if choice is not None:
        pairs = list(zip(models, evaluations, strict=True))
        sections += robustness_sections(pairs, choice, config.max_samples, output / PARTS, console)
    sections = [overview_section(evaluation, selected, config.split, sections), *sections]
    write_report(output, f"Evaluation of {config.ckpt_path} on {config.data.manifest}", sections)
    parts[0].remove()
    for line in _summary(evaluation, sections, output):
        console.print(escape_unprintable(line), highlight=False, markup=False, soft_wrap=True)
    return 0


def load_evaluated_model(config: Namespace, checkpoint: str) -> tuple[EvaluatedModel, SplitRecord | None]:
    """Return a model with its table, and the splits that its checkpoint records."""
    path = checkpoint_path(config, checkpoint)
    content = read_checkpoint(path)
    predictor = Predictor.from_content(content, path, config.device, config.trust)
    options, given = config.data.as_dict(), config.data.inputs or {}
    if config.against is not None:  # the names that neither has are refused when both are known
        given = {name: columns for name, columns in given.items() if name in predictor.columns}
    data = ManifestData(
        **options
        | {
            "inputs": predictor.columns | given,
            "label": options["label"] or predictor.label or "label",
            "classes": predictor.classes,
            "task": predictor.task,
        }
    )
    set_up_rows(data, predictor, given)
    state: Any = find_split_record(content, ManifestData)
    content_hash = sha256(path)
    return EvaluatedModel(checkpoint, content_hash, predictor, data), SplitRecord.from_state(state) if state else None


def load_other_model(config: Namespace, model: EvaluatedModel) -> tuple[EvaluatedModel, SplitRecord | None]:
    """Return the model of ``--against``, and the splits that its checkpoint records."""
    try:
        other, record = load_evaluated_model(config, config.against)
    except MissingFileError as error:
        raise MissingFileError(f"--against: {error}") from error
    check_comparable(model, other)
    names = dict.fromkeys([*model.predictor.columns, *other.predictor.columns])
    raise_problems(other.data.manifest, list(check_input_names(config.data.inputs or {}, names)))
    return other, record


def rows_parts(output: Path, model: EvaluatedModel, selected: LabelledRows) -> Parts:
    """Return the stored parts of a model's predictions of the rows."""
    return Parts(output / PARTS, f"{model.key} {hashlib.sha256(selected.rows.tobytes()).hexdigest()}")


def make_sections(
    evaluation: Evaluation, columns: list[str], other: Evaluation | None, console: Console
) -> list[EvaluationSection]:
    """Return the sections of the page, in order.

    Args:
        evaluation: predictions of the checkpoint.
        columns: columns of ``--groups``.
        other: predictions of ``--against``.
        console: console of the progress bars.
    """
    return [
        metrics_section(evaluation, resample(evaluation, console)),
        class_section(evaluation),
        precision_recall_section(evaluation),
        calibration_section(evaluation),
        doubt_section(evaluation),
        group_section(evaluation, groupings(evaluation, columns)),
        *([] if other is None else [against_section(evaluation, other, console)]),
        hardest_section(evaluation, columns),
        doubtful_section(evaluation, columns),
    ]


def _summary(evaluation: Evaluation, sections: list[EvaluationSection], output: Path) -> list[str]:
    """Return the lines to print."""
    score = evaluation.task.score.replace("_", " ")
    overview = sections[0]
    return [
        f"{score} {float(evaluation.correct.double().mean()):.4f} ({len(evaluation):,} rows)",
        *(f"warning: {warning}" for warning in overview.warnings),
        f"Report: {output / 'report.html'}, {output / 'report.md'}, {output / 'results.json'}",
    ]
