"""The command ``fusion-pl predict``."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fusion_pl import __version__
from fusion_pl.cli.checkpoint_options import (
    RULES,
    TRAINING_OPTIONS,
    add_checkpoint_option,
    add_device_options,
    checkpoint_path,
)
from fusion_pl.cli.parsing import parse_checkpoint_command
from fusion_pl.data.base import FusionData
from fusion_pl.data.remote import is_url
from fusion_pl.data.rows import ManifestRows
from fusion_pl.messages import escape_unprintable
from fusion_pl.predict import Predictor
from fusion_pl.prediction.counts import Counts
from fusion_pl.prediction.formats import FORMATS
from fusion_pl.prediction.partial import PartialOutput
from fusion_pl.prediction.processes import predict_ranges, split_rows
from fusion_pl.prediction.rows import RowPredictor
from fusion_pl.training.interrupt import StoppedBySignal
from fusion_pl.types import UserError

# Options of streams and shards that concern training.
STREAM_OPTIONS = {"shuffle_buffer", "shuffle_window"}


def predict_parser() -> ArgumentParser:
    """Return the parser of ``fusion-pl predict``."""
    parser = ArgumentParser(prog="fusion-pl predict", exit_on_error=False, allow_abbrev=False)
    add_checkpoint_option(parser)
    parser.add_argument("--output", type=str, required=True, help="the .csv, .jsonl or .parquet file to write")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an output file that exists, and begin anew if other options were used before",
    )
    parser.add_argument(
        "--columns",
        type=list[str] | str,
        default=[],
        help="columns of the table to copy to the output, separated by commas, such as text,split",
    )
    parser.add_argument(
        "--embeddings", action="store_true", help="add the fused embedding of each sample, a list of numbers"
    )
    parser.add_method_arguments(Predictor, "rules")
    add_device_options(parser)
    parser.add_argument(
        "--trainer.devices",
        type=int,
        default=1,
        help="number of processes, each with a range of the rows, on its own GPU or its share of the cores",
    )
    parser.add_subclass_arguments(FusionData, "data", skip=TRAINING_OPTIONS | STREAM_OPTIONS)
    parser.set_defaults({"data": {"class_path": "fusion_pl.data.ManifestData"}})
    return parser


def predict_command(arguments: list[str]) -> int:
    """Run ``fusion-pl predict``; return 1 if no row could be predicted, else 0.

    A row that cannot be predicted gets an error message in the output file; the first message is printed.

    The accuracy that is printed counts all rows with a known label, also those that the model was trained on, whose
    number is printed with it.
    """
    config = parse_checkpoint_command(predict_parser(), arguments, with_data_class=True)
    output = Path(config.output)
    check_output(output, config.overwrite, config.data.init_args.get("manifest"))
    predictor = RowPredictor(config)
    ranges = split_rows(config, predictor.source)
    partial, console = PartialOutput(output, _key(config, predictor)), Console(stderr=True)
    with partial.lock(config.overwrite):
        if found := partial.num_rows(len(ranges)):
            _print(console, [f"{found:,} rows are predicted already; going on with the next one"])
        try:
            with _progress(console) as progress:
                task = progress.add_task("Predicting", total=predictor.source.num_rows)
                counts = predict_ranges(
                    config, predictor, partial, ranges, lambda rows: progress.update(task, completed=rows)
                )
        except StoppedBySignal as stop:
            rows = partial.num_rows(len(ranges))
            text = f"Stopped after {rows:,} rows; the same command goes on with the next one."
            raise StoppedBySignal(stop.signum, text) from None
        total = partial.num_rows(len(ranges))
        predictor.output_format(output).join([partial.part(number).path for number in range(len(ranges))], output)
        partial.remove()
    _print(console, _summary(config, predictor, Counts.sum(counts), total))
    return 1 if Counts.sum(counts).failed == total else 0


def check_output(output: Path, overwrite: bool, manifest: str | None) -> None:
    """Raise an error, before the model is loaded, if the output file cannot or must not be written."""
    if output.suffix.lower() not in FORMATS:
        raise UserError(
            f"--output {output} ends in {output.suffix!r}: predictions are written as .csv, .jsonl or .parquet"
        )
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: the folder {output.parent} does not exist")
    if output.is_dir():
        raise UserError(f"--output {output} is a folder: give the path of a file")
    if output.exists():
        if manifest and Path(manifest).exists() and output.samefile(manifest):
            raise UserError(f"--output {output} is the manifest itself: give it another name")
        if not overwrite:
            raise UserError(f"--output {output} exists: pass --overwrite to replace it, or another --output")


def _key(config: Namespace, predictor: RowPredictor) -> dict[str, str]:
    """Return what the predictions depend on, but for the content of the files in the cells of the table."""
    with open(checkpoint_path(config, config.ckpt_path), "rb") as file:
        checkpoint = hashlib.file_digest(file, "sha256").hexdigest()
    options = {name: config[name] for name in RULES} | {"columns": predictor.columns.copied}
    return {
        "version of fusion-pl": __version__,
        "checkpoint": checkpoint,
        "table or --data": predictor.source.key,
        **{f"--{name}": json.dumps(value) for name, value in options.items()},
        "--embeddings": str(config.embeddings),
        "--trainer.devices": str(config.trainer.devices),
    }


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def _summary(config: Namespace, predictor: RowPredictor, counts: Counts, total: int) -> list[str]:
    """Return the lines to print at the end."""
    lines = [f"{total - counts.failed} of {total} rows predicted, written to {config.output}"]
    if counts.failed:
        lines.append(f"{counts.failed} could not be predicted, see the error column; the first: {counts.first_error}")
        lines += _root_hint(predictor, counts.first_failed)
    if config.abstain is not None:
        lines.append(f"{counts.abstained} of {total - counts.failed} have no label, because the model abstains")
    if counts.labelled:
        rows = "1 row" if counts.labelled == 1 else f"{counts.labelled} rows"
        score = predictor.predictor.task.score.replace("_", " ")
        answered = " that the model does not abstain from" if counts.abstained else ""
        trained = f", {counts.trained} of which the model was trained on" if counts.trained else ""
        lines.append(f"{score} {counts.correct / counts.labelled:.4f} ({rows} with a known label{answered}{trained})")
    return lines


def _root_hint(predictor: RowPredictor, index: int) -> list[str]:
    """Return a line about ``--data.root`` if a file of a row does not exist."""
    data = predictor.source.data
    rows = None if data.is_stream else data.samples("predict")
    root = getattr(data, "root", None)
    if not isinstance(rows, ManifestRows) or root is None:
        return []
    cells = [column.cells[index] for column in rows.columns if column.reads_paths and index not in rows.errors]
    if all(os.path.exists(cell) for cell in cells if isinstance(cell, str) and not is_url(cell)):
        return []
    return [
        f"Relative paths begin in {os.path.abspath(root)}: if the files are in another folder, give it with --data.root"
    ]


def _print(console: Console, lines: list[str]) -> None:
    console.print(escape_unprintable("\n".join(lines)), highlight=False, markup=False, soft_wrap=True)
