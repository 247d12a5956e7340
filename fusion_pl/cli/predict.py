"""``fusion-pl predict``: classify the rows of a manifest and write what comes out."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.progress import track

from fusion_pl.cli.parsing import parse, refuse_repeated
from fusion_pl.data.manifest import ManifestData
from fusion_pl.files import atomic_write
from fusion_pl.predict import Prediction, Predictor
from fusion_pl.types import UserError

# What only matters where there are labels or training.
TRAINING_ONLY = {
    *("label", "split", "classes", "val_fraction", "test_fraction", "seed", "augment", "on_bad_file"),
    *("drop_empty", "input_dropout"),
}


def predict_parser() -> ArgumentParser:
    """Return the parser of ``fusion-pl predict``."""
    parser = ArgumentParser(
        prog="fusion-pl predict",
        description="Classify the rows of a manifest with a checkpoint alone: no training configuration, no hub.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--ckpt_path", type=str, required=True, help="the file that fusion-pl fit wrote")
    parser.add_argument("--output", type=str, required=True, help="where to write: a .csv or .jsonl file")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--trust", type=str, default=[], help="packages whose encoders and heads may run", nargs="*")
    parser.add_class_arguments(ManifestData, "data", skip=TRAINING_ONLY)
    return parser


def predict_command(arguments: list[str]) -> None:
    """Run ``fusion-pl predict``.

    Args:
        arguments: what follows the subcommand on the command line.

    Raises:
        UserError: for a mistake that concerns the whole run; a bad row gets its own error in the output.
    """
    refuse_repeated(arguments, repeatable=())
    config = parse(predict_parser(), arguments)
    write = _writer(config.output)  # a wrong ending is told before anything is loaded
    both = os.path.exists(config.output) and os.path.exists(config.data.manifest)
    if both and os.path.samefile(config.output, config.data.manifest):
        raise UserError(f"--output {config.output} is the manifest itself: give it another name")
    predictor = Predictor.from_checkpoint(config.ckpt_path, config.device, config.trust)
    data = ManifestData(**config.data.as_dict() | {"inputs": predictor.columns | (config.data.inputs or {})})
    data.processors = predictor.processors
    data.setup("predict")
    loader: Any = data.predict_dataloader()
    console = Console(stderr=True)
    batches = track(loader, description="Predicting", total=len(loader), console=console, transient=True)
    failed = write(predictor.predict_batches(batches), predictor.classes, list(predictor.processors))
    total = len(loader.dataset)
    console.print(
        f"{total - failed} of {total} rows predicted, written to {config.output}", highlight=False, markup=False
    )
    if failed:
        console.print(f"{failed} could not be: the error column says why", highlight=False)


Writer = Callable[[Iterable[Prediction], list[str], list[str]], int]


def _writer(output: str) -> Writer:
    """Choose by suffix what writes predictions; it returns how many rows have an error."""
    suffix = Path(output).suffix.lower()
    if suffix not in {".csv", ".jsonl"}:
        raise UserError(f"--output {output} ends in {suffix!r}: predictions are written as .csv or .jsonl")
    if not Path(output).absolute().parent.is_dir():
        raise UserError(f"--output {output}: the folder {Path(output).parent} does not exist")
    rows = _csv if suffix == ".csv" else _json_lines

    def write(predictions: Iterable[Prediction], classes: list[str], inputs: list[str]) -> int:
        with atomic_write(output) as file:
            return sum(prediction.error is not None for prediction in rows(file, predictions, classes, inputs))

    return write


def _csv(
    file: TextIO, predictions: Iterable[Prediction], classes: list[str], inputs: list[str]
) -> Iterator[Prediction]:
    writer = csv.writer(file)
    writer.writerow(
        ["id", "label", "probability", *(f"p({c})" for c in classes), *(f"weight({name})" for name in inputs), "error"]
    )
    for one in predictions:
        shares, weights = one.probabilities or {}, one.weights or {}
        numbers = [one.probability, *(shares.get(c) for c in classes), *(weights.get(name) for name in inputs)]
        writer.writerow([one.id, one.label, *("" if n is None else f"{n:.6g}" for n in numbers), one.error])
        yield one


def _json_lines(file: TextIO, predictions: Iterable[Prediction], *_: list[str]) -> Iterator[Prediction]:
    for one in predictions:
        file.write(json.dumps(asdict(one), ensure_ascii=False) + "\n")
        yield one
