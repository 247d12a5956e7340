"""Decode the values of a request: nothing in them is the path of a file or a URL."""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

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
PIXEL_BYTES = 4  # RGB, and a mask


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


class Decoded(NamedTuple):
    """Values of one sample of a request, whose sizes and types are checked, before images and sounds are opened.

    Attributes:
        values: input name -> value that its processor opens.
        errors: one message per value that is refused.
        size: bytes of memory that the images and sounds will take, by their headers.
    """

    values: dict[str, Any]
    errors: list[str]
    size: int


def decode_values(processors: Mapping[str, Processor], values: Mapping[str, Any], limits: Limits) -> Decoded:
    """Decode and check the values of one sample.

    Args:
        processors: input name -> its processor.
        values: input name -> value of a JSON body, or the bytes of a part.
        limits: limits on each value.
    """
    decoded: dict[str, Any] = {}
    errors: list[str] = []
    total = 0
    for name, value in values.items():
        processor = processors.get(name)
        if processor is None or value is None:
            decoded[name] = value
            continue
        try:
            decoded[name], size = _decode(processor, value, limits)
            total += size
        except UserError as error:
            errors.append(f"input {name!r}: {error}")
    return Decoded(decoded, errors, total)


def open_decoded(predictor: Predictor, sample_id: str, decoded: Decoded) -> Sample:
    """Open the values of one sample; its errors are in ``bad_files``.

    Args:
        predictor: the model, whose processors open the values.
        sample_id: position of the sample in the request.
        decoded: its values.
    """
    inputs: dict[str, Any] = {}
    errors = list(decoded.errors)
    for name, value in decoded.values.items() if not errors else ():
        opened = predictor.open_sample(sample_id, {name: value}, open_paths=False)
        inputs |= opened.inputs
        place = f"input {name!r}: " if name in predictor.processors else ""
        errors += [f"{place}{error}" for error in opened.bad_files]
    return Sample(sample_id, {} if errors else inputs, bad_files=tuple(errors))


def _decode(processor: Processor, value: Any, limits: Limits) -> tuple[Any, int]:
    """Return a value that a processor opens, and the bytes of memory that it will take."""
    kind = kind_of(processor)
    if kind == "text":
        if not isinstance(value, str):
            raise UserError(f"expected a text, got {json_type(value)}")
        if len(value) > limits.characters:
            raise UserError(f"the text has {len(value):,} characters, expected at most {limits.characters:,}")
        return value, 0
    if kind == "vector" and not isinstance(value, list):
        raise UserError(f"expected a list of numbers, or a list of such lists, got {json_type(value)}")
    if kind in ("vector", "json"):
        return value, 0
    content = value if isinstance(value, bytes) else _decode_base64(value)
    size = {"image": _image_size, "sound": _sound_size}.get(kind, _file_size)(content, limits)
    return content, size


def _file_size(content: bytes, limits: Limits) -> int:
    del limits
    return len(content)


def _decode_base64(value: Any) -> bytes:
    """Return the bytes of base64 text or of a data URL."""
    expected = "expected the content of a file as base64 or as a data URL (data:image/png;base64,…)"
    if not isinstance(value, str):
        raise UserError(f"{expected}, got {json_type(value)}")
    match = DATA_URL.match(value[:200])
    try:
        return base64.b64decode(value[match.end() :] if match else value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{expected}, got {truncate(value, 20)!r}: paths and URLs are not opened") from error


def json_type(value: Any) -> str:
    """Return what a value of a request is, in words."""
    names = {dict: "an object", list: "a list", bool: "true or false", str: "a text", bytes: "a file"}
    return "null" if value is None else names.get(type(value), "a number")


def _image_size(content: bytes, limits: Limits) -> int:
    """Return the bytes of an image once it is opened, by its header; other errors are found by the processor.

    Raises:
        UserError: if the image has too many pixels.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
    except DECODE_ERRORS:
        return 0
    if width * height > limits.megapixels * 1e6:
        raise UserError(f"the image has {width} × {height} pixels, expected at most {limits.megapixels:g} million")
    return PIXEL_BYTES * width * height


def _sound_size(content: bytes, limits: Limits) -> int:
    """Return the bytes of a sound once it is opened, by its header.

    Raises:
        UserError: if the sound has too many audio samples, or its header does not contain their number.
    """
    try:
        header = soundfile.info(io.BytesIO(content))
    except (soundfile.SoundFileError, TypeError):  # the processor reports it
        return 0
    if header.frames >= UNKNOWN_LENGTH:
        raise UserError("the header of the sound does not contain its length: convert it to a file with a length")
    if header.channels > MAX_CHANNELS:
        raise UserError(f"the sound has {header.channels} channels, expected at most {MAX_CHANNELS}")
    seconds = header.frames / max(header.samplerate, 1)
    if seconds > limits.seconds:
        raise UserError(f"the sound has {seconds:.0f} seconds, expected at most {limits.seconds:g}")
    return 4 * int(header.frames) * int(header.channels)
