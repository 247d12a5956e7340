"""Predict a range of rows into a file that can be continued."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from fusion_pl import __version__
from fusion_pl.checkpoint import read_checkpoint
from fusion_pl.cli.checkpoint_options import RULES, checkpoint_path
from fusion_pl.data.collate import Collate
from fusion_pl.data.manifest import ManifestData
from fusion_pl.files import sha256
from fusion_pl.predict import Predictor
from fusion_pl.prediction.columns import OutputColumns
from fusion_pl.prediction.counts import Counts, KnownLabels
from fusion_pl.prediction.formats import FORMATS, Format, JsonLines
from fusion_pl.prediction.partial import PartialFile
from fusion_pl.prediction.source import Source, open_source
from fusion_pl.tables.checks import check_text_column
from fusion_pl.tables.split_record import SplitRecord, find_split_record
from fusion_pl.tables.table import Table, raise_problems
from fusion_pl.types import Prediction, UserError
from fusion_pl.uncertainty.rules import DecisionRules

MIN_ROWS = 256  # that are encoded at once, unless they take too long
SAVE_SECONDS = 2.0  # after which complete rows are stored, so that a kill costs little


class RowPredictor:
    """The model, the samples and the columns of the output, as the options of ``fusion-pl predict`` say.

    Args:
        config: the options.

    Raises:
        UserError: if the checkpoint or the data cannot be read, or an option does not fit them.
    """

    def __init__(self, config: Namespace) -> None:
        path = checkpoint_path(config, config.ckpt_path)
        content = read_checkpoint(path)
        self.predictor = Predictor.from_content(content, path, config.device, config.trust)
        self.rules: DecisionRules = self.predictor.rules(**{name: config[name] for name in RULES})
        self.embeddings: bool = config.embeddings
        check_embeddings(config, self.predictor)
        self.source: Source = open_source(config.data, self.predictor)
        self.columns = OutputColumns(
            self.predictor,
            output_fields(self.rules, self.embeddings),
            self.source.table,
            selected_columns(self.source, config.columns),
        )
        state, table = find_split_record(content, ManifestData), self.source.table
        record = SplitRecord.from_state(state) if state else None
        self.labels = None if table is None else KnownLabels.read(self.predictor, table, record)

    def output_format(self, output: Path) -> Format:
        """Return the format of an output file; JSON Lines without a suffix, as on the standard output."""
        return FORMATS.get(output.suffix.lower(), JsonLines)(self.columns)

    def predict_batches(self, start: int, stop: int | None) -> Iterator[list[Prediction]]:
        """Yield the predictions of each batch of a range of rows, in order."""
        if start == stop:
            return
        for batch in self.source.data.predict_dataloader(start, stop):
            yield list(self.predictor.predict_batches([batch], self.rules, self.embeddings))

    def predictions_of(self, rows: Sequence[int]) -> Iterator[Prediction]:
        """Yield the predictions of some rows, which this process opens."""
        samples: Any = self.source.data.samples("predict")
        collate, size = Collate(self.predictor.processors), self.source.data.batch_size
        parts = (rows[start : start + size] for start in range(0, len(rows), size))
        batches = (collate([samples[row] for row in part]) for part in parts)
        yield from self.predictor.predict_batches(batches, self.rules, self.embeddings)

    def write(
        self, rows: slice, part: PartialFile, output_format: Format, show: Callable[[int], None] | None = None
    ) -> Counts:
        """Predict a range of rows; those that the file contains already are left out.

        Args:
            rows: the range.
            part: the file.
            output_format: format of the output, whose header is in the file of the first row.
            show: function that is called with the number of rows that the file contains.

        Returns:
            The counts of all rows of the range.
        """
        start, counts, saved = rows.start + part.rows, replace(part.counts), time.monotonic()
        with part.append(b"" if rows.start else output_format.header()) as file:
            if show:
                show(part.rows)
            for chunk in _chunks(self.predict_batches(start, rows.stop)):
                file.write(output_format.encode(start, chunk))
                counts.add(start, chunk, self.labels)
                start += len(chunk)
                if show:
                    show(start - rows.start)
                if time.monotonic() >= saved + SAVE_SECONDS:
                    part.save(file, start - rows.start, counts)
                    saved = time.monotonic()
            part.save(file, start - rows.start, counts)
        return counts


def _chunks(batches: Iterable[list[Prediction]]) -> Iterator[list[Prediction]]:
    """Yield the predictions of one batch, or of several small ones.

    A chunk ends with a batch, also with a short one, such as the last one of a split of a stream. After a kill, the
    batches are therefore those of a command that was not killed, and so are the last digits of the output.
    """
    chunk, start = list[Prediction](), time.monotonic()
    for batch in batches:
        chunk += batch
        if len(chunk) >= MIN_ROWS or time.monotonic() >= start + SAVE_SECONDS:
            yield chunk
            chunk, start = [], time.monotonic()
    if chunk:
        yield chunk


def make_key(config: Namespace, predictor: RowPredictor) -> dict[str, str]:
    """Return what the predictions depend on, but for the content of the files in the cells of the table."""
    options = {name: config[name] for name in RULES} | {"columns": predictor.columns.copied}
    return {
        "version of fusion-pl": __version__,
        "checkpoint": sha256(checkpoint_path(config, config.ckpt_path)),
        "table or --data": predictor.source.key,
        **{f"--{name}": json.dumps(value) for name, value in options.items()},
        "--embeddings": str(config.embeddings),
        "--trainer.devices": str(config.trainer.devices),
    }


def check_embeddings(config: Namespace, predictor: Predictor) -> None:
    """Raise an error if ``--embeddings`` is given and the fusion head has no fused embedding."""
    if config.embeddings and predictor.empty_output.embedding is None:
        raise UserError(
            f"--embeddings: {type(predictor.model.fusion).__name__} fuses decisions, not embeddings, so its samples "
            "have no fused embedding: leave the option out"
        )


def output_fields(rules: DecisionRules, embeddings: bool) -> list[str]:
    """Return the fields of a ``Prediction`` that the options fill."""
    return [*rules.field_names, "embedding"] if embeddings else rules.field_names


def selected_columns(source: Source, names: list[str] | str) -> list[str]:
    """Return the columns of the table that ``--columns`` selects for the output.

    Raises:
        UserError: if the table lacks one of them, or the data has no table.
    """
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
    table: Table | None = source.table
    if names and table is None:
        raise UserError(f"--columns: {type(source.data).__name__} has no table whose columns could be copied")
    if table is not None:
        raise_problems(
            table.path, [problem for name in names for problem in check_text_column(table, name, "--columns")]
        )
    return names
