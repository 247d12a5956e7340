"""Predict the labelled rows of a table in parts, each of which is stored as soon as it is complete."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader

from fusion_pl import __version__
from fusion_pl.data.collate import Collate
from fusion_pl.data.manifest import ManifestData
from fusion_pl.data.workers import worker_options
from fusion_pl.evaluate.evaluation import Evaluation
from fusion_pl.evaluate.parts import Arrays, Parts
from fusion_pl.predict import Predictor
from fusion_pl.tables.hashes import table_hash
from fusion_pl.tables.remote import is_url
from fusion_pl.types import Batch, Sample, UserError, Waveform
from fusion_pl.uncertainty.calibration import Outputs

PART_BATCHES = 8  # number of batches per stored part
LENGTH = "length of "  # prefix of the stored lengths


@dataclass(frozen=True)
class EvaluatedModel:
    """A model with the table that it is evaluated on.

    Attributes:
        name: name of the checkpoint.
        content_hash: hash of the checkpoint.
        predictor: the model.
        data: the table, with the processors of the model.
    """

    name: str
    content_hash: str
    predictor: Predictor
    data: ManifestData

    @property
    def key(self) -> str:
        """Everything that the outputs of the model depend on, but for the rows and the content of their files."""
        root = self.data.root if is_url(self.data.root) else os.path.abspath(self.data.root)
        return json.dumps([__version__, self.content_hash, table_hash(self.data.table), self.data.columns, root])


class MeasuringCollate(Collate):
    """Collate samples into a batch, and measure the length of their texts and sounds."""

    def __call__(self, samples: Sequence[Sample]) -> Any:
        """Return the batch, and a dictionary from input and unit to the length of each value."""
        lengths: dict[str, list[float]] = {}
        for row, sample in enumerate(samples):
            for name, value in sample.inputs.items():
                if (measured := measure_length(value)) is not None:
                    key = f"{name} ({measured[1]})"
                    lengths.setdefault(key, [np.nan] * len(samples))[row] = measured[0]
        return super().__call__(samples), lengths


def measure_length(value: Any) -> tuple[float, str] | None:
    """Return the length and the unit of an opened text or sound; None for other values."""
    if isinstance(value, str):
        return float(len(value)), "characters"
    if isinstance(value, Waveform):
        return len(value.samples) / value.rate, "seconds"
    return None


def predict_rows(model: EvaluatedModel, rows: NDArray[np.int64], parts: Parts, console: Console) -> Evaluation:
    """Predict rows of the table that have a label.

    Args:
        model: the model and the table.
        rows: rows of the table, ascending.
        parts: folder of the parts that are stored; those that it has are not predicted again.
        console: console of the progress bar.

    Raises:
        UserError: if no row could be predicted.
    """
    size = model.data.batch_size * PART_BATCHES
    starts = range(0, len(rows), size)
    names = {start: f"predictions-{start}-{size}" for start in starts}
    stored = {start: parts.load(name) for start, name in names.items()}
    missing = [start for start in starts if stored[start] is None]
    batches = _predict_batches(model, np.concatenate([rows[start : start + size] for start in missing] or [rows[:0]]))
    count = sum(-(-len(rows[start : start + size]) // model.data.batch_size) for start in missing)
    tracked = iter(track(batches, f"Predicting with {model.name}", count, console=console, transient=True))
    for start in missing:
        wanted, found = len(rows[start : start + size]), list[Arrays]()
        while sum(len(part["logits"]) for part in found) < wanted:
            found.append(next(tracked))
        stored[start] = part = _concatenate(found)
        parts.store(names[start], part)
    next(tracked, None)  # ends the progress bar
    return _make_evaluation(model, rows, _concatenate([part for part in stored.values() if part is not None]))


def _predict_batches(model: EvaluatedModel, rows: NDArray[np.int64]) -> Iterator[Arrays]:
    """Yield logits, present inputs, errors and lengths of each batch."""
    predictor, data = model.predictor, model.data
    loader: DataLoader[Any] = DataLoader(
        data.samples("predict"),
        batch_size=data.batch_size,
        sampler=rows.tolist(),
        collate_fn=MeasuringCollate(predictor.processors),
        **worker_options(data.num_loader_workers if len(rows) else 0),
    )
    batch: Batch
    for batch, lengths in loader:
        with torch.inference_mode():
            logits = predictor.model(batch.to(predictor.device)).logits.float().cpu()
        errors = [error or "" for error in predictor.errors(batch, logits)]
        yield {
            "logits": logits.numpy(),
            "present": torch.stack(list(batch.present.values()), dim=1).numpy(),
            "errors": np.array(errors, np.str_),
            **{f"{LENGTH}{name}": np.array(values) for name, values in lengths.items()},
        }


def _concatenate(found: Sequence[Arrays]) -> dict[str, NDArray[Any]]:
    """Join the arrays of several batches; a length that a batch lacks is NaN."""
    names = dict.fromkeys(name for part in found for name in part)
    return {
        name: np.concatenate([part.get(name, np.full(len(part["logits"]), np.nan)) for part in found]) for name in names
    }


def _make_evaluation(model: EvaluatedModel, rows: NDArray[np.int64], arrays: Arrays) -> Evaluation:
    errors = arrays["errors"]
    failed = {int(row): str(error) for row, error in zip(rows, errors, strict=True) if error}
    kept = np.flatnonzero(errors == "")
    if not kept.size:
        raise UserError(f"{model.name}: none of the {len(rows)} rows can be predicted; the first: {errors[0]}")
    logits, present = (torch.from_numpy(arrays[name][kept]) for name in ("logits", "present"))
    target = torch.from_numpy(model.data.targets[rows[kept]])
    outputs = Outputs(logits, target, present, torch.ones(len(kept), dtype=torch.bool))
    lengths = {name.removeprefix(LENGTH): values[kept] for name, values in arrays.items() if name.startswith(LENGTH)}
    return Evaluation(model.name, model.predictor, model.data, rows[kept], outputs, lengths, failed)
