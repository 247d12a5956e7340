"""``fusion-pl predict``, which classifies the rows of a manifest and writes the predictions to a file."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from jsonargparse import ArgumentParser, Namespace
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from fusion_pl.cli.parsing import parse_checkpoint_command
from fusion_pl.cli.runs import LOGGER, find_checkpoint
from fusion_pl.data.checks import check_text_column
from fusion_pl.data.columns import check_input_columns
from fusion_pl.data.labels import has_label_columns, read_label_column
from fusion_pl.data.manifest import ManifestData
from fusion_pl.data.remote import is_url
from fusion_pl.data.rows import ManifestRows
from fusion_pl.data.table import Cells, Table, raise_problems
from fusion_pl.files import atomic_write
from fusion_pl.messages import escape_unprintable
from fusion_pl.predict import Prediction, Predictor
from fusion_pl.types import UserError

# Data options that prediction does not use, because they concern training or labels.
TRAINING_OPTIONS = {
    *("label", "task", "split", "classes", "val_fraction", "test_fraction", "seed", "augment", "on_bad_file"),
    *("drop_empty", "input_dropout", "check_files", "group", "time", "fold", "splits"),
    *("sampling", "sample_weight", "bucket_by_length"),
}

RULES = ("coverage", "coverage_by_class", "abstain", "doubt", "outliers")  # options of Predictor.rules

Columns = dict[str, Cells]  # column name -> one cell per row


@dataclass
class Counts:
    """Numbers of failed rows, of abstentions, of other rows with a known label, and of correct predictions among these.

    Attributes:
        first_failed: index of the first failed row.
        first_error: its error message.
    """

    failed: int = 0
    abstained: int = 0
    labelled: int = 0
    correct: int = 0
    first_failed: int = 0
    first_error: str = ""


def predict_parser() -> ArgumentParser:
    """Return the parser of ``fusion-pl predict``."""
    parser = ArgumentParser(prog="fusion-pl predict", exit_on_error=False, allow_abbrev=False)
    add_checkpoint_option(parser)
    parser.add_argument("--output", type=str, required=True, help="the .csv or .jsonl file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an output file that exists")
    parser.add_argument(
        "--columns",
        type=list[str] | str,
        default=[],
        help="columns of the table to copy to the output, separated by commas, such as text,split",
    )
    parser.add_method_arguments(Predictor, "rules")
    add_model_options(parser)
    return parser


def add_checkpoint_option(parser: ArgumentParser) -> None:
    """Add the option of the checkpoint, the first one in help and messages."""
    parser.add_argument(
        "--ckpt_path",
        type=str,
        required=True,
        help="a file that fusion-pl fit wrote, or best or last of the newest run",
    )


def add_model_options(parser: ArgumentParser, unused: Collection[str] = TRAINING_OPTIONS) -> None:
    """Add the options of the device and of the table, without its ``unused`` ones."""
    add_device_options(parser)
    parser.add_class_arguments(ManifestData, "data", skip=set(unused))


def add_device_options(parser: ArgumentParser) -> None:
    """Add the options of the device, and of the packages and the folder of the checkpoint."""
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add_loading_options(parser)


def add_loading_options(parser: ArgumentParser) -> None:
    """Add the options of what may run, and of where the newest run is."""
    parser.add_argument("--trust", type=str, default=[], help="packages whose encoders and heads may run", nargs="*")
    for name in ("save_dir", "name"):
        parser.add_argument(
            f"--trainer.logger.{name}",
            type=str,
            default=LOGGER["init_args"][name],
            help="folder or name of the runs of fit, for --ckpt_path best or last",
        )


def checkpoint_path(config: Namespace, name: str) -> str:
    """Return the path of a checkpoint, which may be ``best`` or ``last``.

    Raises:
        MissingFileError: if it does not exist.
    """
    logger = config.trainer.logger
    return find_checkpoint(name, Path(logger.save_dir, logger.name))


def load_model(config: Namespace) -> tuple[Predictor, ManifestData]:
    """Return the model of the checkpoint, and the table with the processors of the model."""
    predictor = Predictor.from_checkpoint(checkpoint_path(config, config.ckpt_path), config.device, config.trust)
    data = ManifestData(**config.data.as_dict() | {"inputs": predictor.columns | (config.data.inputs or {})})
    set_up_rows(data, predictor, config.data.inputs)
    return predictor, data


def set_up_rows(data: ManifestData, predictor: Predictor, given: Mapping[str, str | list[str]] | None) -> None:
    """Give a table the processors of a model, and check it.

    Args:
        data: the table.
        predictor: the model, some of whose inputs the table may lack.
        given: input name -> column or columns of ``--data.inputs``, all of which the table must have.

    Raises:
        UserError: if the table cannot be read, or lacks a given column or the columns of all inputs.
    """
    lacking = [
        problem for name, columns in (given or {}).items() for problem in check_input_columns(data.table, name, columns)
    ]
    raise_problems(data.manifest, lacking)
    data.processors = predictor.processors
    data.setup("predict")


def predict_command(arguments: list[str]) -> int:
    """Run ``fusion-pl predict``; return 1 if no row could be predicted, else 0.

    A row that cannot be predicted gets an error message in the output file; the first message is printed.

    The accuracy that is printed counts all rows with a known label, also those that the model was trained on.
    """
    config = parse_checkpoint_command(predict_parser(), arguments)
    _check_output(Path(config.output), config.overwrite, config.data.manifest)
    predictor, data = load_model(config)
    rules = predictor.rules(**{name: config[name] for name in RULES})
    columns = _select_columns(data.table, config.columns)
    loader: Any = data.predict_dataloader()
    console = Console(stderr=True)
    batches = track(loader, description="Predicting", total=len(loader), console=console, transient=True)
    counts = Counts()
    targets = _read_targets(predictor, data.table)
    predictions = _update_counts(predictor.predict_batches(batches, rules), targets, predictor, counts)
    write = _write_csv if Path(config.output).suffix.lower() == ".csv" else _write_json_lines
    options = {"set": config.coverage, "abstained": config.abstain, "outlier_p_values": config.outliers or None}
    fields = [name for name, option in options.items() if option is not None]
    with atomic_write(config.output) as file:
        write(file, predictions, predictor, columns, fields)
    total, failed, labelled = len(loader.dataset), counts.failed, counts.labelled
    lines = [f"{total - failed} of {total} rows predicted, written to {config.output}"]
    if failed:
        lines.append(f"{failed} could not be predicted, see the error column; the first: {counts.first_error}")
        lines += _root_hint(loader.dataset, counts.first_failed, data.root)
    if config.abstain is not None:
        lines.append(f"{counts.abstained} of {total - failed} have no label, because the model abstains")
    if labelled:
        rows = "1 row" if labelled == 1 else f"{labelled} rows"
        score = predictor.task.score.replace("_", " ")
        answered = " that the model does not abstain from" if counts.abstained else ""
        lines.append(f"{score} {counts.correct / labelled:.4f} ({rows} with a known label{answered})")
    console.print(escape_unprintable("\n".join(lines)), highlight=False, markup=False, soft_wrap=True)
    return 1 if failed == total else 0


def _root_hint(rows: ManifestRows, index: int, root: str) -> list[str]:
    """Return a line about ``--data.root`` if a file of a row does not exist."""
    cells = [column.cells[index] for column in rows.columns if column.reads_paths and index not in rows.errors]
    if all(os.path.exists(cell) for cell in cells if isinstance(cell, str) and not is_url(cell)):
        return []
    return [
        f"Relative paths begin in {os.path.abspath(root)}: if the files are in another folder, give it with --data.root"
    ]


def _check_output(output: Path, overwrite: bool, manifest: str) -> None:
    """Raise an error, before the model is loaded, if the output file cannot or must not be written."""
    if output.suffix.lower() not in {".csv", ".jsonl"}:
        raise UserError(f"--output {output} ends in {output.suffix!r}: predictions are written as .csv or .jsonl")
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: the folder {output.parent} does not exist")
    if output.exists():
        if Path(manifest).exists() and output.samefile(manifest):
            raise UserError(f"--output {output} is the manifest itself: give it another name")
        if not overwrite:
            raise UserError(f"--output {output} exists: pass --overwrite to replace it, or another --output")


def _select_columns(table: Table, names: list[str] | str) -> Columns:
    """Return the columns of the table that ``names`` selects for the output file."""
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
    raise_problems(table.path, [problem for name in names for problem in check_text_column(table, name, "--columns")])
    return {name: _all_cells(table, name) for name in names}


def _all_cells(table: Table, column: str) -> Cells:
    return Cells(table, column, np.arange(len(table)))


def _read_targets(predictor: Predictor, table: Table) -> NDArray[np.int64] | None:
    """Return the target of each row, from the label columns of the training; None if the table lacks one of them."""
    names = [predictor.label] if isinstance(predictor.label, str) else predictor.label or []
    if not names or not has_label_columns(table, names, predictor.task):
        return None
    return predictor.task.read_targets([read_label_column(table, name) for name in names], predictor.classes)


def _update_counts(
    predictions: Iterable[Prediction], targets: NDArray[np.int64] | None, predictor: Predictor, counts: Counts
) -> Iterator[Prediction]:
    """Yield the predictions unchanged; count failed rows, rows with a known label, and correct predictions."""
    task = predictor.task
    known = None if targets is None else task.is_known(targets)
    for row, prediction in enumerate(predictions):
        if prediction.error is not None:
            if not counts.failed:
                counts.first_failed, counts.first_error = row, prediction.error
            counts.failed += 1
        elif prediction.abstained:
            counts.abstained += 1
        elif targets is not None and known is not None and known[row]:
            counts.labelled += 1
            counts.correct += task.matches(prediction.names, targets[row], predictor.classes)
        yield prediction


def _write_csv(
    file: TextIO, predictions: Iterable[Prediction], predictor: Predictor, columns: Columns, fields: list[str]
) -> None:
    """Write one row per sample, with one column per input weight if the fusion head returns input weights.

    ``fields`` are the fields of a ``Prediction`` that its rules fill: ``set``, ``abstained`` and ``outlier_p_values``.
    """
    task, classes = predictor.task, predictor.classes
    predictions, first = iter(predictions), list[Prediction]()
    for prediction in predictions:  # until a prediction shows whether the fusion head returns input weights
        first.append(prediction)
        if prediction.error is None:
            break
    inputs = list(first[-1].weights or {}) if first else []
    detectors = list(predictor.model.outlier_detectors) if "outlier_p_values" in fields else []
    decision, rules = task.prediction_fields, [name for name in fields if name != "outlier_p_values"]
    names = [*decision, *rules, *(f"p({name})" for name in classes), *(f"weight({name})" for name in inputs)]
    names += [f"outlier_p_value({name})" for name in detectors]
    output = {"id", *names, "error"}
    copied = [f"table({name})" if name in output else name for name in columns]
    writer = csv.writer(file)
    writer.writerow(["id", *copied, *names, "error"])
    for row, prediction in enumerate(chain(first, predictions)):
        probabilities, weights = prediction.probabilities or {}, prediction.weights or {}
        decided = (task.format_decision(getattr(prediction, name)) for name in decision)
        ruled = (_format_field(getattr(prediction, name)) for name in rules)
        values = [*decided, *ruled, *map(probabilities.get, classes), *map(weights.get, inputs)]
        values += map((prediction.outlier_p_values or {}).get, detectors)
        formatted = (f"{value:.6g}" if isinstance(value, float) else value for value in values)
        cells = [cells[row] for cells in columns.values()]
        writer.writerow([prediction.id, *cells, *formatted, prediction.error])


def _format_field(value: list[str] | bool | None) -> str | None:
    """Return a set or whether the model abstained as a cell of a table."""
    return "|".join(value) if isinstance(value, list) else None if value is None else str(value).lower()


def _write_json_lines(
    file: TextIO, predictions: Iterable[Prediction], predictor: Predictor, columns: Columns, fields: list[str]
) -> None:
    """Write one JSON object per sample; the copied columns are under ``columns``."""
    optional = {"label", "probability", "labels", "set", "abstained", "outlier_p_values"}
    unused = optional.difference(predictor.task.prediction_fields, fields)
    for row, prediction in enumerate(predictions):
        copied = {"columns": {name: cells[row] for name, cells in columns.items()}} if columns else {}
        values = {name: value for name, value in asdict(prediction).items() if name not in unused}
        file.write(json.dumps(values | copied, ensure_ascii=False) + "\n")
