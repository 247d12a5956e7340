"""Predict one sample, whose inputs are on the command line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from jsonargparse import Namespace
from rich.console import Console
from rich.table import Table

from fusion_pl.cli.checkpoint_options import RULES, checkpoint_path
from fusion_pl.data.collate import Collate
from fusion_pl.files import looked_for
from fusion_pl.messages import did_you_mean, escape_unprintable, join_names
from fusion_pl.predict import Predictor
from fusion_pl.prediction.columns import OutputColumns
from fusion_pl.prediction.formats import prediction_values
from fusion_pl.prediction.rows import check_embeddings, output_fields
from fusion_pl.processors import TextProcessor
from fusion_pl.types import Prediction, UserError

MAX_CLASSES = 20  # that are shown


def predict_sample(config: Namespace) -> int:
    """Print the prediction of one sample: as a table in a terminal, else as JSON.

    Returns:
        1 if the sample cannot be predicted, else 0.
    """
    path = checkpoint_path(config, config.ckpt_path)
    predictor = Predictor.from_checkpoint(path, config.device, config.trust)
    check_embeddings(config, predictor)
    sample = predictor.open_sample("0", read_inputs(config.input, predictor))
    batches = [Collate(predictor.processors)([sample])]
    rules = predictor.rules(**{name: config[name] for name in RULES})
    (prediction,) = predictor.predict_batches(batches, rules, config.embeddings)
    columns = OutputColumns(predictor, output_fields(rules, config.embeddings))
    if sys.stdout.isatty():
        show(Console(), columns, prediction)
    else:
        print(json.dumps(prediction_values(columns, prediction), ensure_ascii=False))
    return int(prediction.error is not None)


def read_inputs(words: Sequence[str], predictor: Predictor) -> dict[str, Any]:
    """Return a dictionary from input name to the value of ``--input NAME=VALUE``.

    Raises:
        UserError: if a word is no input of the model, an input is given twice, or a file does not exist.
    """
    values: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"--input {word}: write NAME=VALUE, such as {next(iter(predictor.processors))}=…")
        if name not in predictor.processors:
            hint = did_you_mean(name, predictor.processors)
            raise UserError(f"--input {name}: the inputs of the model are {join_names(predictor.processors)}{hint}")
        if name in values:
            raise UserError(f"--input {name} is given twice: give it once")
        processor = predictor.processors[name]
        is_list = value.startswith("[") and not isinstance(processor, TextProcessor)
        if processor.reads_files and not is_list and not os.path.exists(value):
            raise UserError(f"--input {name}: there is no file {value!r}{looked_for(value)}: check the path")
        try:
            values[name] = json.loads(value) if is_list else value
        except ValueError as error:
            raise UserError(f"--input {name}: {value} is no JSON list of numbers: {error}") from error
    return values


def show(console: Console, columns: OutputColumns, prediction: Prediction) -> None:
    """Print a prediction as a table of the most probable classes, and of what the options add."""
    if prediction.error is not None:
        console.print(escape_unprintable(prediction.error), highlight=False, markup=False, soft_wrap=True)
        return
    decided = join_names(prediction.names) or ("none: the model abstains" if prediction.abstained else "none")
    table = Table(title=escape_unprintable(f"prediction: {decided}"), title_justify="left")
    table.add_column("class", overflow="fold")
    table.add_column("probability", justify="right")
    found = sorted((prediction.probabilities or {}).items(), key=lambda item: -item[1])
    for name, probability in found[:MAX_CLASSES]:
        table.add_row(escape_unprintable(name), f"{probability:.4f}")
    console.print(table, markup=False)
    lines = [f"… and {len(found) - MAX_CLASSES} other classes"] * (len(found) > MAX_CLASSES)
    if prediction.set is not None:
        lines.append(f"set: {join_names(prediction.set) or 'empty'}")
    for title, numbers in (("weights", prediction.weights), ("outlier p-values", prediction.outlier_p_values)):
        if numbers is not None:
            given = (f"{name} {'–' if value is None else f'{value:.3g}'}" for name, value in numbers.items())
            lines.append(f"{title}: {', '.join(given)}")
    if "embedding" in columns.fields:
        lines.append(f"embedding: {prediction.embedding}")
    for line in lines:
        console.print(escape_unprintable(line), highlight=False, markup=False, soft_wrap=True)
