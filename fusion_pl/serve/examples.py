"""Samples of a table to try a model with, and values for the examples of the description, as a client sends them."""

from __future__ import annotations

import base64
import io
import json
import math
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from fusion_pl.cli.checkpoint_options import set_up_rows
from fusion_pl.data.manifest import ManifestData
from fusion_pl.messages import join_names
from fusion_pl.predict import Predictor
from fusion_pl.processors import Processor
from fusion_pl.serve.limits import Limits
from fusion_pl.serve.values import decode_values, kind_of
from fusion_pl.types import UserError, Waveform

MAX_EXAMPLES = 6
MAX_EDGE = 1024  # pixels of an image
MAX_SECONDS = 10.0  # of a sound
PLACEHOLDER_SECONDS = 0.1  # of the silence


def table_examples(predictor: Predictor, table: str, limits: Limits) -> list[dict[str, Any]]:
    """Return the ids and the inputs of a few rows of a table, without rows that cannot be opened or sent.

    Large pictures are reduced, and of sounds only the beginning is used.

    Raises:
        UserError: if the table cannot be read, or no row can be opened and sent.
    """
    data = ManifestData(manifest=table, inputs=predictor.columns)
    set_up_rows(data, predictor, None)
    rows: Any = data.samples("predict")
    # Random, because a table is often sorted by class or repeats its classes; and the same ones at each start.
    chosen = np.random.default_rng(0).permutation(len(rows))[:MAX_EXAMPLES]
    samples = [rows[row] for row in sorted(chosen.tolist())]
    examples = [
        {"name": sample.id, "inputs": encode_values(predictor, sample.inputs)}
        for sample in samples
        if sample.inputs and not sample.bad_files
    ]
    examples = [example for example in examples if _is_within(limits, predictor, example["inputs"])]
    if not examples:
        reason = f": {join_names(sample.bad_files[0] for sample in samples if sample.bad_files)}" if samples else ""
        raise UserError(f"--examples {table}: none of its rows can be opened within --limits{reason}")
    return examples


def _is_within(limits: Limits, predictor: Predictor, inputs: dict[str, Any]) -> bool:
    """Return whether a client may send a sample."""
    size = len(json.dumps(inputs))
    return size <= limits.bytes and not decode_values(predictor.processors, inputs, limits).errors


def encode_values(predictor: Predictor, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return opened values as values of a JSON body, without those that only their processor knows."""
    values = {name: encode_value(predictor.processors[name], value) for name, value in inputs.items()}
    return {name: value for name, value in values.items() if value is not None}


def example_value(processor: Processor) -> Any:
    """Return a value that a client could send for an input; None for an input that only its author knows."""
    value = processor.placeholder()
    if isinstance(value, Waveform):
        value = Waveform(value.samples[: round(value.rate * PLACEHOLDER_SECONDS)], value.rate)
    return "a text" if kind_of(processor) == "text" else encode_value(processor, value)


def encode_value(processor: Processor, value: Any) -> Any:
    """Return an opened value as a value of a JSON body: files as data URLs; None if it has no such form."""
    kind, file = kind_of(processor), io.BytesIO()
    if kind == "text":
        return value
    if kind == "vector":
        return _without_nan(value.tolist())
    if kind == "image" and isinstance(value, Image.Image):
        if max(value.size) > MAX_EDGE:
            value = value.copy()
            value.thumbnail((MAX_EDGE, MAX_EDGE))
        value.save(file, "PNG")
        return _data_url("image/png", file)
    if kind == "sound" and isinstance(value, Waveform):
        samples = value.samples[: round(MAX_SECONDS * value.rate)]
        soundfile.write(file, samples.numpy(), value.rate, format="WAV")
        return _data_url("audio/wav", file)
    return None


def _without_nan(numbers: list[Any]) -> list[Any]:
    """Return numbers, or lists of them, with None for missing ones, which JSON cannot write as NaN."""
    return [_without_nan(one) if isinstance(one, list) else None if math.isnan(one) else one for one in numbers]


def _data_url(media_type: str, file: io.BytesIO) -> str:
    return f"data:{media_type};base64,{base64.b64encode(file.getvalue()).decode()}"
