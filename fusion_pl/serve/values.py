"""Decode the values of a request: nothing in them is the path of a file or a URL."""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Mapping
from typing import Any, Literal

import soundfile
from PIL import Image

from fusion_pl.messages import truncate
from fusion_pl.predict import Predictor
from fusion_pl.processors import AudioProcessor, FeatureProcessor, ImageProcessor, Processor, TextProcessor
from fusion_pl.processors.audio import UNKNOWN_LENGTH
from fusion_pl.processors.image import DECODE_ERRORS, FORMATS
from fusion_pl.serve.limits import Limits
from fusion_pl.types import Sample, UserError

Kind = Literal["text", "image", "sound", "vector", "file", "json"]
DATA_URL = re.compile(r"data:[\w.+-]*/?[\w.+-]*(?:;[\w.+-]+=[\w.+\"-]*)*;base64,", re.ASCII | re.IGNORECASE)
MAX_CHANNELS = 8
MAX_AUDIO_VALUES = 2**28  # audio samples of a file times channels, whatever its rate: they are decoded in seconds


def kind_of(processor: Processor) -> Kind:
    """Return what a client sends for an input: by the class of its processor."""
    if isinstance(processor, TextProcessor):
        return "text"
    if isinstance(processor, ImageProcessor):
        return "image"
    if isinstance(processor, AudioProcessor):
        return "sound"
    if isinstance(processor, FeatureProcessor):
        return "vector"
    return "file" if processor.reads_files else "json"


def open_sample(predictor: Predictor, sample_id: str, values: Mapping[str, Any], limits: Limits) -> Sample:
    """Open the values of one sample of a request; an error is in ``bad_files``.

    Args:
        predictor: the model, whose processors open the values.
        sample_id: position of the sample in the request.
        values: input name -> value of a JSON body, or the bytes of a part.
        limits: limits on each value.
    """
    inputs: dict[str, Any] = {}
    errors: list[str] = []
    for name, value in values.items():
        processor = predictor.processors.get(name)
        try:
            decoded = value if processor is None or value is None else _decode(processor, value, limits)
        except UserError as error:
            errors.append(f"input {name!r}: {error}")
            continue
        opened = predictor.open_sample(sample_id, {name: decoded}, open_paths=False)
        inputs |= opened.inputs
        errors += opened.bad_files if processor is None else [f"input {name!r}: {error}" for error in opened.bad_files]
    return Sample(sample_id, {} if errors else inputs, bad_files=tuple(errors))


def _decode(processor: Processor, value: Any, limits: Limits) -> Any:
    kind = kind_of(processor)
    if kind == "text":
        if not isinstance(value, str):
            raise UserError(f"expected a text, got {_json_type(value)}")
        if len(value) > limits.characters:
            raise UserError(f"the text has {len(value):,} characters, expected at most {limits.characters:,}")
    elif kind == "vector":
        if not isinstance(value, list):
            raise UserError(f"expected a list of numbers, or a list of such lists, got {_json_type(value)}")
    elif kind != "json":
        content = value if isinstance(value, bytes) else _decode_base64(value)
        if kind == "image":
            _check_image(content, limits)
        elif kind == "sound":
            _check_sound(content, limits)
        return content
    return value


def _decode_base64(value: Any) -> bytes:
    """Return the bytes of base64 text or of a data URL."""
    expected = "expected the content of a file as base64 or as a data URL (data:image/png;base64,…)"
    if not isinstance(value, str):
        raise UserError(f"{expected}, got {_json_type(value)}")
    match = DATA_URL.match(value[:200])
    try:
        return base64.b64decode(value[match.end() :] if match else value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{expected}, got {truncate(value, 20)!r}: paths and URLs are not opened") from error


def _json_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", str: "a text", bytes: "a file"}
    return names.get(type(value), "a number")


def _check_image(content: bytes, limits: Limits) -> None:
    """Raise an error if the header of an image promises too many pixels; other errors are found by the processor."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
    except DECODE_ERRORS:
        return
    if width * height > limits.megapixels * 1e6:
        raise UserError(f"the image has {width} × {height} pixels, expected at most {limits.megapixels:g} million")


def _check_sound(content: bytes, limits: Limits) -> None:
    """Raise an error if the header of a sound promises too many audio samples, or does not contain their number."""
    try:
        header = soundfile.info(io.BytesIO(content))
    except (soundfile.SoundFileError, TypeError):  # the processor reports it
        return
    if header.frames >= UNKNOWN_LENGTH:
        raise UserError("the header of the sound does not contain its length: convert it to a file with a length")
    if header.channels > MAX_CHANNELS:
        raise UserError(f"the sound has {header.channels} channels, expected at most {MAX_CHANNELS}")
    seconds = header.frames / max(header.samplerate, 1)
    if seconds > limits.seconds or header.frames * header.channels > MAX_AUDIO_VALUES:
        raise UserError(f"the sound has {seconds:.0f} seconds, expected at most {limits.seconds:g}")
