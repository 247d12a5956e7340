"""The command ``fusion-pl predict``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from jsonargparse import Namespace
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track

from fusion_pl.cli.checkpoint_options import checkpoint_path
from fusion_pl.data.rows import ManifestRows
from fusion_pl.messages import escape_unprintable
from fusion_pl.prediction.counts import Counts
from fusion_pl.prediction.options import STANDARD, check_output, parse_options
from fusion_pl.prediction.partial import PartialOutput, StandardOutput
from fusion_pl.prediction.processes import predict_ranges, split_rows
from fusion_pl.prediction.rows import RowPredictor, make_key
from fusion_pl.prediction.sample import predict_sample
from fusion_pl.prediction.selection import Selector
from fusion_pl.prediction.source import standard_input
from fusion_pl.tables.remote import is_url
from fusion_pl.training.interrupt import StoppedBySignal
from fusion_pl.types import UserError


def predict_command(arguments: list[str]) -> int:
    """Run ``fusion-pl predict``; return 1 if no row could be predicted, else 0.

    A row that cannot be predicted gets an error message in the output file; the first message is printed.

    The accuracy that is printed counts all rows with a known label, also those that the model was trained on, whose
    number is printed with it.
    """
    config = parse_options(arguments)
    if config.input:
        return predict_sample(config)
    # It must exist before the standard input is read; best and last are the same file in every process.
    config.ckpt_path = checkpoint_path(config, config.ckpt_path)
    with standard_input(config.data):
        if config.output == STANDARD:
            return _predict_to_stdout(config)
        write = _predict_to_file if config.select is None else _select_to_file
        return write(config, Path(config.output))


def _predict_to_file(config: Namespace, output: Path) -> int:
    predictor = RowPredictor(config)
    ranges = split_rows(config, predictor.source)
    partial, console = PartialOutput(output, make_key(config, predictor)), Console(stderr=True)
    with partial.lock(config.overwrite):
        check_output(output, config.overwrite)  # again: another command may have finished in the meantime
        if found := partial.num_rows(len(ranges)):
            _print(console, [f"{found:,} rows are predicted already; continuing with the next one"])
        try:
            with _progress(console) as progress:
                task = progress.add_task("Predicting", total=predictor.source.num_rows)
                counts = predict_ranges(
                    config, predictor, partial, ranges, lambda rows: progress.update(task, completed=rows)
                )
            total = partial.num_rows(len(ranges))
            predictor.output_format(output).join([partial.part(number).path for number in range(len(ranges))], output)
        except StoppedBySignal as stop:
            rows = partial.num_rows(len(ranges))
            text = f"Stopped after {rows:,} rows; the same command continues with the next one."
            raise StoppedBySignal(stop.signum, text) from None
        partial.remove()
    _print(console, _summary(config, predictor, counts, total))
    return 1 if counts.failed == total else 0


def _select_to_file(config: Namespace, output: Path) -> int:
    predictor = RowPredictor(config)
    data, labels, total = predictor.source.data, predictor.labels, predictor.source.num_rows
    if total is None:
        raise UserError(f"--select needs rows that are stored, which {type(data).__name__} does not have: use HubData")
    selector = Selector(predictor.predictor, config.by, None if labels is None else labels.has_label)
    console, output_format = Console(stderr=True), predictor.output_format(output)
    partial = PartialOutput(output, make_key(config, predictor) | {"--select": f"{config.select} {config.by}"})
    with partial.lock(config.overwrite):
        check_output(output, config.overwrite)  # as above
        batches = track(data.predict_dataloader(), "Comparing", console=console, transient=True)
        rows = selector.select(batches, config.select)
        part = partial.part(0)
        part.num_bytes = 0  # all rows are chosen anew, even if a command ended after it had saved its rows
        with part.append(output_format.header()) as file:
            for row, prediction in zip(rows, predictor.predictions_of(rows), strict=True):
                file.write(output_format.encode(row, [prediction]))
            part.save(file, len(rows), Counts())
        output_format.join([part.path], output)
        partial.remove()
    _print(console, [f"{len(rows)} of {total} rows chosen by {config.by}, most useful first, written to {output}"])
    return 0 if rows else 1


def _predict_to_stdout(config: Namespace) -> int:
    predictor, part = RowPredictor(config), StandardOutput()
    try:
        counts = predictor.write(slice(0, None), part, predictor.output_format(Path(STANDARD)))
    except BrokenPipeError:  # the reader needs no more rows (| head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at exit
        return 0
    return 1 if counts.failed == part.rows else 0


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
